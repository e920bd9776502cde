"""Seeds, set in less time than by Keras."""

from __future__ import annotations

import random
from unittest import mock

import tensorflow as tf
from tensorflow.python.eager import context


def set_random_seed(seed: int) -> None:
    """Seeds Python, NumPy, Keras and TensorFlow, as `tf.keras.utils.set_random_seed`.

    That also empties TensorFlow's cache of operations and functions that are ready to
    run, so that random ones begin anew; to fill it again takes longer than most tests.
    Here it is kept where no operation has drawn a seed since the last one was set.
    """
    present = context.context()
    drawing = getattr(present, "_rng", None)  # None before the first seed.
    if not drawing or drawing.getstate() != random.Random(present._seed).getstate():
        tf.keras.utils.set_random_seed(seed)
        return
    with mock.patch.object(context.pywrap_tfe, "TFE_ContextClearCaches"):
        tf.keras.utils.set_random_seed(seed)
