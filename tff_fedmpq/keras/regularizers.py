"""Group Lasso over the bit planes of a quantized kernel, as a Keras loss."""

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, attach_code_gradient
from tff_fedmpq.quantization import group_lasso


def bit_plane_lasso(kernel: QuantizedKernel, lasso_strength: float) -> tf.Tensor:
    """Returns ``lasso_strength * sum_i ||B_i||_2`` (FedMPQ, Eq. 11), float32[].

    The strength is ``lambda M_l / M``; see `group_lasso.code_gradient`.
    """
    layer = kernel.representation, kernel.codes.value(), kernel.bit_width.value()
    penalty = group_lasso.penalty(*layer)

    gradient = group_lasso.code_gradient(*layer, lasso_strength)
    return attach_code_gradient(kernel.codes, lasso_strength * penalty, gradient)
