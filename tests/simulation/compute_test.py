"""The number format that "auto" stands for."""

from __future__ import annotations

import pytest

from tff_fedmpq.simulation import compute
from tff_fedmpq.simulation.config import make_config


@pytest.mark.parametrize(("fast", "name"), [(True, "bfloat16"), (False, "float32")])
def test_a_configuration_holds_what_auto_became(monkeypatch, fast, name):
    monkeypatch.setattr(compute, "has_fast_bfloat16", lambda: fast)
    assert make_config().compute == name
    for scheme in ("fedavg", "fedpaq", "uveqfed"):
        assert make_config("paper", scheme).compute == "float32"
    assert make_config(compute="auto").as_dict()["compute"] == name


@pytest.mark.parametrize(("name", "policy"), compute.DTYPE_POLICIES.items())
def test_an_argument_is_kept(name, policy):
    for scheme in ("fedmpq", "fedavg"):
        config = make_config("paper", scheme, compute=name)
        assert config.compute == name
        assert config.dtype_policy == policy


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Unknown compute 'float8'.*'auto'"):
        compute.resolve_compute("float8", True)
