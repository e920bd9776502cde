"""Keras layers whose weights are integer codes of b bits, activations of k bits.

`QuantConv2D`, `QuantDense` and `QuantDepthwiseConv2D` are the stock layers of those
names, computed with the dequantized kernel. Additional arguments:

* ``bit_width``: Initial bits per weight, 1 to 8; training may change them. None keeps
  a float kernel: the layer is then the stock layer.
* ``activation_bits``: Bits of the layer's ReLU output, 1 to 8, clipped to [0, 6]; None
  leaves it in float.
* ``representation``, ``scale_rule``: Names in `tff_fedmpq.quantization`.
* ``lasso_strength``: Coefficient of the group Lasso over the kernel's bit planes
  (Eq. 11), ``lambda M_l / M``.

`QuantReLU` is a ReLU of k bits as a separate layer.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, add_quantized_kernel
from tff_fedmpq.keras.regularizers import bit_plane_lasso
from tff_fedmpq.quantization import activations, representations, scales

_PACKAGE = "tff_fedmpq"

# Quantization clips at six, which makes each of these a ReLU6.
RELU_FUNCTIONS = (tf.keras.activations.relu, tf.nn.relu, tf.nn.relu6)


def check_options(
    bit_width: int | None,
    activation_bits: int | None,
    representation: str | representations.Representation,
    scale_rule: str | scales.ScaleRule,
    lasso: float,
    lasso_name: str = "lasso_strength",
) -> None:
    """Raises ValueError if an additional argument of quantized layers is invalid.

    `lasso_name` is the name of the Lasso coefficient in the error message.
    """
    if bit_width is not None:
        representations.check_bit_width(bit_width)
    if activation_bits is not None:
        representations.check_bit_width(activation_bits, "activation_bits")
    representations.get_representation(representation)
    scales.get_scale_rule(scale_rule)
    if not lasso >= 0:
        raise ValueError(f"{lasso_name} has to be 0 or more, found {lasso!r}.")


def _regularize(
    regularizer: Callable[[tf.Tensor], tf.Tensor], kernel: QuantizedKernel
) -> tf.Tensor:
    return regularizer(kernel.value())


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class _ReLUOfBits:
    """Quantized ReLU as the activation function of a layer."""

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return activations.quantized_relu(x, self.bits)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


class _KernelView:
    """Attribute that holds the kernel of a stock layer.

    It stores the result of `add_weight`; reading a quantized kernel gives its
    dequantized weights.
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
    """Mixin that quantizes the kernel of the stock layer after it in the bases."""

    _kernel_name = "kernel"  # Name of the kernel in the stock layer.
    activation: Any  # Set by the stock layer.

    def __init__(
        self,
        *args: Any,
        bit_width: int | None = representations.MAX_BIT_WIDTH,
        activation_bits: int | None = None,
        representation: str = representations.SIGN_MAGNITUDE.name,
        scale_rule: str = "least_squares",
        lasso_strength: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_options(
            bit_width, activation_bits, representation, scale_rule, lasso_strength
        )
        self.bit_width = None if bit_width is None else int(bit_width)
        self._representation = representations.get_representation(representation)
        self.representation = self._representation.name
        self.scale_rule = scale_rule
        self.lasso_strength = lasso_strength
        self.quantized_kernel: QuantizedKernel | None = None
        # Whether to compute initial codes: finding scales takes long, and is of no use
        # where `quantize_model` assigns other weights.
        self.has_initial_weights = True
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
        """Adds a variable of the stock layer, or a quantized kernel for its kernel."""
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
            kwargs["initializer"] if self.has_initial_weights else None,
            self.bit_width,
            self._representation,
            self.scale_rule,
        )
        if kwargs.get("regularizer") is not None:
            self.add_loss(functools.partial(_regularize, kwargs["regularizer"], kernel))
        if self.lasso_strength:
            self.add_loss(
                functools.partial(bit_plane_lasso, kernel, self.lasso_strength)
            )
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
            "lasso_strength": self.lasso_strength,
        }


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantConv2D(_QuantizedLayer, tf.keras.layers.Conv2D):
    """`tf.keras.layers.Conv2D` on integer codes; arguments: see the module."""

    kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantDense(_QuantizedLayer, tf.keras.layers.Dense):
    """`tf.keras.layers.Dense` on integer codes; arguments: see the module."""

    kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantDepthwiseConv2D(_QuantizedLayer, tf.keras.layers.DepthwiseConv2D):
    """`tf.keras.layers.DepthwiseConv2D` on integer codes; arguments: see the module."""

    _kernel_name = "depthwise_kernel"
    depthwise_kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package=_PACKAGE)
class QuantReLU(tf.keras.layers.Layer):
    """ReLU with an output of k bits (`tff_fedmpq.quantization.quantized_relu`).

    Args:
      activation_bits: Bits of the output (k), 1 to 8.
      clip_value: Largest output.
      **kwargs: Arguments of `tf.keras.layers.Layer`.
    """

    def __init__(
        self,
        activation_bits: int = 4,
        clip_value: float = activations.CLIP_VALUE,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.activation_bits = representations.check_bit_width(
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
