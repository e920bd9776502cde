"""Group Lasso over bit planes (FedMPQ, Eq. 11-12).

The penalty of a layer is ``sum_i ||B_i||_2``: each plane is a group, and a plane that
does little for the task is emptied as a whole, until `bit_planes.prune_msb` removes it.
The paper adds ``lambda M_l / M`` times it to the task loss and differentiates by the
planes, ``B_i / ||B_i||_2``.

Codes are trained here without planes in memory, so that gradient is brought to the
codes. One plane's integer step is worth ``2**i`` code units, so the gradients of all
planes move a code by ``sum_i 2**i * B_i / ||B_i||_2``, while a gradient ``g`` on the
code itself moves it by ``K g`` with ``K = (4**b - 1) / 3`` (see `integer_update`).
Hence the gradient on codes of the same effect, to first order::

    sign * lambda M_l / M * sum_i 2**i B_i / ||B_i||_2 / K

It depends on the code alone, so it is a table of 256 entries.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.quantization import bit_planes
from tff_fedmpq.quantization import representation as representation_lib
from tff_fedmpq.quantization.integer_update import step_gain

_PLANE_WEIGHTS = [float(2**i) for i in range(bit_planes.MAX_PLANES)]


def penalty(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
) -> tf.Tensor:
    """Returns ``sum_i ||B_i||_2`` over the planes of a layer, float32[].

    Args:
      representation: says what the planes of the codes are.
      codes: uint8[...].
      bit_width: int32[].
    """
    counts = bit_planes.plane_counts(representation, codes, bit_width)
    return tf.reduce_sum(tf.sqrt(counts))


def code_gradient(
    representation: representation_lib.Representation,
    codes: tf.Tensor,
    bit_width: tf.Tensor,
    strength: tf.Tensor | float,
) -> tf.Tensor:
    """Returns the penalty's gradient on the codes (module docstring).

    Args:
      representation: says what the planes of the codes are.
      codes: uint8[...].
      bit_width: int32[].
      strength: ``lambda M_l / M``.

    Returns:
      float32[...], in loss per code unit. An empty plane pulls nothing.
    """
    digits = bit_planes.digits_of_codes(representation, bit_width)
    counts = bit_planes.plane_counts(representation, codes, bit_width)
    pulls = tf.math.divide_no_nan(_PLANE_WEIGHTS, tf.sqrt(counts))
    signs = representation.signs(bit_planes.EVERY_CODE, bit_width)
    pulls *= strength / step_gain(bit_width)
    table = signs * tf.linalg.matvec(digits, pulls)
    # Quicker than `tf.gather`, which copies slices.
    return tf.gather_nd(table, tf.cast(codes, tf.int32)[..., tf.newaxis])
