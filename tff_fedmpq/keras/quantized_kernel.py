"""Quantized weights of one layer: codes, scale and bit-width as variables.

There is no float copy of the weights. `codes` is a trainable uint8 variable, which gets
a straight-through gradient, float32, from reading the weights (FedMPQ, Eq. 5)::

    W = delta * (u - z),    dL/du = delta * dL/dW

`IntegerSGD` makes integer steps of it.
"""

import dataclasses
from typing import Callable

import tensorflow as tf

from tff_fedmpq.quantization import representations
from tff_fedmpq.quantization.scales import ScaleRule


@dataclasses.dataclass(eq=False)
class QuantizedKernel:
    """Integer codes of a kernel, and how to read them as weights.

    Attributes:
      codes: Trainable variable, uint8 of the kernel's shape.
      scale: Variable, float32[].
      bit_width: Variable, int32[], 1 to 8.
      representation: Representation of weights by the codes.
      scale_rule: Choice of the scale for new weights.
    """

    codes: tf.Variable
    scale: tf.Variable
    bit_width: tf.Variable
    representation: representations.Representation
    scale_rule: ScaleRule

    def __post_init__(self) -> None:
        # Optimizers receive variables, not layers, and find the kernel by this.
        self.codes.quantized_kernel = self

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.codes.shape.num_elements()

    def step_size(self) -> tf.Tensor:
        """Returns the weight per code unit, ``delta``, float32[]."""
        return representations.step_size(self.scale, self.bit_width)

    def signed_levels(self) -> tf.Tensor:
        """Returns the weights in code units, ``u - z``, float32."""
        return self.representation.signed_levels(self.codes, self.bit_width)

    def step_and_levels(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `step_size` and `signed_levels`, whose product are the weights."""
        # Reads each variable once, to save small operations in the training step.
        bit_width = self.bit_width.value()
        step = representations.step_size(self.scale.value(), bit_width)
        return step, self.representation.signed_levels(self.codes.value(), bit_width)

    def value(self) -> tf.Tensor:
        """Returns the weights, float32, with the straight-through gradient."""
        step, levels = self.step_and_levels()
        return attach_code_gradient(self.codes, step * levels, lambda dw: step * dw)

    def quantize(self, weights: tf.Tensor) -> None:
        """Sets scale and codes to weights, float32 of the kernel's shape."""
        weights = tf.convert_to_tensor(weights, tf.float32)
        scale = self.scale_rule(weights, self.bit_width, self.representation)
        codes = self.representation.quantize(weights, scale, self.bit_width)
        self.scale.assign(scale)
        self.codes.assign(codes)

    def set_bit_width(self, bit_width: int) -> None:
        """Requantizes the weights to 1 to 8 bits; momentum stays in old code units."""
        weights = self.value()
        self.bit_width.assign(representations.check_bit_width(bit_width))
        self.quantize(weights)


def attach_code_gradient(
    codes: tf.Variable, value: tf.Tensor, gradient: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Returns `value`, float32[...], with a gradient for the integer variable `codes`.

    `gradient` maps the gradient of `value` to that of `codes`. TensorFlow does not
    differentiate integer tensors, but the tape records the handle of any variable.
    """
    with_gradient = tf.custom_gradient(lambda handle: (tf.identity(value), gradient))
    return with_gradient(codes.handle)


def quantized_kernels(model: tf.keras.Model) -> list[QuantizedKernel]:
    """Returns the quantized kernels of a model, in the order of its variables."""
    return [v.quantized_kernel for v in model.weights if hasattr(v, "quantized_kernel")]
