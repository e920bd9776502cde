"""Choice of the representation with the least error for a layer's weights.

Offset binary has a zero level: it is chosen for sparse weights and outliers, if its
squared error is below four fifths of the other's. For a few weights of another kind
that may happen by chance, and then another model's codes would not fit the layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras import inspection
from tff_fedmpq.keras.quantized_kernel import check_weights
from tff_fedmpq.quantization import representations, scales

_LESS_ERROR = 0.8
_LARGEST_MEDIAN = 1 / 3  # Root mean squares; Gaussian weights have 0.67.


def representation_of(
    layer: tf.keras.layers.Layer, bits: int, options: dict[str, Any]
) -> str:
    """Returns the name of the representation with a layer's least squared error."""
    rule, bit_width = scales.get_scale_rule(options["scale_rule"]), tf.constant(bits)
    kernels = []
    for kernel, name, form in inspection.kernels_and_forms(layer):
        if kernel.dtype.is_floating:
            weights = tf.cast(kernel, tf.float32)
            check_weights(weights, layer.name)
            shape = form.scale_shape(name, tuple(kernel.shape), options["per_channel"])
            kernels.append((weights, shape))

    def error_of(representation: representations.Representation) -> float:
        total = 0.0
        for weights, shape in kernels:
            arguments = weights, bit_width, representation
            scale = scales.scale_of_shape(shape, rule, *arguments)
            codes = representation.quantize(weights, scale, bit_width)
            restored = representation.dequantize(codes, scale, bit_width)
            total += float(tf.reduce_sum(tf.math.squared_difference(weights, restored)))
        return total

    default, other = representations.SIGN_MAGNITUDE, representations.OFFSET_BINARY
    if not any(_is_concentrated(weights) for weights, _ in kernels):
        return default.name
    is_better = error_of(other) < _LESS_ERROR * error_of(default)
    return other.name if is_better else default.name


def _is_concentrated(weights: tf.Tensor) -> bool:
    """Returns whether most weights are small beside the others."""
    sizes = np.abs(weights.numpy().astype(np.float64))
    sizes[sizes < np.finfo(np.float32).tiny] = 0.0  # As TensorFlow computes.
    if not sizes.size:
        return False
    root_mean_square = np.sqrt(np.mean(sizes**2))
    return bool(np.median(sizes) <= _LARGEST_MEDIAN * root_mean_square)
