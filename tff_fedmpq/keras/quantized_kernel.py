"""The quantized weights of one layer: codes, scale and bit-width as variables.

There is no float copy of the weights. `codes` is a ``uint8`` variable, and Keras counts
it as trainable: reading the weights gives the tape a straight-through gradient for it
(FedMPQ, Eq. 5)::

    W = delta * (u - z),    dL/du = delta * dL/dW

so that ``tape.gradient(loss, model.trainable_variables)`` holds, at the place of the
codes, a float32 tensor of their shape, which `IntegerSGD` turns into integer steps.
"""

from __future__ import annotations

import random
from typing import Callable

import tensorflow as tf

from tff_fedmpq.quantization import representation as representation_lib
from tff_fedmpq.quantization.scales import ScaleRule, get_scale_rule


class QuantizedKernel:
    """Integer codes of a kernel, with what is needed to read them as weights.

    Attributes:
      codes: uint8 variable of the kernel's shape, trainable.
      scale: float32[] variable.
      bit_width: int32[] variable, 1 to 8.
      representation: what the codes stand for.
    """

    def __init__(
        self,
        codes: tf.Variable,
        scale: tf.Variable,
        bit_width: tf.Variable,
        representation: representation_lib.Representation,
        scale_rule: ScaleRule,
    ):
        self.codes = codes
        self.scale = scale
        self.bit_width = bit_width
        self.representation = representation
        self._scale_rule = scale_rule
        # An optimizer is given variables, not layers; by this it finds the way back.
        codes.quantized_kernel = self

    @property
    def size(self) -> int:
        """The number of weights."""
        return self.codes.shape.num_elements()

    def step_size(self) -> tf.Tensor:
        """Returns the weight of one code unit, ``delta``, float32[]."""
        return representation_lib.step_size(self.scale, self.bit_width)

    def signed_levels(self) -> tf.Tensor:
        """Returns the weights in code units, ``u - z``, float32, as a kernel."""
        return self.representation.signed_levels(self.codes, self.bit_width)

    def step_and_levels(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `step_size` and `signed_levels`, of which the weights are a product.

        Each variable is read once: a training step is full of small operations.
        """
        bit_width = self.bit_width.value()
        step = representation_lib.step_size(self.scale.value(), bit_width)
        return step, self.representation.signed_levels(self.codes.value(), bit_width)

    def value(self) -> tf.Tensor:
        """Returns the weights, float32, with the straight-through gradient."""
        step, levels = self.step_and_levels()
        return attach_code_gradient(
            self.codes, step * levels, lambda upstream: step * upstream
        )

    def quantize(self, weights: tf.Tensor) -> None:
        """Sets scale and codes to describe float weights at the present bit-width.

        Args:
          weights: float32 of the kernel's shape.
        """
        weights = tf.convert_to_tensor(weights, tf.float32)
        scale = self._scale_rule(weights, self.bit_width, self.representation)
        codes = self.representation.quantize(weights, scale, self.bit_width)
        self.scale.assign(scale)
        self.codes.assign(codes)

    def set_bit_width(self, bit_width: int) -> None:
        """Requantizes the present weights to another bit-width.

        In the middle of training: an optimizer's momentum is in the old code units;
        `IntegerSGD.reset` forgets it.
        """
        bit_width = representation_lib.check_bit_width(bit_width)
        weights = self.value()
        self.bit_width.assign(bit_width)
        self.quantize(weights)


def attach_code_gradient(
    codes: tf.Variable,
    value: tf.Tensor,
    gradient: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Returns `value` with a gradient for the integer variable `codes`.

    TensorFlow does not differentiate integer tensors, but the tape follows the handle
    of a variable whatever its dtype.

    Args:
      codes: the variable that the gradient is for.
      value: float32[...], computed from the variable's value.
      gradient: from the gradient of `value` to that of `codes`, of the codes' shape.
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
    initializer: tf.keras.initializers.Initializer,
    bit_width: int,
    representation: str | representation_lib.Representation,
    scale_rule: str | ScaleRule,
) -> QuantizedKernel:
    """Adds the three variables of a quantized kernel to a layer being built.

    Args:
      add_weight: `tf.keras.layers.Layer.add_weight` of the layer that owns them.
      name: prefix of the variables' names.
      shape: the kernel's shape.
      initializer: a Keras initializer, of the float weights that are quantized first.
        It is called more than once: a random one has to have a `seed`, or None for it.
      bit_width: 1 to 8.
      representation: what the codes stand for.
      scale_rule: how the scale is chosen.
    """
    representation = representation_lib.get_representation(representation)
    scale_rule = get_scale_rule(scale_rule)

    initializer = _with_seed(initializer)

    # Variables may be initialised outside of the graph under construction, so each
    # initial value is computed on its own; a seeded initializer repeats itself.
    def initial_weights() -> tuple[tf.Tensor, tf.Tensor]:
        weights = initializer(shape, tf.float32)
        return weights, scale_rule(weights, tf.constant(bit_width), representation)

    def initial_scale(shape=None, dtype=None) -> tf.Tensor:
        return initial_weights()[1]

    def initial_codes(shape=None, dtype=None) -> tf.Tensor:
        return representation.quantize(*initial_weights(), tf.constant(bit_width))

    codes = add_weight(
        name=f"{name}_codes", shape=shape, dtype=tf.uint8, initializer=initial_codes
    )
    scale = add_weight(
        name=f"{name}_scale",
        shape=(),
        dtype=tf.float32,
        initializer=initial_scale,
        trainable=False,
        experimental_autocast=False,  # A scale of bfloat16 would move every weight.
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

    A random one without a seed draws it as Keras does: from Python's generator, which
    `tf.keras.utils.set_random_seed` seeds.
    """
    if not hasattr(initializer, "get_config"):
        raise TypeError(
            "The initializer of a quantized kernel is called for its scale and for its "
            "codes, so it has to be a Keras initializer, whose seed makes them agree; "
            f"found {initializer!r}."
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
