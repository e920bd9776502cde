"""The Keras that TensorFlow uses, chosen before anything uses it.

This package extends Keras 2. TensorFlow 2.14 contains it; the `tf.keras` of 2.16 and
newer is Keras 3 unless `TF_USE_LEGACY_KERAS` is set and `tf_keras` is installed.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import random
import sys
import types
from typing import Any

KERAS_VARIABLE = "TF_USE_LEGACY_KERAS"
SUPPORTED = (
    "Python 3.9 to 3.11 with TensorFlow 2.14, or Python 3.12 or 3.13 with TensorFlow "
    "2.16 to 2.20 and tf_keras of the same minor version"
)


def is_supported(
    python: tuple[int, int], tensorflow: str, tf_keras: str | None
) -> bool:
    """Returns whether this package works on these versions; None = not installed."""
    release = tuple(int(number) for number in tensorflow.split(".")[:2])
    if python < (3, 12):
        return release == (2, 14)
    same_minor = f"{tf_keras}.".startswith("{}.{}.".format(*release))
    return python <= (3, 13) and (2, 16) <= release <= (2, 20) and same_minor


def keras_module(name: str) -> Any:
    """Returns a module of the Keras 2 that TensorFlow uses, `keras` or `tf_keras`."""
    import tensorflow as tf

    package = tf.keras.layers.Layer.__module__.partition(".")[0]
    return importlib.import_module(f"{package}.src.{name}")


def use_legacy_keras() -> None:
    """Makes TensorFlow 2.16 and newer use Keras 2, unless the user set otherwise."""
    if sys.version_info >= (3, 12):
        os.environ.setdefault(KERAS_VARIABLE, "1")


def check_tensorflow(tf: Any) -> None:
    """Raises ImportError unless TensorFlow is a supported one that uses Keras 2.

    One that was imported before this package may be: `tf.keras` reads the variable when
    it is first used, and for `import tensorflow.keras` the folder is put right.
    """
    python, keras_version = sys.version_info[:2], None
    if python >= (3, 12):
        try:
            import tf_keras
        except ImportError:
            pass
        else:
            keras_version = tf_keras.__version__
    if not is_supported(python, tf.__version__, keras_version):
        found = f"Python {python[0]}.{python[1]} with TensorFlow {tf.__version__}"
        raise ImportError(
            f"tff_fedmpq expects {SUPPORTED}; found {found} and tf_keras "
            f"{keras_version}. `python -m tff_fedmpq.doctor` says more."
        )
    if python < (3, 12):
        return
    for keras in (tf.keras, sys.modules.get("tensorflow.keras", tf.keras)):
        if not keras.layers.Layer.__module__.startswith("tf_keras."):
            raise ImportError(
                "tff_fedmpq expects Keras 2, but TensorFlow was imported before it and "
                "uses Keras 3. Restart Python (in a notebook: the kernel) and import "
                f"tff_fedmpq first, or set {KERAS_VARIABLE}=1 before it starts."
            )
    if tf.__version__ < "2.19":
        _repair_seeds()
    folder = str(pathlib.Path(tf_keras.__file__).parent / "api" / "_v2")
    if folder not in tf.__path__:
        tf.__path__.insert(0, folder)


def _repair_seeds() -> None:
    """Lets tf_keras 2.16 to 2.18 draw seeds up to 1e9, a float.

    `random.randint` refuses floats since Python 3.12; tf_keras 2.19 gives it an int.
    """
    from tf_keras.src.utils import tf_utils

    class Random(random.Random):
        def randint(self, a: float, b: float) -> int:
            return super().randint(int(a), int(b))

    def randint(a: float, b: float) -> int:
        return random.randint(int(a), int(b))

    tf_utils.random = types.SimpleNamespace(
        Random=Random, randint=randint, seed=random.seed
    )
