"""What can be imported with, without and with the wrong TensorFlow Federated."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib import metadata

import pytest
import tensorflow as tf

import tff_fedmpq
from tff_fedmpq import _tff
from tff_fedmpq.keras import QuantDense

_BLOCK_TFF = "import sys; sys.modules['tensorflow_federated'] = None; "


def _pretend_installed(monkeypatch, version, importable=True):
    """Makes the import system report this version of TFF (None: not installed)."""

    def fake_version(name):
        if name != "tensorflow-federated":
            raise AssertionError(f"asked for the version of {name}")
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", fake_version)
    spec = object() if importable else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def _run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("version", ["0.87.0", "0.87.1"])
def test_the_supported_series_is_accepted(monkeypatch, version):
    _pretend_installed(monkeypatch, version)
    _tff.require_tff()


@pytest.mark.parametrize("version", ["0.8.7", "0.86.0", "0.88.0", "0.870.0", "1.87.0"])
def test_another_version_is_refused_and_named(monkeypatch, version):
    _pretend_installed(monkeypatch, version)
    with pytest.raises(ImportError, match=r"expects .* 0\.87\.x") as error:
        _tff.require_tff()
    assert f"found {version}" in str(error.value)


@pytest.mark.parametrize(
    ("version", "importable"), [(None, False), (None, True), ("0.87.0", False)]
)
def test_a_missing_tff_is_refused(monkeypatch, version, importable):
    _pretend_installed(monkeypatch, version, importable)
    with pytest.raises(ImportError, match="not installed") as error:
        _tff.require_tff()
    assert error.value.name == "tensorflow_federated"


def test_the_error_names_all_routes(monkeypatch):
    _pretend_installed(monkeypatch, None)
    with pytest.raises(ImportError) as error:
        _tff.require_tff()
    assert "uv sync --extra federated" in str(error.value)
    assert "--no-deps --ignore-requires-python -r requirements.txt" in str(error.value)
    assert "python -m tff_fedmpq.doctor" in str(error.value)


# All lines are tried in one process, as importing TensorFlow takes seconds.
_LOWER = [
    "import tff_fedmpq.quantization, tff_fedmpq.keras, tff_fedmpq.allocation",
    "from tff_fedmpq import quantize_model, summary, prune_and_grow, IntegerSGD",
    "import tff_fedmpq.baselines.registry, tff_fedmpq.simulation.config",
    "from tff_fedmpq import FedMPQConfig, build_fedmpq; FedMPQConfig()",
]
_UPPER = [
    "import tff_fedmpq.federated.process",
    "import tff_fedmpq.simulation.experiment",
    "from tff_fedmpq import local_runtime",
    "from tff_fedmpq import client_data_from_arrays",
    "from tff_fedmpq import build_fedmpq; build_fedmpq(None, {}, None)",
    "from tff_fedmpq import build_fedavg; build_fedavg(None, {}, None)",
]
_TRY = """
import json
def error_of(line):
    try:
        exec(line)
    except ImportError as error:
        return str(error)
print(json.dumps([error_of(line) for line in LINES]))
"""


_LOAD = """
import tensorflow as tf, tff_fedmpq
for path in PATHS:
    model = tf.keras.models.load_model(path)
    print(tff_fedmpq.summary(model).layers[0].bit_width)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What a program without TFF prints, which first loads models of each format."""
    model = tf.keras.Sequential([tf.keras.Input([3]), QuantDense(2, bit_width=4)])
    folder = tmp_path_factory.mktemp("models")
    paths = [str(folder / name) for name in ("model.keras", "model.h5", "model")]
    for path in paths:
        model.save(path)
    lines = [*_LOWER, *_UPPER]
    settings = f"PATHS, LINES = {paths!r}, {lines!r}\n"
    finished = _run_python(_BLOCK_TFF + settings + _LOAD + _TRY)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


@pytest.fixture(scope="module")
def errors(printed):
    """Line -> message of the ImportError that it raises without TFF, or None."""
    return dict(zip([*_LOWER, *_UPPER], json.loads(printed[-1])))


@pytest.mark.parametrize("line", _LOWER)
def test_the_lower_layers_and_settings_work_without_tff(errors, line):
    assert errors[line] is None


@pytest.mark.parametrize("line", _UPPER)
def test_the_upper_layers_without_tff_name_the_fix(errors, line):
    assert errors[line].startswith("tff_fedmpq expects TensorFlow Federated")
    assert "uv sync --extra federated" in errors[line]


def test_a_saved_model_loads_after_importing_the_package_alone(printed):
    """In each of Keras's formats."""
    assert printed[:-1] == ["4", "4", "4"]


def test_public_names_exist():
    for name in tff_fedmpq.__all__:
        assert getattr(tff_fedmpq, name) is not None
    assert set(tff_fedmpq.__all__) == set(dir(tff_fedmpq))
    with pytest.raises(AttributeError, match="no attribute 'fedmpq_scheme'"):
        tff_fedmpq.fedmpq_scheme  # noqa: B018
