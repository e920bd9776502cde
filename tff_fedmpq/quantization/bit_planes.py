"""Densities of a layer's bit planes, and pruning of the top plane (FedMPQ, Eq. 13).

Planes are the binary digits of `Representation.magnitudes`; plane ``i`` has weight
``2**i``. They are never stored: a histogram of codes, uint8[...], counts their ones.

Deviations from the paper: the few weights that have the pruned bit set are saturated
(2.3 becomes 1.9) instead of losing the bit (0.3; `saturate=False`), and the step size
is kept, so that in `SIGN_MAGNITUDE` no other weight changes.

In `OFFSET_BINARY` the top plane is the sign, nearly empty if nearly all weights of a
layer are negative. Pruning then saturates the positive ones, or, with `saturate=False`,
moves all weights up by a quarter of the range.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.representations import Representation, scale_of, step_size
from tff_fedmpq.quantization.tracing import traced

# Functions of a single code are evaluated once per code value, then looked up.
EVERY_CODE = np.arange(256, dtype=np.uint8)
# DIGITS[v, i] is digit i of the integer v: float32[256, 8].
DIGITS = ((EVERY_CODE[:, None] >> np.arange(8)) & 1).astype(np.float32)


def plane_counts(
    representation: Representation, codes: tf.Tensor, bit_width: tf.Tensor
) -> tf.Tensor:
    """Returns the number of ones per plane, float32[8]; exact to ``2**24``."""
    # `tf.math.bincount` wraps this kernel in a search for the largest value, which is
    # slow for every layer in every step. One row is faster than a flat vector.
    histogram = tf.raw_ops.DenseBincount(
        input=tf.reshape(tf.cast(codes, tf.int32), [1, -1]),
        size=len(EVERY_CODE),
        weights=tf.zeros([0], tf.int32),  # Sums in float32 would end at 2**24.
        binary_output=False,
    )
    digits = digits_of_codes(representation, bit_width)
    return tf.squeeze(tf.matmul(tf.cast(histogram, tf.float32), digits), 0)


def digits_of_codes(representation: Representation, bit_width: tf.Tensor) -> tf.Tensor:
    """Returns the digit of each code value in each plane, float32[256, 8]."""
    return tf.gather(DIGITS, representation.magnitudes(EVERY_CODE, bit_width))


def plane_densities(
    representation: Representation, codes: tf.Tensor, bit_width: tf.Tensor
) -> tf.Tensor:
    """Returns the fraction of ones in each plane, 0 where none exists, float32[8]."""
    counts = plane_counts(representation, codes, bit_width)
    return counts / tf.cast(tf.size(codes), tf.float32)


def msb_density(
    representation: Representation, codes: tf.Tensor, bit_width: tf.Tensor
) -> tf.Tensor:
    """Returns the density of the top plane, float32[].

    One bit of `SIGN_MAGNITUDE` has no plane: 1 is returned, which is never prunable.
    """
    densities = plane_densities(representation, codes, bit_width)
    num_planes = representation.num_planes(bit_width)
    top = tf.gather(densities, tf.maximum(num_planes - 1, 0))
    return tf.where(num_planes > 0, top, 1.0)


def prune_msb(
    representation: Representation,
    codes: tf.Tensor,
    scale: tf.Tensor,
    bit_width: tf.Tensor,
    threshold: tf.Tensor | float,
    saturate: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns a layer without nearly empty top planes (Eq. 13), of one bit at least.

    Nearly empty is a density of at most `threshold`, the paper's epsilon, 0 to 1.
    Weights with the removed bit move to the nearest remaining level, or lose the bit,
    as in the paper (`saturate=False`). The step size is kept:
    ``s' = s (2**(b-1) - 1) / (2**b - 1)``. Returned are codes uint8[...], scale
    float32[] and bit-width int32[].
    """
    codes = tf.convert_to_tensor(codes)
    pruned, scale, bit_width = _prune_msb_of_flat(representation, saturate)(
        tf.reshape(codes, [-1]),
        tf.convert_to_tensor(scale),
        tf.convert_to_tensor(bit_width),
        tf.convert_to_tensor(threshold, tf.float32),
    )
    pruned = tf.ensure_shape(tf.reshape(pruned, tf.shape(codes)), codes.shape)
    return pruned, scale, bit_width


# One graph serves all layers: tracing it for each would take seconds per model.
@functools.cache
def _prune_msb_of_flat(representation: Representation, saturate: bool) -> Any:
    """Returns `prune_msb` of codes uint8[n] as a TensorFlow function."""
    remove = representation.saturate if saturate else representation.drop_top_plane
    codes_spec, scalar = tf.TensorSpec([None], tf.uint8), tf.TensorSpec([])
    signature = [codes_spec, scalar, tf.TensorSpec([], tf.int32), scalar]

    @traced(signature)
    def prune_flat(codes, scale, bit_width, threshold):
        step = step_size(scale, bit_width)

        def is_prunable(codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
            density = msb_density(representation, codes, bit_width)
            return (bit_width > 1) & (density <= threshold)

        def prune(codes: tf.Tensor, bit_width: tf.Tensor):
            return remove(codes, bit_width), bit_width - 1

        pruned, width = tf.while_loop(is_prunable, prune, [codes, bit_width])
        # A layer that is not pruned keeps its exact scale.
        pruned_scale = tf.where(width < bit_width, scale_of(step, width), scale)
        return pruned, pruned_scale, width

    return prune_flat
