"""How a layer's scale is chosen from its weights.

Both rules are functions ``(weights, bit_width, representation) -> scale``:

* `max_scale`, the paper's ``s = 2 max|W|`` (Eq. 14): no weight saturates.
* `least_squares_scale`: the scale whose nearest-level quantization has the least sum of
  squared errors. At 8 bits the two nearly agree; at 1 and 2 bits the largest weight is
  a poor guide (16 times the variance as error at one bit, against 0.36 times).
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization import representation as representation_lib

ScaleRule = Callable[
    [tf.Tensor, tf.Tensor, representation_lib.Representation], tf.Tensor
]

# Fractions of `max_scale` tried by `least_squares_scale`: neighbours differ by 12 %,
# and alternating minimisation finishes from the best of them.
_FRACTIONS = np.geomspace(0.03, 1.0, num=32).astype(np.float32)
_REFINEMENTS = 3


def max_scale(
    weights: tf.Tensor,
    bit_width: tf.Tensor,
    representation: representation_lib.Representation,
) -> tf.Tensor:
    """Returns ``2 max|W|`` (Eq. 14), float32[].

    All-zero weights (a layer that was initialised so) give 1: any scale describes
    them, and zero would divide by zero.

    Args:
      weights: float32[...].
      bit_width: int32[], not used by this rule.
      representation: not used by this rule.
    """
    del bit_width, representation
    largest = tf.reduce_max(tf.abs(weights))
    return tf.where(largest > 0.0, 2.0 * largest, 1.0)


def least_squares_scale(
    weights: tf.Tensor,
    bit_width: tf.Tensor,
    representation: representation_lib.Representation,
) -> tf.Tensor:
    """Returns the scale of least squared quantization error, float32[].

    A grid of fractions of `max_scale` is searched; from the best, nearest codes for a
    scale and the best scale for codes are found in turn, which never raises the error.

    Args:
      weights: float32[...].
      bit_width: int32[].
      representation: the levels whose error counts.
    """
    weights = tf.reshape(weights, [-1])
    largest = max_scale(weights, bit_width, representation)

    def squared_error(scale: tf.Tensor) -> tf.Tensor:
        codes = representation.quantize(weights, scale, bit_width)
        restored = representation.dequantize(codes, scale, bit_width)
        return tf.reduce_sum(tf.math.squared_difference(weights, restored))

    candidates = largest * _FRACTIONS
    errors = tf.map_fn(squared_error, candidates, parallel_iterations=1)
    scale = candidates[tf.argmin(errors)]
    for _ in range(_REFINEMENTS):
        refined = _best_scale_for_codes(weights, scale, bit_width, representation)
        scale = tf.where(squared_error(refined) < squared_error(scale), refined, scale)
    return scale


def _best_scale_for_codes(
    weights: tf.Tensor,
    scale: tf.Tensor,
    bit_width: tf.Tensor,
    representation: representation_lib.Representation,
) -> tf.Tensor:
    """Returns the least-squares scale for the codes that `scale` rounds to."""
    codes = representation.quantize(weights, scale, bit_width)
    levels = representation.signed_levels(codes, bit_width)
    # Codes that all stand for zero have no best scale: keep the given one.
    step = tf.math.divide_no_nan(
        tf.reduce_sum(weights * levels), tf.reduce_sum(tf.square(levels))
    )
    refined = representation_lib.scale_of(step, bit_width)
    return tf.where(refined > 0.0, refined, scale)


SCALE_RULES: dict[str, ScaleRule] = {
    "max": max_scale,
    "least_squares": least_squares_scale,
}


def get_scale_rule(identifier: str | ScaleRule) -> ScaleRule:
    """Returns the scale rule of that name (or the function itself).

    Raises:
      ValueError: if there is no rule of that name.
    """
    if callable(identifier):
        return identifier
    if identifier not in SCALE_RULES:
        raise ValueError(
            f"Unknown scale rule {identifier!r}; choose one of {sorted(SCALE_RULES)} "
            "or pass a function (weights, bit_width, representation) -> scale."
        )
    return SCALE_RULES[identifier]
