"""Conversion of Keras models into quantized ones.

Convolutions, depthwise convolutions and dense layers get integer codes; every ReLU,
whether a layer or an activation, gets k bits. All else is copied; a warning names
layers with weights, and ReLUs, that have no quantized form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from absl import logging

from tff_fedmpq.keras import layers as quant_layers
from tff_fedmpq.quantization import activations, representations

_QUANTIZED_FORMS = {
    tf.keras.layers.Conv2D: quant_layers.QuantConv2D,
    tf.keras.layers.Dense: quant_layers.QuantDense,
    tf.keras.layers.DepthwiseConv2D: quant_layers.QuantDepthwiseConv2D,
}
# Layers with few weights, which stay in float by design.
_FLOAT_BY_DESIGN = (
    tf.keras.layers.BatchNormalization,
    tf.keras.layers.GroupNormalization,
    tf.keras.layers.LayerNormalization,
    tf.keras.layers.Normalization,
)
# Keras does not export the class of functional models, the base of Sequential.
_FUNCTIONAL = tf.keras.Sequential.__bases__[0]


def quantize_model(
    model: tf.keras.Model,
    bit_width: int | None = 8,
    activation_bits: int | None = None,
    *,
    representation: str = representations.SIGN_MAGNITUDE.name,
    scale_rule: str = "least_squares",
    lasso: float = 0.0,
    dtype_policy: str | None = None,
    copy_weights: bool = True,
) -> tf.keras.Model:
    """Returns a quantized copy of a Sequential or functional Keras model.

    Its `trainable_variables` are in the order of the original, with uint8 codes in
    place of each quantized kernel. Layers that are quantized already are copied
    unchanged. Other models raise TypeError, arguments out of range ValueError.

    Args:
      model: Model to convert, with weights; it is not changed.
      bit_width: Bits per weight of every kernel, 1 to 8; None leaves kernels in float.
      activation_bits: Bits of ReLU outputs in [0, 6], 1 to 8; None leaves them float.
      representation: Meaning of the codes: "sign_magnitude" or "offset_binary".
      scale_rule: Choice of scales: "least_squares", "gaussian" or "max".
      lasso: Coefficient lambda of the model's group Lasso over bit planes (Eq. 12); a
        layer's `lasso_strength` is ``lambda M_l / M``, by its share of the weights.
      dtype_policy: Keras policy for all layers except those that give the output, such
        as "mixed_bfloat16"; None keeps each layer's policy. Variables stay float32.
      copy_weights: Whether to copy and quantize the weights; else all codes are 0.
    """
    if not isinstance(model, _FUNCTIONAL):
        raise TypeError(
            f"model has to be Sequential or functional; found {type(model).__name__}. "
            "In a subclassed model, use QuantConv2D, QuantDense and QuantReLU directly."
        )
    quant_layers.check_options(
        bit_width, activation_bits, representation, scale_rule, lasso, "lasso"
    )
    policy = tf.keras.mixed_precision.Policy
    if dtype_policy is not None and policy(dtype_policy).variable_dtype != "float32":
        raise ValueError(
            "dtype_policy has to keep variables in float32, as mixed_bfloat16 does; "
            f"found {dtype_policy!r}."
        )
    if not model.built:
        raise ValueError(f"{model.name} has no weights: build it, or give it an Input.")
    layers = _leaf_layers(model)
    kernels = [_kernel(layer) for layer in layers if type(layer) in _QUANTIZED_FORMS]
    num_weights = sum(kernel.shape.num_elements() for kernel in kernels)
    options = {
        "bit_width": bit_width,
        "activation_bits": activation_bits,
        "representation": representation,
        "scale_rule": scale_rule,
        "lasso_strength": lasso / max(num_weights, 1),  # Per weight.
    }
    convert = _Converter(options, dtype_policy, frozenset(_output_ids(model)))
    quantized = tf.keras.models.clone_model(model, clone_function=convert)
    _warn_of_float_parts(layers, bit_width, activation_bits)
    if copy_weights:
        for layer in layers:
            if layer.weights:
                _copy_weights(layer, convert(layer))
    return quantized


@dataclasses.dataclass(frozen=True)
class _Converter:
    """Maps a layer to its quantized form, or to a plain copy."""

    options: dict[str, Any]  # Of quantized layers.
    dtype_policy: str | None
    output_ids: frozenset[int]
    # By id of the layer: one in several places, also in inner models, stays one.
    converted: dict[int, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if id(layer) not in self.converted:
            self.converted[id(layer)] = self._convert(layer)
        return self.converted[id(layer)]

    def _convert(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if isinstance(layer, _FUNCTIONAL):
            return tf.keras.models.clone_model(layer, clone_function=self)
        config = layer.get_config()
        if isinstance(layer, tf.keras.layers.Normalization):
            config.update(_adapted_statistics(layer))
        # The output keeps its policy, as logits and loss belong in float32.
        if self.dtype_policy is not None and id(layer) not in self.output_ids:
            if layer.dtype is None or tf.as_dtype(layer.dtype).is_floating:
                config["dtype"] = self.dtype_policy
        if type(layer) in _QUANTIZED_FORMS:
            config.update(self.options)
            config["lasso_strength"] *= _kernel(layer).shape.num_elements()
            if layer.activation not in quant_layers.RELU_FUNCTIONS:
                config["activation_bits"] = None
            converted = _QUANTIZED_FORMS[type(layer)].from_config(config)
            converted.has_initial_weights = False
            return converted
        bits = self.options["activation_bits"]
        if bits is not None and _is_relu_layer(layer):
            return quant_layers.QuantReLU(bits, name=layer.name, dtype=config["dtype"])
        return type(layer).from_config(config)


def _warn_of_float_parts(
    layers: list[Any], bit_width: int | None, activation_bits: int | None
) -> None:
    """Warns of layers with weights, and of ReLUs, that have no quantized form."""
    known = (*_FLOAT_BY_DESIGN, *_QUANTIZED_FORMS.values())
    others = [layer for layer in layers if type(layer) not in _QUANTIZED_FORMS]
    unknown = [x.name for x in others if x.weights and not isinstance(x, known)]
    if bit_width is not None and unknown:
        names = ", ".join(unknown)
        logging.warning("Layers without a quantized form stay in float: %s.", names)
    relus = [layer.name for layer in layers if _hides_relu(layer)]
    if activation_bits is not None and relus:
        logging.warning(
            "quantize_model left these ReLUs in float: %s. It quantizes activation "
            "'relu', and ReLU layers without slope, threshold or a maximum but 6.",
            ", ".join(relus),
        )


def _output_ids(model: tf.keras.Model) -> Iterator[int]:
    """Yields the ids of layers that give a model's output, also in inner models."""
    outputs = {id(tensor) for tensor in model.outputs}
    for layer in model.layers:
        # Any call of a layer may give an output.
        calls = map(layer.get_output_at, range(len(layer.inbound_nodes)))
        if not outputs.isdisjoint(map(id, tf.nest.flatten(list(calls)))):
            is_model = isinstance(layer, _FUNCTIONAL)
            yield from _output_ids(layer) if is_model else [id(layer)]


