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

    Args:
      model: Model to convert; it is not changed. Layers that are quantized already are
        copied unchanged.
      bit_width: Bits per weight of every kernel, 1 to 8; None leaves kernels in float.
      activation_bits: Bits of every ReLU output, 1 to 8, clipped to [0, 6]; None leaves
        them in float.
      representation: Meaning of the codes: "sign_magnitude" or "offset_binary".
      scale_rule: Choice of scales: "least_squares", "gaussian" or "max".
      lasso: Coefficient lambda of the model's group Lasso over bit planes (Eq. 12); a
        layer's `lasso_strength` is ``lambda M_l / M``, by its share of the weights.
      dtype_policy: Keras policy for all layers except those that give the output, such
        as "mixed_bfloat16"; None keeps each layer's policy. Variables stay float32.
      copy_weights: Whether to quantize the model's weights into the copy. Without, its
        codes are zero until they are assigned.

    Returns:
      Keras model with `trainable_variables` in the order of the original, and uint8
      codes in place of each quantized kernel.

    Raises:
      TypeError: If the model is neither Sequential nor functional.
      ValueError: If an argument is out of range.
    """
    if not isinstance(model, _FUNCTIONAL):
        raise TypeError(
            "The model has to be Sequential or functional; found "
            f"{type(model).__name__}. In a subclassed model, use QuantConv2D, "
            "QuantDense and QuantReLU directly."
        )
    quant_layers.check_options(
        bit_width, activation_bits, representation, scale_rule, lasso, "lasso"
    )
    if dtype_policy is not None:
        variable_dtype = tf.keras.mixed_precision.Policy(dtype_policy).variable_dtype
        if variable_dtype != "float32":
            raise ValueError(
                "dtype_policy has to keep variables in float32, as mixed_bfloat16 "
                f"does; found {dtype_policy!r}."
            )
    if not model.built:
        raise ValueError(
            f"{model.name} has no weights yet: build it, or give it an Input layer."
        )
    kernel_options = {
        "bit_width": bit_width,
        "representation": representation,
        "scale_rule": scale_rule,
    }
    converter = _Converter(
        kernel_options,
        lasso / max(_num_kernel_weights(model), 1),
        activation_bits,
        dtype_policy,
        frozenset(_output_ids(model)),
    )
    quantized = tf.keras.models.clone_model(model, clone_function=converter)
    if bit_width is not None and converter.left_in_float:
        logging.warning(
            "quantize_model left these layers in float, as they have no quantized "
            "form: %s.",
            ", ".join(converter.left_in_float),
        )
    if converter.float_relus:
        logging.warning(
            "quantize_model left the outputs of these ReLUs in float: %s. It quantizes "
            "'relu' as the activation of a layer, and ReLU layers without slope, "
            "threshold or a maximum other than 6.",
            ", ".join(converter.float_relus),
        )
    if copy_weights:
        for source in _leaf_layers(model):
            if source.weights:
                _copy_weights(source, converter.converted[id(source)])
    return quantized


@dataclasses.dataclass(frozen=True)
class _Converter:
    """Maps a layer to its quantized form, or to a plain copy.

    Attributes:
      kernel_options: Arguments of quantized layers.
      lasso_per_weight: Lasso coefficient of a layer per weight, ``lambda / M``.
      activation_bits: Bits of every ReLU.
      dtype_policy: Policy of all layers except those that give the model's output.
      output_ids: Ids of the layers that give the model's output.
      left_in_float: Names of converted layers without a quantized form.
      float_relus: Names of converted layers with a ReLU that stays in float.
      converted: Quantized forms by id of the layer, so that a layer that is used in
        several places, also in inner models, is converted once.
    """

    kernel_options: dict[str, Any]
    lasso_per_weight: float
    activation_bits: int | None
    dtype_policy: str | None
    output_ids: frozenset[int]
    left_in_float: list[str] = dataclasses.field(default_factory=list)
    float_relus: list[str] = dataclasses.field(default_factory=list)
    converted: dict[int, tf.keras.layers.Layer] = dataclasses.field(
        default_factory=dict
    )

    def __call__(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if id(layer) not in self.converted:
            self.converted[id(layer)] = self._convert(layer)
        return self.converted[id(layer)]

    def _convert(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if isinstance(layer, _FUNCTIONAL):
            return tf.keras.models.clone_model(layer, clone_function=self)
        is_output = id(layer) in self.output_ids
        config = layer.get_config()
        if isinstance(layer, tf.keras.layers.Normalization):
            config.update(_adapted_statistics(layer))
        # The output keeps its policy, as logits and loss belong in float32.
        if self.dtype_policy is not None and not is_output and _is_floating(layer):
            config["dtype"] = self.dtype_policy
        if self.activation_bits is not None and _hides_relu(layer):
            self.float_relus.append(layer.name)
        if type(layer) in _QUANTIZED_FORMS:
            return self._convert_kernel_layer(layer, config)
        if self.activation_bits is not None and _is_relu_layer(layer):
            return quant_layers.QuantReLU(
                self.activation_bits, name=layer.name, dtype=config["dtype"]
            )
        known = _FLOAT_BY_DESIGN + tuple(_QUANTIZED_FORMS.values())
        if layer.weights and not isinstance(layer, known):
            self.left_in_float.append(layer.name)
        return type(layer).from_config(config)

    def _convert_kernel_layer(
        self, layer: tf.keras.layers.Layer, config: dict[str, Any]
    ) -> tf.keras.layers.Layer:
        options = dict(self.kernel_options)
        num_weights = _kernel(layer).shape.num_elements()
        options["lasso_strength"] = self.lasso_per_weight * num_weights
        if layer.activation in quant_layers.RELU_FUNCTIONS:
            options["activation_bits"] = self.activation_bits
        converted = _QUANTIZED_FORMS[type(layer)].from_config({**config, **options})
        converted.has_initial_weights = False
        return converted


def _output_ids(model: tf.keras.Model) -> Iterator[int]:
    """Yields the ids of layers that give a model's output, also in inner models."""
    outputs = {id(tensor) for tensor in model.outputs}
    for layer in model.layers:
        # Any call of a layer may give an output.
        calls = map(layer.get_output_at, range(len(layer.inbound_nodes)))
        if outputs.isdisjoint(map(id, tf.nest.flatten(list(calls)))):
            continue
        if isinstance(layer, _FUNCTIONAL):
            yield from _output_ids(layer)
        else:
            yield id(layer)


