"""Rules that choose a layer's scale from its weights.

A rule is a function ``(weights, bit_width, representation) -> scale`` of weights
float32[...] and a bit-width int32[]; the scale is float32[].

* `max_scale`: ``s = 2 max|W|`` (Eq. 14). In offset binary the levels reach further down
  than up: the largest weights saturate, and the lowest level is ``2**b / (2**b - 1)``
  times ``-max|W|``, so a layer's most negative weight can grow from round to round.
* `least_squares_scale`: least sum of squared quantization errors. It nearly agrees with
  `max_scale` at 8 bits; at one bit Gaussian weights' error is 0.36 variances, not 16.
* `gaussian_scale`: least-squares scale of Gaussian weights with the same mean square.
* `widening_scale`: the larger of these two from 3 bits on, least squares below. Codes
  cannot leave the range of their scale, and in `SIGN_MAGNITUDE` no least-squares level
  is beyond max|W|: weights that fill their range, such as Keras's uniform initial
  ones, could never outgrow it. Of weights with longer tails than Gaussian ones, the
  least-squares scale is the larger one.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization.representations import (
    Representation,
    max_code,
    scale_of,
    step_size,
)
from tff_fedmpq.quantization.tracing import traced

ScaleRule = Callable[[tf.Tensor, tf.Tensor, Representation], tf.Tensor]

# `least_squares_scale` tries this many evenly spaced scales up to `max_scale` on a
# histogram of this many bins; alternating minimization refines the best of them.
_NUM_CANDIDATES = 256
_NUM_BINS = 4096
_REFINEMENTS = 3
_SMALL = 1e-12
_OF_FLAT = [tf.TensorSpec([None]), tf.TensorSpec([], tf.int32)]
# With fewer bits errors are large: at 2 bits an eighth of the weights' energy.
_MIN_WIDENED_BITS = 3


def max_scale(
    weights: tf.Tensor, bit_width: tf.Tensor, representation: Representation
) -> tf.Tensor:
    """Returns ``2 max|W|`` (Eq. 14), or 1 for all-zero weights."""
    largest = tf.reduce_max(tf.abs(weights))
    # Weights are divided by the scale: it must not be zero.
    return tf.where(largest > 0.0, 2.0 * largest, 1.0)


def least_squares_scale(
    weights: tf.Tensor, bit_width: tf.Tensor, representation: Representation
) -> tf.Tensor:
    """Returns the scale of least squared quantization error; 1 for all-zero weights.

    The best of a grid of fractions of `max_scale` is found on a histogram of the
    weights. From there, the nearest codes for a scale and the best scale for codes are
    computed in turn on the weights, which never raises the error.
    """
    scale_of_flat = _least_squares_scale_of_flat(representation)
    return scale_of_flat(tf.reshape(weights, [-1]), tf.cast(bit_width, tf.int32))


# One graph serves all layers: tracing it for each would take seconds per model.
@functools.cache
def _least_squares_scale_of_flat(representation: Representation) -> Any:
    """Returns `least_squares_scale` of weights float32[n] as a TensorFlow function."""

    @traced(_OF_FLAT)
    def scale_of_flat(weights: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        def squared_error(scale: tf.Tensor) -> tf.Tensor:
            codes = representation.quantize(weights, scale, bit_width)
            restored = representation.dequantize(codes, scale, bit_width)
            return tf.reduce_sum(tf.math.squared_difference(weights, restored))

        def best_for_codes_of(scale: tf.Tensor) -> tf.Tensor:
            codes = representation.quantize(weights, scale, bit_width)
            levels = representation.signed_levels(codes, bit_width)
            projection = tf.reduce_sum(weights * levels)
            step = tf.math.divide_no_nan(projection, tf.reduce_sum(tf.square(levels)))
            refined = scale_of(step, bit_width)
            # If all codes represent zero, no scale is best and the given one is kept.
            return tf.where(refined > 0.0, refined, scale)

        scale = _search_on_histogram(weights, bit_width, representation)
        error = squared_error(scale)
        for _ in range(_REFINEMENTS):
            refined = best_for_codes_of(scale)
            refined_error = squared_error(refined)
            is_better = refined_error < error
            scale = tf.where(is_better, refined, scale)
            error = tf.where(is_better, refined_error, error)
        # The histogram is approximate: the result is compared on the weights. For
        # all-zero weights the smallest scale would win, and could hardly learn.
        largest = max_scale(weights, bit_width, representation)
        is_better = error < squared_error(largest)
        return tf.where(is_better & tf.reduce_any(weights != 0.0), scale, largest)

    return scale_of_flat


def _search_on_histogram(
    weights: tf.Tensor, bit_width: tf.Tensor, representation: Representation
) -> tf.Tensor:
    """Returns the best of the candidate scales up to `max_scale` for binned weights."""
    largest = max_scale(weights, bit_width, representation)
    bound = largest / 2.0
    # The operation would write outside of its bins, which ends the process.
    usable = tf.reduce_all(tf.math.is_finite(weights)) & tf.math.is_finite(largest)
    binned, bound = tf.where(usable, weights, 0.0), tf.where(usable, bound, 1.0)
    counts = tf.histogram_fixed_width(binned, [-bound, bound], _NUM_BINS)
    # In units of the largest scale: bins have the centres (i + 1/2) / n - 1/2, the
    # candidates steps, a highest level, and a middle below each level but the lowest.
    fractions = np.arange(1, _NUM_CANDIDATES + 1)[:, np.newaxis] / _NUM_CANDIDATES
    highest_code, zero_point = max_code(bit_width), representation.zero_point(bit_width)

    def of_candidates(levels: tf.Tensor) -> tf.Tensor:
        return fractions * tf.cast(step_size(levels, bit_width), tf.float64)

    steps, highest = of_candidates(1.0), of_candidates(highest_code - zero_point)
    middles = of_candidates(tf.range(highest_code) + 0.5 - zero_point)
    bins_below = tf.math.ceil((middles + 0.5) * _NUM_BINS - 0.5)
    bins_below = tf.cast(tf.clip_by_value(bins_below, 0.0, _NUM_BINS), tf.int32)
    centres = (np.arange(_NUM_BINS) + 0.5) / _NUM_BINS - 0.5
    number, total = (
        tf.pad(tf.cumsum(tf.cast(counts, tf.float64) * values), [[1, 0]])
        for values in (np.ones(_NUM_BINS), centres)
    )
    # The sum over weights of (level - weight)**2 - weight**2, were all at the highest
    # level, and what each of them changes that is below a middle.
    errors = highest[:, 0] * (highest[:, 0] * number[-1] - 2.0 * total[-1])
    gained = tf.gather(total, bins_below) - middles * tf.gather(number, bins_below)
    errors += 2.0 * steps[:, 0] * tf.reduce_sum(gained, 1)
    best = tf.cast(tf.argmin(errors) + 1, tf.float32)
    return largest * best / _NUM_CANDIDATES


def gaussian_scale(
    weights: tf.Tensor, bit_width: tf.Tensor, representation: Representation
) -> tf.Tensor:
    """Returns the least-squares scale for Gaussian weights of the same mean square.

    All-zero weights give 1. The steps are for `SIGN_MAGNITUDE`; in offset binary the
    error is within 1 % of the least from 2 bits on.
    """
    largest = tf.reduce_max(tf.abs(weights))
    # Squares of small weights vanish in float32.
    unit = tf.where(largest < _SMALL, largest, 1.0)
    scaled = tf.math.divide_no_nan(weights, unit)
    root_mean_square = unit * tf.sqrt(tf.reduce_mean(tf.square(scaled)))
    step = root_mean_square * tf.gather(gaussian.STEPS, bit_width - 1)
    scale = scale_of(step, bit_width)
    return tf.where(scale > 0.0, scale, 1.0)


def widening_scale(
    weights: tf.Tensor, bit_width: tf.Tensor, representation: Representation
) -> tf.Tensor:
    """Returns the least-squares scale, from 3 bits on at least the Gaussian one."""
    least_squares = least_squares_scale(weights, bit_width, representation)
    smooth = gaussian_scale(weights, bit_width, representation)
    wide = tf.maximum(least_squares, smooth)
    return tf.where(bit_width >= _MIN_WIDENED_BITS, wide, least_squares)


def scale_of_shape(
    shape: tuple[int, ...],
    rule: ScaleRule,
    weights: tf.Tensor,
    bit_width: tf.Tensor,
    representation: Representation,
) -> tf.Tensor:
    """Returns scales, float32 of `shape`: () or, with 1 in all other axes, channels.

    The least error of a channel is searched up to 3/2 of its `max_scale`: that of a few
    weights often lies above it. Channels are not widened (`widening_scale`): a few
    weights may be far from a Gaussian's.
    """
    if not shape:
        return rule(weights, bit_width, representation)
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    last = [axis for axis in range(len(shape)) if axis not in axes]
    if rule not in (least_squares_scale, widening_scale):
        rows = tf.transpose(weights, last + axes)
        rows = tf.reshape(rows, [int(np.prod(shape)), -1])
        one = functools.partial(
            rule, bit_width=bit_width, representation=representation
        )
        return tf.reshape(tf.map_fn(one, rows), shape)
    largest = 2.0 * tf.reduce_max(tf.abs(weights), axes, keepdims=True)
    largest = tf.where(largest > 0.0, largest, 1.0)

    def errors_of(fractions: tf.Tensor) -> tf.Tensor:
        scale = tf.reshape(fractions, [-1] + [1] * len(shape)) * largest
        codes = representation.quantize(weights, scale, bit_width)
        restored = representation.dequantize(codes, scale, bit_width)
        errors = tf.math.squared_difference(weights, restored)
        return tf.reduce_sum(errors, [1 + axis for axis in axes], keepdims=True)

    count = _NUM_CANDIDATES * 3 // 2
    fractions = np.arange(1, count + 1, dtype=np.float32) / _NUM_CANDIDATES
    # As many at once as fit in some megabytes.
    parts = min(-(-weights.shape.num_elements() // 2**14), count)
    errors = [errors_of(part) for part in np.array_split(fractions, parts)]
    best = tf.argmin(tf.concat(errors, 0))
    return largest * tf.gather(fractions, best)


SCALE_RULES: dict[str, ScaleRule] = {
    "widening": widening_scale,
    "least_squares": least_squares_scale,
    "max": max_scale,
}


def get_scale_rule(identifier: str | ScaleRule) -> ScaleRule:
    """Returns the scale rule of a name, or the function itself; see `lookup`."""
    return lookup(identifier, SCALE_RULES, "scale rule")
