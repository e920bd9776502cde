"""How a layer's scale is chosen from its weights.

All rules are functions ``(weights, bit_width, representation) -> scale``:

* `max_scale`, the paper's ``s = 2 max|W|`` (Eq. 14): no weight saturates, but in offset
  binary the largest, for its levels reach further down than up. There ``-max|W|`` lies
  between the two lowest levels, and may become the lowest, ``2**b / (2**b - 1)`` times
  as large: a layer's most negative weight can grow from round to round.
* `least_squares_scale`: the scale whose nearest-level quantization has the least sum of
  squared errors. At 8 bits the two nearly agree; at 1 and 2 bits the largest weight is
  a poor guide (16 times the variance as error at one bit, against 0.36 times).
* `gaussian_scale`: the least-squares scale of Gaussian weights with the same mean
  square. Codes cannot leave the range of their scale, and of `SIGN_MAGNITUDE` the
  other rules' levels do not exceed max|W|: once narrow, a range hardly widens. This
  rule widens it from 2 bits on where weights are spread over all of it; at one bit it
  narrows it.
"""

from __future__ import annotations

import functools
from typing import Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization import representation as representation_lib

ScaleRule = Callable[
    [tf.Tensor, tf.Tensor, representation_lib.Representation], tf.Tensor
]

# The search of `least_squares_scale`: this many scales, evenly spaced up to
# `max_scale`, are tried on a histogram of this many bins; alternating minimisation on
# the weights themselves finishes from the best of them.
_NUM_CANDIDATES = 256
_NUM_BINS = 4096
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

    All-zero weights give 1, as in `max_scale`.

    The best of a grid of fractions of `max_scale` is found on a histogram of the
    weights (so the search costs the same for every layer). From there, nearest codes
    for a scale and the best scale for codes are found in turn on the weights, which
    never raises the error.

    Args:
      weights: float32[...].
      bit_width: int32[].
      representation: the levels whose error counts.
    """
    # One graph for all layers: traced for each of them, a network takes seconds.
    return _least_squares_scale_of_flat(
        tf.reshape(weights, [-1]), tf.convert_to_tensor(bit_width), representation
    )


@functools.partial(tf.function, reduce_retracing=True)
def _least_squares_scale_of_flat(
    weights: tf.Tensor,
    bit_width: tf.Tensor,
    representation: representation_lib.Representation,
) -> tf.Tensor:
    """Returns the scale for weights float32[n]."""
    largest = max_scale(weights, bit_width, representation)

    def squared_error(scale: tf.Tensor) -> tf.Tensor:
        codes = representation.quantize(weights, scale, bit_width)
        restored = representation.dequantize(codes, scale, bit_width)
        return tf.reduce_sum(tf.math.squared_difference(weights, restored))

    scale = _search_on_histogram(weights, largest, bit_width, representation)
    for _ in range(_REFINEMENTS):
        refined = _best_scale_for_codes(weights, scale, bit_width, representation)
        scale = tf.where(squared_error(refined) < squared_error(scale), refined, scale)
    # The histogram blurs the weights: what it found has to stand on themselves. Of a
    # layer of zeros the smallest scale were the best, and it could hardly learn.
    is_better = squared_error(scale) < squared_error(largest)
    return tf.where(is_better & tf.reduce_any(weights != 0.0), scale, largest)


def _search_on_histogram(
    weights: tf.Tensor,
    largest: tf.Tensor,
    bit_width: tf.Tensor,
    representation: representation_lib.Representation,
) -> tf.Tensor:
    """Returns the best fraction of the scale `largest` for binned weights."""
    bound = largest / 2.0
    counts = tf.histogram_fixed_width(weights, [-bound, bound], _NUM_BINS)
    fractions = (np.arange(_NUM_BINS, dtype=np.float32) + 0.5) / _NUM_BINS
    centres = largest * (fractions - 0.5)
    candidates = largest * np.arange(1, _NUM_CANDIDATES + 1, dtype=np.float32)
    candidates = candidates[:, tf.newaxis] / _NUM_CANDIDATES
    codes = representation.quantize(centres, candidates, bit_width)
    restored = representation.dequantize(codes, candidates, bit_width)
    errors = tf.linalg.matvec(
        tf.math.squared_difference(centres, restored), tf.cast(counts, tf.float32)
    )
    return candidates[tf.argmin(errors), 0]


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


def gaussian_scale(
    weights: tf.Tensor,
    bit_width: tf.Tensor,
    representation: representation_lib.Representation,
) -> tf.Tensor:
    """Returns the scale of least error for Gaussian weights, float32[].

    It follows the weights' mean square only. All-zero weights give 1, and so do those
    whose squares vanish in float32.

    Args:
      weights: float32[...].
      bit_width: int32[].
      representation: not used by this rule, whose steps are those of levels without a
        zero; from 2 bits on they are within 1 % of the least error in offset binary.
    """
    del representation
    root_mean_square = tf.sqrt(tf.reduce_mean(tf.square(weights)))
    step = root_mean_square * tf.gather(gaussian.STEPS, bit_width - 1)
    scale = representation_lib.scale_of(step, bit_width)
    return tf.where(scale > 0.0, scale, 1.0)


SCALE_RULES: dict[str, ScaleRule] = {
    "max": max_scale,
    "least_squares": least_squares_scale,
    "gaussian": gaussian_scale,
}


def get_scale_rule(identifier: str | ScaleRule) -> ScaleRule:
    """Returns the scale rule of that name; see `lookup`."""
    return lookup(identifier, SCALE_RULES, "scale rule")
