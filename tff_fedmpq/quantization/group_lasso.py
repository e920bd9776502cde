"""Group Lasso over bit planes (FedMPQ, Eq. 11-12).

The penalty of a layer is ``sum_i ||B_i||_2``. Each plane is a group: a plane of little
use to the task is emptied as a whole, until `bit_planes.prune_msb` removes it. The
paper adds the penalty times ``lambda M_l / M`` (here `lasso_strength`) to the task loss
and differentiates by the planes, ``B_i / ||B_i||_2``.

Codes are trained here without planes in memory, so the gradient is converted to one on
codes. One integer step of plane ``i`` is worth ``2**i`` code units, so the gradients of
all planes move a code by ``sum_i 2**i B_i / ||B_i||_2``, while a gradient ``g`` on the
code moves it by ``K g`` with ``K = (4**b - 1) / 3`` (`code_updates`). To first order,
the equivalent gradient on codes is::

    sign * lambda M_l / M * sum_i 2**i B_i / ||B_i||_2 / K

It depends on the code alone and is computed as a table of 256 entries.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.quantization import bit_planes
from tff_fedmpq.quantization.code_updates import step_gain
from tff_fedmpq.quantization.representations import Representation

_PLANE_WEIGHTS = [float(2**i) for i in range(bit_planes.MAX_PLANES)]


def penalty(
    representation: Representation, codes: tf.Tensor, bit_width: tf.Tensor
) -> tf.Tensor:
    """Returns ``sum_i ||B_i||_2`` over the planes of a layer, float32[].

    Args:
      representation: Representation that defines the planes.
      codes: Codes, uint8[...].
      bit_width: Bit-width, int32[].
    """
    counts = bit_planes.plane_counts(representation, codes, bit_width)
    return tf.reduce_sum(tf.sqrt(counts))


def code_gradient(
    representation: Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
    lasso_strength: tf.Tensor | float,
) -> tf.Tensor:
    """Returns the penalty's gradient on the codes (module docstring).

    Args:
      representation: Representation that defines the planes.
      codes: Codes, uint8[...].
      bit_width: Bit-width, int32[].
      lasso_strength: Coefficient of the layer, ``lambda M_l / M``.

    Returns:
      Loss per code unit, float32[...]. Empty planes contribute nothing.
    """
    digits = bit_planes.digits_of_codes(representation, bit_width)
    counts = bit_planes.plane_counts(representation, codes, bit_width)
    pulls = tf.math.divide_no_nan(_PLANE_WEIGHTS, tf.sqrt(counts))
    signs = representation.signs(bit_planes.EVERY_CODE, bit_width)
    pulls *= lasso_strength / step_gain(bit_width)
    table = signs * tf.linalg.matvec(digits, pulls)
    # Faster than `tf.gather`, which copies slices.
    return tf.gather_nd(table, tf.cast(codes, tf.int32)[..., tf.newaxis])
