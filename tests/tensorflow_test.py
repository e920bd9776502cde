"""Versions of Python, TensorFlow and Keras: which work, and what the others raise."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import tensorflow as tf

from tff_fedmpq import _tensorflow

_KERAS_IS_SEPARATE = sys.version_info >= (3, 12)
needs_separate_keras = pytest.mark.skipif(
    not _KERAS_IS_SEPARATE, reason="TensorFlow 2.14 contains Keras 2"
)


def _run_python(code, **variables):
    environment = {k: v for k, v in os.environ.items() if "LEGACY_KERAS" not in k}
    return subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment, **variables},
    )


@pytest.mark.parametrize(
    ("python", "tensorflow", "keras", "expected"),
    [
        ((3, 9), "2.14.0", None, True),
        ((3, 11), "2.14.1", None, True),
        ((3, 11), "2.15.0", None, False),
        ((3, 11), "2.20.0", "2.20.1", False),
        ((3, 12), "2.14.1", None, False),
        ((3, 12), "2.16.2", "2.16.0", True),
        ((3, 12), "2.15.0", "2.15.0", False),
        ((3, 13), "2.20.0", "2.20.1", True),
        ((3, 13), "2.20.0", None, False),
        ((3, 13), "2.20.0", "2.2.0", False),
        ((3, 13), "2.20.0", "2.19.0", False),
        ((3, 13), "2.21.0", "2.21.0", False),
        ((3, 14), "2.20.0", "2.20.1", False),
        ((3, 13), "2.20.0rc0", "2.20.1", True),
    ],
)
def test_supported_versions(python, tensorflow, keras, expected):
    assert _tensorflow.is_supported(python, tensorflow, keras) == expected


def test_the_installed_tensorflow_is_accepted():
    _tensorflow.check_tensorflow(tf)
    assert tf.keras.layers.Layer.__module__.startswith(
        "tf_keras.src." if _KERAS_IS_SEPARATE else "keras.src."
    )


@pytest.mark.parametrize("version", ["2.13.1", "2.21.0", "3.0.0"])
def test_another_tensorflow_is_refused_and_supported_ones_are_named(version):
    with pytest.raises(ImportError, match="3.9 to 3.11 with TensorFlow 2.14, or"):
        _tensorflow.check_tensorflow(types.SimpleNamespace(__version__=version))


def test_keras_is_chosen_on_newer_pythons_only_and_the_users_choice_is_kept(
    monkeypatch,
):
    monkeypatch.delenv(_tensorflow.KERAS_VARIABLE, raising=False)
    _tensorflow.use_legacy_keras()
    expected = "1" if _KERAS_IS_SEPARATE else None
    assert os.environ.get(_tensorflow.KERAS_VARIABLE) == expected
    monkeypatch.setenv(_tensorflow.KERAS_VARIABLE, "0")
    _tensorflow.use_legacy_keras()
    assert os.environ[_tensorflow.KERAS_VARIABLE] == "0"


@pytest.mark.parametrize(
    "first",
    ["import tff_fedmpq, tensorflow as tf", "import tensorflow as tf, tff_fedmpq"],
)
def test_either_may_be_imported_first(first):
    finished = _run_python(
        f"{first}\n"
        "from tensorflow.keras import layers\n"
        "model = tf.keras.Sequential([layers.Input([3]), layers.Dense(2)])\n"
        "print(tff_fedmpq.summary(tff_fedmpq.quantize_model(model, 3)).mean_bit_width)"
    )
    assert finished.stdout.split() == ["3.0"], finished.stderr


@needs_separate_keras
@pytest.mark.parametrize(
    ("first", "variables"),
    [
        ("import tensorflow as tf; tf.keras.layers.Dense; import tff_fedmpq", {}),
        ("from tensorflow.keras import layers; import tff_fedmpq", {}),
        ("import tff_fedmpq, tensorflow", {_tensorflow.KERAS_VARIABLE: "0"}),
    ],
)
def test_keras_3_in_use_is_one_error_that_says_what_to_do(first, variables):
    finished = _run_python(first, **variables)
    assert finished.returncode == 1
    error = finished.stderr.splitlines()[-1]
    assert error.startswith("ImportError: tff_fedmpq expects Keras 2")
    assert "import tff_fedmpq first" in error and "TF_USE_LEGACY_KERAS=1" in error


@needs_separate_keras
def test_a_missing_tf_keras_is_named():
    block = "import sys; sys.modules['tf_keras'] = None; "
    finished = _run_python(block + "import tff_fedmpq, tensorflow")
    assert finished.returncode == 1
    error = finished.stderr.splitlines()[-1]
    assert "tf_keras of the same minor version; found" in error
    assert "tf_keras None" in error
