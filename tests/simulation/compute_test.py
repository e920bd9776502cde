"""Which precision "auto" stands for."""

from __future__ import annotations

import pytest

from tff_fedmpq.simulation import compute
from tff_fedmpq.simulation.config import make_config


@pytest.mark.parametrize(
    "text, fast",
    [
        ("processor : 0\nflags\t\t: fpu sse2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu sse2 avx2 avx512f\n", False),
        ("flags\t\t: my_avx512_bf16_emulated\n", False),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_detection_reads_the_processors_flags(tmp_path, text, fast):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert compute.has_fast_bfloat16(path) is fast


def test_without_a_list_of_processors_bfloat16_is_not_fast(tmp_path):
    assert not compute.has_fast_bfloat16(tmp_path / "none")


@pytest.mark.parametrize("fast, name", [(True, "bfloat16"), (False, "float32")])
def test_a_configuration_holds_what_auto_became(monkeypatch, fast, name):
    monkeypatch.setattr(compute, "has_fast_bfloat16", lambda: fast)
    assert make_config().compute == name
    for scheme in ("fedavg", "fedpaq", "uveqfed"):
        assert make_config("paper", scheme).compute == "float32"
    assert make_config(compute="auto").as_dict()["compute"] == name


@pytest.mark.parametrize("name, policy", compute.DTYPE_POLICIES.items())
def test_an_argument_is_kept(name, policy):
    config = make_config(compute=name)
    assert config.compute == name
    assert config.dtype_policy == policy


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="compute has to be one of auto, bfloat16"):
        compute.resolve_compute("float8", True)
