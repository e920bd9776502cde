"""Group Lasso over bit planes (FedMPQ, Eq. 11-12).

The penalty of a layer is ``sum_i ||B_i||_2``. Each plane is a group: a plane of little
use to the task is emptied as a whole, until `bit_planes.prune_msb` removes it. The
paper adds the penalty times ``lambda M_l / M`` (here `lasso_strength`) to the task loss
and differentiates by the planes, ``B_i / ||B_i||_2``.

Codes are trained here without planes in memory, so the gradient is converted to one on
codes. One integer step of plane ``i`` is worth ``2**i`` code units, while a gradient
``g`` on the code moves it by ``K g`` with ``K = (4**b - 1) / 3`` (`code_updates`). To
first order, the equivalent gradient on codes is::

    sign * lambda M_l / M * sum_i 2**i B_i / ||B_i||_2 / K

It depends on the code alone and is computed as a table of 256 entries.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.quantization import bit_planes
from tff_fedmpq.quantization.code_updates import step_gain
from tff_fedmpq.quantization.representations import MAX_BIT_WIDTH, Representation

_PLANE_WEIGHTS = [2.0**i for i in range(MAX_BIT_WIDTH)]


def penalty(
    representation: Representation, codes: tf.Tensor, bit_width: tf.Tensor
) -> tf.Tensor:
    """Returns ``sum_i ||B_i||_2`` over the planes of codes uint8[...], float32[]."""
    counts = bit_planes.plane_counts(representation, codes, bit_width)
    return tf.reduce_sum(tf.sqrt(counts))


def code_gradient(
    representation: Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
    lasso_strength: tf.Tensor | float,
) -> tf.Tensor:
    """Returns the penalty's gradient on codes uint8[...] (module docstring).

    It is in loss per code unit, float32[...]; empty planes contribute nothing.
    `lasso_strength` is the layer's coefficient, ``lambda M_l / M``.
    """
    digits = bit_planes.digits_of_codes(representation, bit_width)
    counts = bit_planes.plane_counts(representation, codes, bit_width)
    pulls = tf.math.divide_no_nan(_PLANE_WEIGHTS, tf.sqrt(counts))
    signs = representation.signs(bit_planes.EVERY_CODE, bit_width)
    pulls *= lasso_strength / step_gain(bit_width)
    table = signs * tf.linalg.matvec(digits, pulls)
    # Faster than `tf.gather`, which copies slices.
    return tf.gather_nd(table, tf.cast(codes, tf.int32)[..., tf.newaxis])
