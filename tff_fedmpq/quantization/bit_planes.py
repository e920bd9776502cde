"""Bit planes of a layer: their density, and pruning of the top one (FedMPQ, Eq. 13).

Planes are the binary digits of `Representation.magnitudes`, numbered by their weight:
plane ``i`` has weight ``2**i``. No plane is ever materialised: how many ones each plane
has follows from how often each magnitude occurs.

Deviations from the paper, both selectable away: the few weights that held a pruned bit
are saturated instead of losing it (a weight of 2.3 becomes 1.9, not 0.3), and the step
size is kept, so that no other weight moves.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization import representation as representation_lib

MAX_PLANES = representation_lib.MAX_BIT_WIDTH
_NUM_MAGNITUDES = 2**MAX_PLANES

# DIGITS[v, i] is digit i of the integer v: float32[256, 8].
DIGITS = ((np.arange(_NUM_MAGNITUDES)[:, None] >> np.arange(MAX_PLANES)) & 1).astype(
    np.float32
)


def plane_counts(magnitudes: tf.Tensor) -> tf.Tensor:
    """Returns the number of ones in each plane.

    Args:
      magnitudes: int32[...], from 0 to 255.

    Returns:
      float32[8]; index ``i`` is the plane of weight ``2**i``.
    """
    histogram = tf.math.bincount(
        tf.reshape(magnitudes, [-1]),
        minlength=_NUM_MAGNITUDES,
        maxlength=_NUM_MAGNITUDES,
    )
    return tf.linalg.matvec(DIGITS, tf.cast(histogram, tf.float32), transpose_a=True)


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
    counts = plane_counts(representation.magnitudes(codes, bit_width))
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
