"""Quantized weights of one layer: codes, scale and bit-width as variables.

There is no float copy of the weights. `codes` is a trainable uint8 variable, which gets
a straight-through gradient from reading the weights (FedMPQ, Eq. 5)::

    W = delta * (u - z),    dL/du = delta * dL/dW

``tape.gradient(loss, model.trainable_variables)`` has a float32 tensor in the place of
the codes, from which `IntegerSGD` makes integer steps.
"""

from __future__ import annotations

import random
from typing import Callable

import tensorflow as tf

from tff_fedmpq.quantization import representations
from tff_fedmpq.quantization.scales import ScaleRule, get_scale_rule


class QuantizedKernel:
    """Integer codes of a kernel, and how to read them as weights.

    Attributes:
      codes: Trainable variable, uint8 of the kernel's shape.
      scale: Variable, float32[].
      bit_width: Variable, int32[], 1 to 8.
      representation: Representation of weights by the codes.
    """

    def __init__(
        self,
        codes: tf.Variable,
        scale: tf.Variable,
        bit_width: tf.Variable,
        representation: representations.Representation,
        scale_rule: ScaleRule,
    ):
        self.codes = codes
        self.scale = scale
        self.bit_width = bit_width
        self.representation = representation
        self._scale_rule = scale_rule
        # Optimizers receive variables, not layers, and find the kernel by this.
        codes.quantized_kernel = self

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
        """Returns `step_size` and `signed_levels`, whose product are the weights.

        Each variable is read once, to save small operations in the training step.
        """
        bit_width = self.bit_width.value()
        step = representations.step_size(self.scale.value(), bit_width)
        return step, self.representation.signed_levels(self.codes.value(), bit_width)

    def value(self) -> tf.Tensor:
        """Returns the weights, float32, with the straight-through gradient."""
        step, levels = self.step_and_levels()
        return attach_code_gradient(
            self.codes, step * levels, lambda upstream: step * upstream
        )

    def quantize(self, weights: tf.Tensor) -> None:
        """Quantizes weights, float32 of the kernel's shape, at the present bit-width.

        Scale and codes are set.
        """
        weights = tf.convert_to_tensor(weights, tf.float32)
        scale = self._scale_rule(weights, self.bit_width, self.representation)
        codes = self.representation.quantize(weights, scale, self.bit_width)
        self.scale.assign(scale)
        self.codes.assign(codes)

    def set_bit_width(self, bit_width: int) -> None:
        """Requantizes the present weights to another bit-width, 1 to 8.

        An optimizer's momentum stays in the old code units; `IntegerSGD.reset` clears
        it.
        """
        bit_width = representations.check_bit_width(bit_width)
        weights = self.value()
        self.bit_width.assign(bit_width)
        self.quantize(weights)


def attach_code_gradient(
    codes: tf.Variable,
    value: tf.Tensor,
    gradient: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Returns `value` with a gradient for the integer variable `codes`.

    TensorFlow does not differentiate integer tensors, but the tape records the handle
    of a variable of any dtype.

    Args:
      codes: Variable that receives the gradient.
      value: Value computed from the variable, float32[...].
      gradient: Function from the gradient of `value` to that of `codes`.
    """

    @tf.custom_gradient
    def with_gradient(handle: tf.Tensor):
        del handle  # Only ties the result to the variable.
        return tf.identity(value), gradient

    return with_gradient(codes.handle)


def add_quantized_kernel(
    add_weight: Callable[..., tf.Variable],
    name: str,
    shape: tuple[int, ...],
    initializer: tf.keras.initializers.Initializer | None,
    bit_width: int,
    representation: str | representations.Representation,
    scale_rule: str | ScaleRule,
) -> QuantizedKernel:
    """Adds the three variables of a quantized kernel to a layer being built.

    Args:
      add_weight: Method `tf.keras.layers.Layer.add_weight` of the owning layer.
      name: Prefix of the variables' names.
      shape: Shape of the kernel.
      initializer: Keras initializer of the float weights that are quantized first. It
        is called twice, so a random one needs a `seed` argument, which may be None.
        Without initializer, codes are 0 and the scale is 1 until they are assigned.
      bit_width: Initial bit-width, 1 to 8.
      representation: Representation, or its name.
      scale_rule: Scale rule, or its name.

    Raises:
      TypeError: If the initializer is not a Keras initializer.
    """
    representation = representations.get_representation(representation)
    scale_rule = get_scale_rule(scale_rule)
    if initializer is not None:
        initializer = _with_seed(initializer)

    # Variables may be initialized outside of the graph under construction, so each
    # initial value is computed separately; a seeded initializer repeats its values.
    def initial_weights() -> tuple[tf.Tensor, tf.Tensor]:
        weights = initializer(shape, tf.float32)
        return weights, scale_rule(weights, tf.constant(bit_width), representation)

    def initial_scale(shape=None, dtype=None) -> tf.Tensor:
        return initial_weights()[1]

    def initial_codes(shape=None, dtype=None) -> tf.Tensor:
        return representation.quantize(*initial_weights(), tf.constant(bit_width))

    codes = add_weight(
        name=f"{name}_codes",
        shape=shape,
        dtype=tf.uint8,
        initializer="zeros" if initializer is None else initial_codes,
    )
    scale = add_weight(
        name=f"{name}_scale",
        shape=(),
        dtype=tf.float32,
        initializer="ones" if initializer is None else initial_scale,
        trainable=False,
        experimental_autocast=False,  # A bfloat16 scale would change every weight.
    )
    bits = add_weight(
        name=f"{name}_bit_width",
        shape=(),
        dtype=tf.int32,
        initializer=tf.keras.initializers.Constant(bit_width),
        trainable=False,
    )
    return QuantizedKernel(codes, scale, bits, representation, scale_rule)


def _with_seed(
    initializer: tf.keras.initializers.Initializer,
) -> tf.keras.initializers.Initializer:
    """Returns an initializer that gives the same values at each call.

    A missing seed is drawn as in Keras, from Python's generator, which
    `tf.keras.utils.set_random_seed` seeds.
    """
    if not hasattr(initializer, "get_config"):
        raise TypeError(
            "The initializer of a quantized kernel is called for its scale and for its "
            "codes; only a Keras initializer has a seed that makes them agree, found "
            f"{initializer!r}."
        )
    config = initializer.get_config()
    if config.get("seed", 0) is not None:
        return initializer
    return type(initializer).from_config({**config, "seed": random.getrandbits(31)})


def quantized_kernels(model: tf.keras.Model) -> list[QuantizedKernel]:
    """Returns the quantized kernels of a model, in the order of its variables."""
    return [
        variable.quantized_kernel
        for variable in model.weights
        if hasattr(variable, "quantized_kernel")
    ]
