"""Bit planes of a layer: their density, and pruning of the top one (FedMPQ, Eq. 13).

Planes are the binary digits of `Representation.magnitudes`, numbered by their weight:
plane ``i`` has weight ``2**i``. No plane is ever materialised: how many ones each plane
has follows from how often each magnitude occurs.

Deviations from the paper: the few weights that held a pruned bit are saturated instead
of losing it (a weight of 2.3 becomes 1.9, not 0.3; `saturate=False` drops the bit), and
the step size is always kept, so that in `SIGN_MAGNITUDE` no other weight moves.

In `OFFSET_BINARY` the top plane is the sign: it is nearly empty where nearly all
weights are negative, which those of a small layer can be. Pruned, these are saturated,
or, with `saturate=False`, all moved up by a quarter of the range.
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization import representation as representation_lib

MAX_PLANES = representation_lib.MAX_BIT_WIDTH
NUM_CODES = 2**MAX_PLANES

# DIGITS[v, i] is digit i of the integer v: float32[256, 8].
DIGITS = ((np.arange(NUM_CODES)[:, None] >> np.arange(MAX_PLANES)) & 1).astype(
    np.float32
)
# A function of codes alone is computed once for each of them, then looked up.
EVERY_CODE = np.arange(NUM_CODES, dtype=np.uint8)


def plane_counts(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
) -> tf.Tensor:
    """Returns the number of ones in each plane.

    Args:
      representation: says what the planes of the codes are.
      codes: uint8[...].
      bit_width: int32[].

    Returns:
      float32[8]; index ``i`` is the plane of weight ``2**i``. Of equal codes, no more
      than ``2**24`` are counted.
    """
    # Not `tf.math.bincount`: around the same kernel it looks for the largest value, and
    # this runs for every layer in every step. One row is quicker than a flat vector.
    histogram = tf.raw_ops.DenseBincount(
        input=tf.reshape(tf.cast(codes, tf.int32), [1, -1]),
        size=NUM_CODES,
        weights=tf.zeros([0], tf.float32),
        binary_output=False,
    )
    digits = digits_of_codes(representation, bit_width)
    return tf.squeeze(tf.matmul(histogram, digits), 0)


def digits_of_codes(
    representation: representation_lib.Representation, bit_width: tf.Tensor
) -> tf.Tensor:
    """Returns the digit of each code in each plane, float32[256, 8] of 0 and 1."""
    return tf.gather(DIGITS, representation.magnitudes(EVERY_CODE, bit_width))


def plane_densities(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
) -> tf.Tensor:
    """Returns the fraction of ones in each plane.

    Args:
      representation: says what the planes of the codes are.
      codes: uint8[...].
      bit_width: int32[].

    Returns:
      float32[8]; zero for planes that do not exist.
    """
    counts = plane_counts(representation, codes, bit_width)
    return counts / tf.cast(tf.size(codes), tf.float32)


def top_plane_density(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
) -> tf.Tensor:
    """Returns the density of the top plane, float32[].

    It is 1 where there is no plane (one bit of `SIGN_MAGNITUDE` is all sign), so that
    nothing takes such a layer for prunable.
    """
    densities = plane_densities(representation, codes, bit_width)
    num_planes = representation.num_planes(bit_width)
    top = tf.gather(densities, tf.maximum(num_planes - 1, 0))
    return tf.where(num_planes > 0, top, 1.0)


def prune_msb(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    scale: tf.Tensor,
    bit_width: tf.Tensor,
    threshold: tf.Tensor | float,
    saturate: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Takes away top planes as long as they are nearly empty (Eq. 13).

    While there is more than one bit and the top plane's density is at most the
    threshold (the paper's epsilon), the layer loses that plane. The step size stays:
    ``s' = s (2**(b-1) - 1) / (2**b - 1)``.

    Args:
      representation: says what the planes of the codes are.
      codes: uint8[...].
      scale: float32[].
      bit_width: int32[].
      threshold: largest density that is pruned, from 0 to 1.
      saturate: whether weights that held the bit go to the nearest level left (the
        default), or simply lose it (the paper's words).

    Returns:
      The pruned layer: codes uint8[...], scale float32[], bit_width int32[].
    """
    # One graph for all layers: traced for each of them, a network takes seconds.
    codes = tf.convert_to_tensor(codes)
    pruned, scale, bit_width = _prune_msb_of_flat(
        representation,
        tf.reshape(codes, [-1]),
        tf.convert_to_tensor(scale),
        tf.convert_to_tensor(bit_width),
        tf.convert_to_tensor(threshold, tf.float32),
        saturate,
    )
    pruned = tf.ensure_shape(tf.reshape(pruned, tf.shape(codes)), codes.shape)
    return pruned, scale, bit_width


@functools.partial(tf.function, reduce_retracing=True)
def _prune_msb_of_flat(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    scale: tf.Tensor,
    bit_width: tf.Tensor,
    threshold: tf.Tensor,
    saturate: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `prune_msb`, for codes uint8[n]."""
    step = representation_lib.step_size(scale, bit_width)
    remove_plane = (
        representation.saturate if saturate else representation.drop_top_plane
    )

    def is_prunable(codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        density = top_plane_density(representation, codes, bit_width)
        return tf.logical_and(bit_width > 1, density <= threshold)

    def prune(codes: tf.Tensor, bit_width: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return remove_plane(codes, bit_width), bit_width - 1

    pruned, width = tf.while_loop(is_prunable, prune, [codes, bit_width])
    # An untouched layer keeps its scale to the last bit.
    pruned_scale = tf.where(
        width < bit_width, representation_lib.scale_of(step, width), scale
    )
    return pruned, pruned_scale, width