def _is_relu_layer(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether the layer is a ReLU or, like QuantReLU, a ReLU6."""
    if isinstance(layer, tf.keras.layers.ReLU):
        is_plain = not layer.negative_slope and not layer.threshold
        return bool(is_plain and layer.max_value in (None, activations.CLIP_VALUE))
    is_activation = isinstance(layer, tf.keras.layers.Activation)
    return is_activation and layer.activation in quant_layers.RELU_FUNCTIONS


def _hides_relu(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether the layer has a ReLU of a form that is not quantized."""
    if isinstance(layer, tf.keras.layers.ReLU):
        return not _is_relu_layer(layer)
    function = getattr(layer, "function", None)  # Lambda layers and operations.
    activation = getattr(layer, "activation", None)
    is_quantized = type(layer) in _QUANTIZED_FORMS or _is_relu_layer(layer)
    return (
        getattr(function, "__name__", "") in ("relu", "relu6")
        or isinstance(activation, tf.keras.layers.ReLU)
        or (activation in quant_layers.RELU_FUNCTIONS and not is_quantized)
    )


def _adapted_statistics(layer: tf.keras.layers.Normalization) -> dict[str, Any]:
    """Returns a layer's adapted statistics as arguments; as weights they do nothing."""
    is_known = layer.built and hasattr(layer.mean, "numpy")  # Else built in a graph.
    if layer.input_mean is not None or not is_known:
        return {}
    mean, variance = layer.mean.numpy(), layer.variance.numpy()
    if not mean.any() and (variance == 1).all():
        return {}
    shape = layer.adapt_mean.shape
    return {"mean": mean.reshape(shape), "variance": variance.reshape(shape)}


def _leaf_layers(model: tf.keras.Model) -> list[Any]:
    """Returns the layers of a model and of its inner models, each once."""
    leaves: list[Any] = []
    for layer in model.layers:
        leaves += _leaf_layers(layer) if isinstance(layer, _FUNCTIONAL) else [layer]
    return list({id(layer): layer for layer in leaves}.values())


def _kernel(layer: tf.keras.layers.Layer) -> tf.Variable:
    """Returns the kernel of a stock layer that has a quantized form."""
    return getattr(layer, _QUANTIZED_FORMS[type(layer)]._kernel_name)


def _copy_weights(source: tf.keras.layers.Layer, target: tf.keras.layers.Layer) -> None:
    """Copies or quantizes the weights of a layer into its converted form."""
    kernel = None if type(source) is type(target) else target.quantized_kernel
    if kernel is not None:
        kernel.quantize(_kernel(source))
        if source.use_bias:
            target.bias.assign(source.bias)
    elif target.weights:  # Adapted statistics have become arguments.
        target.set_weights(source.get_weights())
