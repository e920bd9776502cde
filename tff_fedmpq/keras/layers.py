"""Keras layers whose weights are integer codes of b bits, activations of k bits.

`QuantConv2D`, `QuantDense` and `QuantDepthwiseConv2D` are the stock layers of those
names, computed with the dequantized kernel. Additional arguments:

* ``bit_width``: Initial bits per weight, 1 to 8; training may change them. None keeps
  a float kernel: the layer is then the stock layer.
* ``activation_bits``: Bits of the ReLU output in [0, 6], 1 to 8; None leaves it float.
* ``representation``, ``scale_rule``: Names in `tff_fedmpq.quantization`.
* ``lasso_strength``: Coefficient ``lambda M_l / M`` of the group Lasso (Eq. 11).

`QuantReLU` is a ReLU of k bits as a separate layer.
"""

from __future__ import annotations

import random
from typing import Any

import tensorflow as tf
from keras.src.engine import base_layer_utils

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel
from tff_fedmpq.keras.regularizers import bit_plane_lasso
from tff_fedmpq.quantization import representations, scales
from tff_fedmpq.quantization.activations import CLIP_VALUE, quantized_relu

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
    """Raises ValueError if an additional argument of quantized layers is invalid."""
    for bits, what in (bit_width, "bit_width"), (activation_bits, "activation_bits"):
        if bits is not None:
            representations.check_bit_width(bits, what)
    representations.get_representation(representation)
    scales.get_scale_rule(scale_rule)
    if not lasso >= 0:
        raise ValueError(f"{lasso_name} has to be 0 or more, found {lasso!r}.")


def is_training() -> bool:
    """Returns whether the layer that is called now is called to train it."""
    # An activation function is not told; only False is certain in a graph.
    training = base_layer_utils.call_context().training
    return training is True or tf.is_tensor(training)


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class _ReLUOfBits:
    """Quantized ReLU as the activation function of a layer."""

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return quantized_relu(x, self.bits, training=is_training())

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits}


class _KernelView:
    """Attribute of a stock layer that reads a quantized kernel as its weights."""

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
        # `quantize_model` assigns other weights, and finding initial scales takes long.
        self.has_initial_weights = True
        self.activation_bits = activation_bits
        if activation_bits is not None:
            if self.activation not in RELU_FUNCTIONS:
                raise ValueError(
                    f"{self.name}: activation_bits quantizes the output of a ReLU: use "
                    f"activation='relu', or leave it out; found {self.activation}."
                )
            self.activation = _ReLUOfBits(activation_bits)

    def add_weight(self, name: str | None = None, shape: Any = None, **kwargs: Any):
        """Adds a quantized kernel in place of a kernel, else a variable."""
        if name != self._kernel_name or self.bit_width is None:
            return super().add_weight(name=name, shape=shape, **kwargs)
        if kwargs.get("constraint") is not None:
            raise ValueError(
                f"{self.name}: a kernel constraint acts on float weights, which a "
                "quantized layer does not have. Leave it out, or set bit_width=None."
            )
        initializer = kwargs["initializer"] if self.has_initial_weights else None
        kernel = self._add_quantized_kernel(tuple(shape), initializer)
        if kwargs.get("regularizer") is not None:
            self.add_loss(lambda: kwargs["regularizer"](kernel.value()))
        if self.lasso_strength:
            self.add_loss(lambda: bit_plane_lasso(kernel, self.lasso_strength))
        self.quantized_kernel = kernel
        return kernel

    def _add_quantized_kernel(self, shape: Any, initializer: Any) -> QuantizedKernel:
        """Adds codes and scale of initial weights; without initializer 0 and 1."""
        name, bit_width = self._kernel_name, self.bit_width
        representation = self._representation
        scale_rule = scales.get_scale_rule(self.scale_rule)
        initial: Any = "zeros", "ones"

        # Variables may be initialized outside of the graph under construction, so each
        # initial value is computed separately; a seeded initializer repeats its values.
        def initial_weights() -> tuple[tf.Tensor, tf.Tensor]:
            weights = initializer(shape, tf.float32)
            return weights, scale_rule(weights, tf.constant(bit_width), representation)

        def initial_scale(shape=None, dtype=None) -> tf.Tensor:
            return initial_weights()[1]

        def initial_codes(shape=None, dtype=None) -> tf.Tensor:
            return representation.quantize(*initial_weights(), tf.constant(bit_width))

        if initializer is not None:
            initializer = _with_seed(initializer)
            initial = initial_codes, initial_scale
        initial_bits = tf.keras.initializers.Constant(bit_width)
        # Not cast automatically: a bfloat16 scale would change every weight.
        fixed = {"trainable": False, "experimental_autocast": False}
        add = super().add_weight
        codes = add(f"{name}_codes", shape, tf.uint8, initial[0])
        scale = add(f"{name}_scale", (), tf.float32, initial[1], **fixed)
        bits = add(f"{name}_bit_width", (), tf.int32, initial_bits, **fixed)
        return QuantizedKernel(codes, scale, bits, representation, scale_rule)

    def get_config(self) -> dict[str, Any]:
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


def _with_seed(initializer: Any) -> Any:
    """Adds a missing seed, drawn as in Keras, so that each call gives equal values."""
    if not hasattr(initializer, "get_config"):
        raise TypeError(
            "Scale and codes of a quantized kernel agree only for a Keras initializer, "
            f"which has a seed; found {initializer!r}."
        )
    config = initializer.get_config()
    if config.get("seed", 0) is not None:
        return initializer
    return type(initializer).from_config({**config, "seed": random.getrandbits(31)})


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class QuantConv2D(_QuantizedLayer, tf.keras.layers.Conv2D):
    """`tf.keras.layers.Conv2D` on integer codes; arguments: see the module."""

    kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class QuantDense(_QuantizedLayer, tf.keras.layers.Dense):
    """`tf.keras.layers.Dense` on integer codes; arguments: see the module."""

    kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class QuantDepthwiseConv2D(_QuantizedLayer, tf.keras.layers.DepthwiseConv2D):
    """`tf.keras.layers.DepthwiseConv2D` on integer codes; arguments: see the module."""

    _kernel_name = "depthwise_kernel"
    depthwise_kernel = _KernelView()


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class QuantReLU(tf.keras.layers.Layer):
    """ReLU of `activation_bits` (1 to 8) up to `clip_value`; see `quantized_relu`."""

    def __init__(
        self, activation_bits: int = 4, clip_value: float = CLIP_VALUE, **kwargs: Any
    ):
        super().__init__(**kwargs)
        bits = representations.check_bit_width(activation_bits, "activation_bits")
        if not clip_value > 0:
            raise ValueError(f"clip_value has to be above 0, found {clip_value!r}.")
        self.activation_bits, self.clip_value = bits, clip_value

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return quantized_relu(
            inputs, self.activation_bits, self.clip_value, is_training()
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation_bits": self.activation_bits,
            "clip_value": self.clip_value,
        }
