"""Group Lasso over the bit planes of a quantized kernel, as a Keras loss."""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, attach_code_gradient
from tff_fedmpq.quantization import group_lasso


def bit_plane_lasso(kernel: QuantizedKernel, strength: float) -> tf.Tensor:
    """Returns ``strength * sum_i ||B_i||_2`` (FedMPQ, Eq. 11), float32[].

    Its gradient reaches the codes as `group_lasso.code_gradient` says.

    Args:
      kernel: the codes whose planes are the groups.
      strength: ``lambda M_l / M``.
    """
    codes, bit_width = kernel.codes.value(), kernel.bit_width.value()
    penalty = group_lasso.penalty(kernel.representation, codes, bit_width)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return upstream * group_lasso.code_gradient(
            kernel.representation, codes, bit_width, strength
        )

    return attach_code_gradient(kernel.codes, strength * penalty, gradient)
