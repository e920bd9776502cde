"""What can be imported with, without and with the wrong TensorFlow Federated."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import metadata

import pytest
import tensorflow as tf

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
        timeout=120,
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


def test_the_error_names_both_routes(monkeypatch):
    _pretend_installed(monkeypatch, None)
    with pytest.raises(ImportError) as error:
        _tff.require_tff()
    assert "uv sync --extra federated" in str(error.value)
    assert "pip install --no-deps -r requirements.txt" in str(error.value)


def test_the_lower_layers_import_without_tff():
    finished = _run_python(
        _BLOCK_TFF
        + "import tff_fedmpq.quantization, tff_fedmpq.keras, tff_fedmpq.allocation"
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("layer", ["federated", "simulation"])
def test_the_upper_layers_without_tff_name_the_fix(layer):
    finished = _run_python(_BLOCK_TFF + f"import tff_fedmpq.{layer}")
    assert finished.returncode == 1
    assert "ImportError: tff_fedmpq expects" in finished.stderr
    assert "uv sync --extra federated" in finished.stderr


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model"])
def test_a_saved_model_loads_after_importing_the_package_alone(tmp_path, name):
    path = tmp_path / name
    model = tf.keras.Sequential([tf.keras.Input([3]), QuantDense(2, bit_width=4)])
    model.save(path)
    finished = _run_python(
        _BLOCK_TFF + "import tensorflow as tf, tff_fedmpq; "
        f"model = tf.keras.models.load_model({str(path)!r}); "
        "print(tff_fedmpq.summary(model).layers[0].bit_width)"
    )
    assert finished.stdout.split() == ["4"], finished.stderr