def _is_relu_layer(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether the layer is a ReLU or, like QuantReLU, a ReLU6."""
    if isinstance(layer, tf.keras.layers.ReLU):
        plain = not layer.negative_slope and not layer.threshold
        return bool(plain and layer.max_value in (None, activations.CLIP_VALUE))
    return (
        isinstance(layer, tf.keras.layers.Activation)
        and layer.activation in quant_layers.RELU_FUNCTIONS
    )


def _hides_relu(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether the layer has a ReLU of a form that is not quantized."""
    if isinstance(layer, tf.keras.layers.ReLU):
        return not _is_relu_layer(layer)
    function = getattr(layer, "function", None)  # Lambda layers and operations.
    activation = getattr(layer, "activation", None)
    return (
        getattr(function, "__name__", "") in ("relu", "relu6")
        or isinstance(activation, tf.keras.layers.ReLU)
        or (
            activation in quant_layers.RELU_FUNCTIONS
            and type(layer) not in _QUANTIZED_FORMS
            and not isinstance(layer, tf.keras.layers.Activation)
        )
    )


def _adapted_statistics(layer: tf.keras.layers.Normalization) -> dict[str, Any]:
    """Returns a layer's adapted statistics as arguments; none if it was not adapted.

    Assigning them as weights would have no effect.
    """
    if layer.input_mean is not None or not layer.built:
        return {}
    if not hasattr(layer.mean, "numpy"):  # Built in a graph: not adapted.
        return {}
    mean, variance = layer.mean.numpy(), layer.variance.numpy()
    if not mean.any() and (variance == 1).all():
        return {}
    shape = layer.adapt_mean.shape
    return {"mean": mean.reshape(shape), "variance": variance.reshape(shape)}


def _is_floating(layer: tf.keras.layers.Layer) -> bool:
    return layer.dtype is None or tf.as_dtype(layer.dtype).is_floating


def _leaf_layers(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """Yields the layers of a model and of its inner models, each once."""
    found: dict[int, tf.keras.layers.Layer] = {}
    pending = [model]
    while pending:
        layer = pending.pop()
        if isinstance(layer, _FUNCTIONAL):
            pending.extend(reversed(layer.layers))
        else:
            found.setdefault(id(layer), layer)
    yield from found.values()


def _kernel(layer: tf.keras.layers.Layer) -> tf.Variable:
    """Returns the kernel of a stock layer that has a quantized form."""
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
        return layer.depthwise_kernel
    return layer.kernel


def _num_kernel_weights(model: tf.keras.Model) -> int:
    return sum(
        _kernel(layer).shape.num_elements()
        for layer in _leaf_layers(model)
        if type(layer) in _QUANTIZED_FORMS
    )


def _copy_weights(source: tf.keras.layers.Layer, target: tf.keras.layers.Layer) -> None:
    """Copies or quantizes the weights of a layer into its converted form."""
    if type(source) is type(target):
        if target.weights:  # Adapted statistics have become arguments.
            target.set_weights(source.get_weights())
        return
    if target.quantized_kernel is not None:
        target.quantized_kernel.quantize(_kernel(source))
    else:
        _kernel(target).assign(_kernel(source))
    if source.use_bias:
        target.bias.assign(source.bias)
