"""Activations of k bits: `QuantReLU`, `QuantActivation`, and the function in layers."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tff_fedmpq._tensorflow import keras_module
from tff_fedmpq.quantization import activations, representations
from tff_fedmpq.quantization.activations import CLIP_VALUE

base_layer_utils = keras_module("engine.base_layer_utils")

# Quantization clips at six, which makes each of these a ReLU6.
RELU_FUNCTIONS = (tf.keras.activations.relu, tf.nn.relu, tf.nn.relu6)
_KERAS_NAMES = {"relu6": "relu", "silu": "swish"}  # Functions without a name in Keras.


def is_training() -> bool:
    """Returns whether the layer that is called now is called to train it."""
    # Activation functions are not told. A tensor may be true.
    training = base_layer_utils.call_context().training
    return tf.is_tensor(training) or bool(training)


def range_of(function: Any) -> tuple[float, float] | None:
    """Returns the default range of an activation function's output, or None."""
    name = getattr(function, "__name__", "")
    known = (getattr(m, name, None) for m in (tf.keras.activations, tf.nn) if name)
    return activations.RANGES.get(name) if function in known else None


def _checked_range(limits: Any) -> tuple[float, float]:
    low, high = map(float, limits)
    if not -math.inf < low <= 0 < high < math.inf:
        raise ValueError(
            f"An activation range has to be finite and hold 0, found {low}, {high}."
        )
    return low, high


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class ActivationOfBits:
    """Activation function of k bits.

    Attributes:
      function: Function of tensors.
      bits: Bits of its output (k).
      limits: Smallest and largest output.
      observed: Smallest and largest output found by calibration, while it lasts, during
        which the output is not quantized; else None.
    """

    def __init__(self, function: Any, bits: int, limits: Any = None):
        default = range_of(function)
        if isinstance(limits, (int, float)):
            limits = (default[0] if default else 0.0, limits)
        if (limits or default) is None:
            raise ValueError(f"{function} has no known range: give activation_range.")
        self.limits = _checked_range(limits or default)
        self.bits = representations.check_bit_width(bits, "activation_bits")
        self.function = function
        self.observed: tuple[float, float] | None = None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        if self.observed is None and self.function in RELU_FUNCTIONS:
            return activations.quantized_relu(
                x, self.bits, self.limits[1], is_training()
            )
        y = self.function(x)
        if self.observed is None:
            return activations.quantize_range(
                y, self.bits, self.limits[0], self.limits[1], is_training()
            )
        values = tf.cast(y, tf.float32)
        low, high = self.observed
        # Not `min` and `max` of Python, which overlook NaN.
        self.observed = (
            float(tf.minimum(low, tf.reduce_min(values))),
            float(tf.maximum(high, tf.reduce_max(values))),
        )
        return y

    @property
    def __name__(self) -> str:
        return self.function.__name__

    @property
    def keras_name(self) -> str:
        """Name of the function by which Keras finds it."""
        return _KERAS_NAMES.get(self.__name__, self.__name__)

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits, "limits": self.limits}


def can_quantize_activation(
    layer: tf.keras.layers.Layer, activation_range: Any = None
) -> bool:
    """Returns whether a layer has an activation function with a quantized form."""
    function = getattr(layer, "activation", None)
    is_state = hasattr(layer, "cell") or hasattr(layer, "state_size")
    is_linear = function in (None, tf.keras.activations.linear)
    is_known = range_of(function) or activation_range is not None
    return bool(not is_linear and not is_state and is_known)


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class QuantReLU(tf.keras.layers.Layer):
    """ReLU of `activation_bits` (1 to 8) up to `clip_value`; see `quantized_relu`."""

    def __init__(
        self, activation_bits: int = 4, clip_value: float = CLIP_VALUE, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not 0 < clip_value < math.inf:
            raise ValueError(
                f"clip_value has to be above 0 and finite, found {clip_value!r}."
            )
        self.activation = ActivationOfBits(tf.nn.relu, activation_bits, clip_value)
        self.activation_bits = self.activation.bits
        self.supports_masking = True

    @property
    def clip_value(self) -> float:
        """Largest output."""
        return self.activation.limits[1]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.activation(inputs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation_bits": self.activation_bits,
            "clip_value": self.clip_value,
        }


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class QuantActivation(tf.keras.layers.Layer):
    """Activation whose output has `activation_bits` within `activation_range`.

    `activation` is a name, a function, or a layer such as `LeakyReLU`.
    """

    def __init__(
        self,
        activation: Any,
        activation_bits: int = 4,
        activation_range: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(activation, dict):
            activation = tf.keras.utils.deserialize_keras_object(activation)
        self.function = tf.keras.activations.get(activation)  # Tracks a layer.
        self.activation = ActivationOfBits(
            self.function, activation_bits, activation_range
        )
        self.activation_bits = self.activation.bits
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if isinstance(self.function, tf.keras.layers.Layer):
            self.function.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.activation(inputs)

    def get_config(self) -> dict[str, Any]:
        function = self.function
        if isinstance(function, tf.keras.layers.Layer):
            function = tf.keras.utils.serialize_keras_object(function)
        else:
            function = tf.keras.activations.serialize(function)
        return {
            **super().get_config(),
            "activation": function,
            "activation_bits": self.activation_bits,
            "activation_range": list(self.activation.limits),
        }
