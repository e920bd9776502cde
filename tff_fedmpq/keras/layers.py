"""Keras layers whose weights are integer codes of b bits, activations of k bits.

`QuantConv2D`, `QuantDense` and `QuantDepthwiseConv2D` are the stock layers of those
names, computing the same function of their dequantized kernel, with more arguments:

* ``bit_width``: bits per weight at the start, 1 to 8 (training may change it). None
  keeps a float kernel; the layer is then the stock layer.
* ``activation_bits``: bits of the layer's ReLU output, 1 to 8, which is clipped to
  [0, 6] then; None leaves it float.
* ``representation``, ``scale_rule``: what codes stand for and how scales are chosen
  (names in `tff_fedmpq.quantization`).
* ``lasso``: strength of the group Lasso over the kernel's bit planes (Eq. 11).

`QuantReLU` is a ReLU of k bits as a layer of its own.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, add_quantized_kernel
from tff_fedmpq.keras.regularizers import bit_plane_lasso
from tff_fedmpq.quantization import activations, scales
from tff_fedmpq.quantization import representation as representation_lib

_PACKAGE = "tff_fedmpq"


# The clip at six of a quantized ReLU makes a ReLU6 of each.
RELU_FUNCTIONS = (tf.keras.activations.relu, tf.nn.relu, tf.nn.relu6)


def check_options(
    bit_width: int | None,
    activation_bits: int | None,
    representation: str | representation_lib.Representation,
    scale_rule: str | scales.ScaleRule,
    lasso: float,
) -> None:
    """Checks the arguments that quantized layers have beside the stock ones.

    Raises:
      ValueError: if one is out of range, or there is no such name.
    """
    if bit_width is not None:
        representation_lib.check_bit_width(bit_width)
    if activation_bits is not None:
        representation_lib.check_bit_width(activation_bits, "activation_bits")
    representation_lib.get_representation(representation)
    scales.get_scale_rule(scale_rule)
    if not lasso >= 0:
        raise ValueError(f"lasso has to be 0 or more, found {lasso!r}.")


def _regularize(
    regularizer: Callable[[tf.Tensor], tf.Tensor], kernel: QuantizedKernel
) -> tf.Tensor:
    return regularizer(kernel.value())


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class _ReLUOfBits:
    """A quantized ReLU as the activation function of a layer."""

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return activations.quantized_relu(x, self.bits)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


class _KernelView:
    """The attribute under which a stock layer keeps and reads its kernel.

    What the stock layer stores there is what `add_weight` gave it. Reading it, a
    quantized kernel shows as the float weights that its codes stand for.
    """

    def __get__(self, layer: Any, owner: type | None = None):
        if layer is None:
            return self
        if "_stored_kernel" not in layer.__dict__:
            raise AttributeError(f"{layer.name} has no kernel before it is built.")
        stored = layer.__dict__["_stored_kernel"]
        if isinstance(stored, QuantizedKernel):
            return tf.cast(stored.value(), layer.compute_dtype)
        return stored

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__["_stored_kernel"] = value


class _QuantizedLayer(tf.keras.layers.Layer):
    """Mixin, before a stock layer with one kernel: the arguments and the variables."""

    _kernel_name = "kernel"  # What the stock layer calls its kernel.
    activation: Any  # Of the stock layer.

    def __init__(
        self,
        *args: Any,
        bit_width: int | None = representation_lib.MAX_BIT_WIDTH,
        activation_bits: int | None = None,
        representation: str = representation_lib.SIGN_MAGNITUDE.name,
        scale_rule: str = "least_squares",
        lasso: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_options(bit_width, activation_bits, representation, scale_rule, lasso)
        self.bit_width = None if bit_width is None else int(bit_width)
        self._representation = representation_lib.get_representation(representation)
        self.representation = self._representation.name
        self.scale_rule = scale_rule
        self.lasso = lasso
        self.quantized_kernel: QuantizedKernel | None = None
        self.activation_bits = activation_bits
        if activation_bits is not None:
            self._quantize_activation(activation_bits)

    def _quantize_activation(self, bits: int) -> None:
        if self.activation not in RELU_FUNCTIONS:
            raise ValueError(
                f"{self.name}: activation_bits quantizes the output of a ReLU, but the "
                f"layer's activation is {self.activation}. Use activation='relu', or "
                "leave activation_bits out."
            )
        self.activation = _ReLUOfBits(bits)

    def add_weight(self, name: str | None = None, shape: Any = None, **kwargs: Any):
        """Adds a variable of the stock layer; a kernel becomes a quantized one."""
        if name != self._kernel_name or self.bit_width is None:
            return super().add_weight(name=name, shape=shape, **kwargs)
        if kwargs.get("constraint") is not None:
            raise ValueError(
                f"{self.name}: a kernel constraint acts on float weights, which a "
                "quantized layer does not have. Leave it out, or set bit_width=None."
            )
        kernel = add_quantized_kernel(
            super().add_weight,
            name,
            tuple(shape),
            kwargs["initializer"],
            self.bit_width,
            self._representation,
            self.scale_rule,
        )
        if kwargs.get("regularizer") is not None:
            self.add_loss(functools.partial(_regularize, kwargs["regularizer"], kernel))
        if self.lasso:
            self.add_loss(functools.partial(bit_plane_lasso, kernel, self.lasso))
        self.quantized_kernel = kernel
        return kernel

    def get_config(self) -> dict[str, Any]:
        """Returns the stock layer's configuration and the arguments of this class."""
        config = super().get_config()
        if self.activation_bits is not None:
            config["activation"] = "relu"
        return {
            **config,
            "bit_width": self.bit_width,
            "activation_bits": self.activation_bits,
            "representation": self.representation,
            "scale_rule": self.scale_rule,
            "lasso": self.lasso,
        }


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantConv2D(_QuantizedLayer, tf.keras.layers.Conv2D):
    """`tf.keras.layers.Conv2D` on integer codes; see the module for its arguments."""

    kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantDense(_QuantizedLayer, tf.keras.layers.Dense):
    """`tf.keras.layers.Dense` on integer codes; see the module for its arguments."""

    kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantDepthwiseConv2D(_QuantizedLayer, tf.keras.layers.DepthwiseConv2D):
    """`tf.keras.layers.DepthwiseConv2D` on integer codes; see the module."""

    _kernel_name = "depthwise_kernel"
    depthwise_kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantReLU(tf.keras.layers.Layer):
    """A ReLU whose output has k bits (`tff_fedmpq.quantization.quantized_relu`).

    Args:
      activation_bits: k, 1 to 8.
      clip_value: the largest output.
      **kwargs: of `tf.keras.layers.Layer`.
    """

    def __init__(
        self,
        activation_bits: int = 4,
        clip_value: float = activations.CLIP_VALUE,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.activation_bits = representation_lib.check_bit_width(
            activation_bits, "activation_bits"
        )
        if not clip_value > 0:
            raise ValueError(f"clip_value has to be above 0, found {clip_value!r}.")
        self.clip_value = clip_value

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return activations.quantized_relu(inputs, self.activation_bits, self.clip_value)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of this layer."""
        return {
            **super().get_config(),
            "activation_bits": self.activation_bits,
            "clip_value": self.clip_value,
        }
