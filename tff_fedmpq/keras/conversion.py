"""Conversion of Keras models into quantized ones.

Kernels of the layers in `QUANTIZED_FORMS` become integer codes, also inside of wrappers
such as Bidirectional; activations of known range get k bits. All else is copied, and
named in the report.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from tff_fedmpq.keras import inspection, layer_rules
from tff_fedmpq.keras.activation_layers import (
    RELU_FUNCTIONS,
    ActivationOfBits,
    QuantActivation,
    QuantReLU,
    can_quantize_activation,
    range_of,
)
from tff_fedmpq.keras.layers import (
    QUANTIZED_FORMS,
    QuantizedLayer,
    check_options,
    parts_of,
    quantize_parts,
)
from tff_fedmpq.keras.quantization_report import (
    LayerReport,
    QuantizationReport,
    warn_of_float_parts,
)
from tff_fedmpq.keras.quantized_kernel import QuantizedKernel
from tff_fedmpq.keras.quantized_model import refusing_optimizers
from tff_fedmpq.keras.representation_choice import representation_of
from tff_fedmpq.quantization import activations, representations

_OURS = (QuantizedLayer, QuantActivation, QuantReLU)


def quantize_model(
    model: tf.keras.Model,
    bit_width: Any = 8,
    activation_bits: int | None = None,
    *,
    exclude: layer_rules.Selector | Iterable[layer_rules.Selector] = (),
    representation: str | None = None,
    scale_rule: str = "widening",
    per_channel: bool | None = None,
    activation_range: float | None = None,
    calibration_data: Any = None,
    lasso: float = 0.0,
    dtype_policy: str | None = None,
    copy_weights: bool = True,
) -> tf.keras.Model:
    """Returns a quantized copy of a Sequential or functional Keras model.

    Its `trainable_variables` are in the order of the original, with uint8 codes in
    place of each quantized kernel. Its `quantization_report` says what was done.
    Quantized layers get the new bits, representation and scales that are given. Other
    models raise TypeError, arguments out of range ValueError.

    Args:
      model: Model to convert, with weights; it is not changed.
      bit_width: Bits per weight of every kernel, 1 to 8; None leaves kernels in float.
        Also a function of a layer, or a mapping such as ``{"stem": 8, "head*": None,
        tf.keras.layers.Dense: 4}``, whose first key that fits decides, else 8.
      activation_bits: Bits of activations, 1 to 8; None leaves them float.
      exclude: Layers that are copied as they are: names, types or functions.
      representation: Meaning of the codes: "sign_magnitude" or "offset_binary"; None
        is the former, but the latter for a layer where it has far less error.
      scale_rule: Choice of scales: "widening", "least_squares" or "max".
      per_channel: Whether each output channel has a scale, which is counted, instead of
        each kernel; None means in depthwise kernels.
      activation_range: Largest output of ReLUs, and of others without an upper limit.
      calibration_data: Inputs of the model, a batch or a dataset of batches, with
        labels or without; the ranges of activations without limits become what is found
        there.
      lasso: Coefficient lambda of the model's group Lasso over bit planes (Eq. 12); a
        layer's `lasso_strength` is ``lambda M_l / M``, by its share of the weights.
      dtype_policy: Keras policy for all layers except those that give the output, such
        as "mixed_bfloat16"; None keeps each layer's policy. Variables stay float32.
      copy_weights: Whether to copy and quantize the weights; else all codes are 0.
    """
    if not isinstance(model, inspection.FUNCTIONAL):
        raise TypeError(
            f"model has to be Sequential or functional; found {type(model).__name__}. "
            "In a subclassed model, use QuantConv2D, QuantDense and QuantReLU directly."
        )
    default = representations.SIGN_MAGNITUDE.name
    is_rule = callable(bit_width) or isinstance(bit_width, Mapping)
    check_options(
        None if is_rule else bit_width,
        activation_bits,
        default if representation is None else representation,
        scale_rule,
        lasso,
        "lasso",
    )
    policy = tf.keras.mixed_precision.Policy
    if dtype_policy is not None and policy(dtype_policy).variable_dtype != "float32":
        raise ValueError(
            "dtype_policy has to keep variables in float32, as mixed_bfloat16 does; "
            f"found {dtype_policy!r}."
        )
    if activation_range is not None and not (
        isinstance(activation_range, numbers.Real) and 0 < activation_range < math.inf
    ):
        raise ValueError(
            "activation_range has to be a number above 0 and finite; found "
            f"{activation_range!r}."
        )
    if not model.built:
        raise ValueError(f"{model.name} has no weights: build it, or give it an Input.")
    inspection.check_nodes(model)
    layers = inspection.leaf_layers(model)
    if isinstance(exclude, str) or not isinstance(exclude, Iterable):
        exclude = [exclude]
    bits_by_layer, excluded = layer_rules.apply_rules(model, bit_width, tuple(exclude))
    num_weights = sum(inspection.count_kernel_weights(layer) for layer in layers)
    convert = _Converter(
        options={
            "representation": representation or default,
            "scale_rule": scale_rule,
            "per_channel": per_channel,
            "lasso_per_weight": lasso / max(num_weights, 1),
        },
        given={"representation": representation, "per_channel": per_channel},
        bits_by_layer=bits_by_layer,
        excluded=excluded,
        activation_bits=activation_bits,
        activation_range=activation_range,
        chooses_representation=representation is None and copy_weights,
        dtype_policy=dtype_policy,
        output_ids=frozenset(inspection.output_ids(model)),
    )
    quantized = tf.keras.models.clone_model(model, clone_function=convert)
    kinds = type(quantized).__name__, type(model).__name__
    if kinds[0] != kinds[1]:  # Keras copies no class with a constructor of its own.
        logging.warning("The copy is a %s without the methods of %s.", *kinds)
    if copy_weights:
        for layer in layers:
            if layer.weights:
                _copy_weights(layer, convert(layer))
    known = (layer for layer in layers if id(layer) in convert.converted)
    report = QuantizationReport(tuple(map(convert.report, known)))
    quantized.quantization_report = report
    quantizers = convert.open_activations()
    is_chosen = activation_range is not None or calibration_data is not None
    clipped = [q for q in quantizers if q.limits[1] == activations.CLIP_VALUE]
    num_clipped = 0 if is_chosen else len(clipped)
    warn_of_float_parts(report, is_rule or bit_width is not None, num_clipped)
    logging.info("quantize_model:\n%s", report)
    if calibration_data is not None:
        _calibrate(quantized, calibration_data, quantizers)
    quantized.__class__ = refusing_optimizers(type(quantized))
    return quantized


def load_float_weights(model: tf.keras.Model, source: tf.keras.Model) -> None:
    """Sets a quantized model to the weights of the float model it was made from."""
    pairs = [inspection.leaf_layers(each) for each in (source, model)]
    shapes = [
        [tuple(w.shape) for x in layers for w in inspection.logical_weights(x)]
        for layers in pairs
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{model.name} was not made from {source.name}: their weights have other "
            "numbers or shapes."
        )
    for layer, target in zip(*pairs):
        _copy_weights(layer, target)


def _calibrate(model: tf.keras.Model, data: Any, quantizers: list[Any]) -> None:
    """Sets ranges of activations to what a batch, or batches, of inputs give."""
    for quantizer in quantizers:
        quantizer.observed = (0.0, 0.0)
    if isinstance(data, (tf.data.Dataset, Iterator)):
        batches = (tf.keras.utils.unpack_x_y_sample_weight(x)[0] for x in data)
    else:
        batches = iter([data])
    for batch in batches:
        model(batch, training=False)
    if quantizers and not any(any(q.observed) for q in quantizers):
        raise ValueError("calibration_data gives no activation above 0: is it empty?")
    for quantizer in quantizers:
        low, high = quantizer.observed
        if not math.isfinite(high - low):
            raise ValueError(
                "calibration_data gives activations that are not finite: "
                f"{low:g} to {high:g}."
            )
        if high > 0:
            quantizer.limits = low, high
        quantizer.observed = None


@dataclasses.dataclass(frozen=True)
class _Converter:
    """Maps a layer to its quantized form, or to a plain copy."""

    options: dict[str, Any]  # Of quantized layers.
    given: dict[str, Any]  # Of layers that are quantized already.
    bits_by_layer: dict[int, int | None]  # By id of the layer.
    excluded: frozenset[int]
    activation_bits: int | None
    activation_range: float | None
    chooses_representation: bool
    dtype_policy: str | None
    output_ids: frozenset[int]
    # By id of the layer: one in several places, also in inner models, stays one.
    converted: dict[int, Any] = dataclasses.field(default_factory=dict)
    limited: set[int] = dataclasses.field(default_factory=set)  # With a max_value.

    def __call__(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if id(layer) not in self.converted:
            self.converted[id(layer)] = self._convert(layer)
        return self.converted[id(layer)]

    def open_activations(self) -> list[Any]:
        """Returns the quantized activations whose outputs have no limit in float."""
        found: list[Any] = []
        for id_, converted in self.converted.items():
            is_model = inspection.inner_model(converted) is not None
            if id_ in self.limited or is_model:  # Its layers are here, too.
                continue
            parts = parts_of(converted)
            quantizers = (getattr(part, "activation", None) for part in parts)
            found += [q for q in quantizers if _is_open(q)]
        return found

    def _convert(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        if isinstance(layer, inspection.FUNCTIONAL):
            return tf.keras.models.clone_model(layer, clone_function=self)
        config = {**layer.get_config(), **inspection.adapted_state(layer)}
        inner = inspection.inner_model(layer)
        if inner is not None:
            return type(layer)(**{**config, "layer": self(inner)})
        function = getattr(layer, "activation", None)
        if "activation" in config and isinstance(function, types.FunctionType):
            config["activation"] = function  # Keras may not find it by its name.
        # The output keeps its policy, as logits and loss belong in float32.
        if self.dtype_policy is not None and id(layer) not in self.output_ids:
            if layer.dtype is None or tf.as_dtype(layer.dtype).is_floating:
                config["dtype"] = self.dtype_policy
        if id(layer) in self.excluded:
            return _made_again(type(layer), config)
        bits = self.bits_by_layer[id(layer)]
        if type(layer) in QUANTIZED_FORMS or isinstance(layer, _OURS):
            config.update(self._activation_options_of(layer))
        if isinstance(layer, QuantizedLayer):
            config.update({k: v for k, v in self.given.items() if v is not None})
            config["bit_width"] = bits or config["bit_width"]
            return _made_again(type(layer), config)
        if type(layer) in QUANTIZED_FORMS:
            config.update(self._options_of(layer, bits))
            converted = _made_again(QUANTIZED_FORMS[type(layer)], config)
            converted.has_initial_weights = False
            return converted
        activation = self._quantized_activation(layer, config.get("dtype"))
        if activation is not None:
            return activation
        copy = _made_again(type(layer), config)
        if inspection.is_wrapper(layer) and inspection.count_kernel_weights(layer):
            options = self._options_of(layer, bits)
            quantize_parts(copy, options, self.activation_bits)
            for part in parts_of(copy):
                if bits is not None and isinstance(part, QuantizedLayer):
                    part.change_bit_width(bits)
        return copy

    def _options_of(
        self, layer: tf.keras.layers.Layer, bits: int | None
    ) -> dict[str, Any]:
        """Returns the arguments of a layer's quantized form."""
        options = {**self.options, "bit_width": bits, "lasso_strength": 0.0}
        own = getattr(QUANTIZED_FORMS.get(type(layer)), "_kernel_names", ())
        if len(own) == len(inspection.kernels_of(layer)):  # Else it is made of layers.
            per_weight, options["lasso_per_weight"] = options["lasso_per_weight"], 0.0
            options["lasso_strength"] = per_weight * inspection.count_kernel_weights(
                layer
            )
        if self.chooses_representation and bits is not None:
            options["representation"] = representation_of(layer, bits, options)
        return options

    def _activation_options_of(self, layer: tf.keras.layers.Layer) -> dict[str, Any]:
        """Returns the arguments for the activation of a layer's quantized form."""
        if isinstance(getattr(layer, "activation", None), ActivationOfBits):
            # Quantized before: its range stays.
            return {"activation_bits": self.activation_bits or layer.activation_bits}
        if not self._quantizes_activation_of(layer):
            return {}
        limits = self._range_of(layer.activation)
        return {"activation_bits": self.activation_bits, "activation_range": limits}

    def _quantizes_activation_of(self, layer: tf.keras.layers.Layer) -> bool:
        if self.activation_bits is None:
            return False
        if not can_quantize_activation(layer):
            return False
        is_relu = layer.activation in RELU_FUNCTIONS
        return is_relu or id(layer) not in self.output_ids

    def _range_of(self, function: Any) -> tuple[float, float] | None:
        """Returns the range of an activation function; None is its default."""
        low, high = range_of(function) or (-1.0, activations.CLIP_VALUE)
        if self.activation_range is None or high == 1.0 or function is tf.nn.relu6:
            return low, high
        return low, self.activation_range

    def _quantized_activation(
        self, layer: tf.keras.layers.Layer, dtype: Any
    ) -> tf.keras.layers.Layer | None:
        """Returns the quantized form of an activation layer; None if it has none."""
        bits = self.activation_bits
        if bits is None:
            return None
        options = {"name": layer.name, "dtype": dtype}
        if getattr(layer, "max_value", None) is not None:
            self.limited.add(id(layer))
        if inspection.is_relu_layer(layer):
            limit = self.activation_range if id(layer) not in self.limited else None
            limit = limit or activations.CLIP_VALUE
            return QuantReLU(bits, limit, **options)
        is_function = isinstance(layer, tf.keras.layers.Activation)
        if is_function and self._quantizes_activation_of(layer):
            limits = self._range_of(layer.activation)
            return QuantActivation(layer.activation, bits, limits, **options)
        is_relu = isinstance(layer, tf.keras.layers.ReLU)
        if not is_relu and not isinstance(layer, inspection.ACTIVATION_LAYERS):
            return None
        high = getattr(layer, "max_value", None)
        high = float(high or self.activation_range or activations.CLIP_VALUE)
        slope = getattr(layer, "negative_slope", getattr(layer, "alpha", 0.0))
        if isinstance(layer, tf.keras.layers.PReLU):
            slope = inspection.slope_of(layer)
        is_elu = isinstance(layer, tf.keras.layers.ELU)
        low = -float(slope) * (1.0 if is_elu else high)
        inner = type(layer).from_config(layer.get_config())
        return QuantActivation(inner, bits, (low, high), **options)

    def report(self, layer: tf.keras.layers.Layer) -> LayerReport:
        """Returns what was done with a layer."""
        converted = self(layer)
        kernels = [v for v in converted.weights if hasattr(v, "quantized_kernel")]
        bits = getattr(converted, "bit_width", self.bits_by_layer[id(layer)])
        remarks = []
        if id(layer) in self.excluded:
            remarks.append("excluded")
        elif inspection.has_constraint(layer):
            remarks.append("a kernel constraint acts on float weights")
        elif isinstance(layer, inspection.FLOAT_BY_DESIGN):
            remarks.append("few weights")
        elif (
            layer.weights
            and not kernels
            and not inspection.is_activation_layer(converted)
        ):
            known = inspection.count_kernel_weights(layer)
            is_wanted = self.bits_by_layer[id(layer)] is not None
            if is_wanted and known:
                remarks.append("no quantized form: add_weight has none of these names")
            else:
                remarks.append("bit_width=None" if known else "no quantized form")
        activation = getattr(converted, "activation", None)
        activation_bits = getattr(activation, "bits", None)
        if self.activation_bits is not None and activation_bits is None:
            name = inspection.float_activation(layer)
            if name:
                remarks.append(f"activation {name} in float")
        return LayerReport(
            layer.name,
            type(layer).__name__,
            inspection.count_weights(layer),
            type(converted).__name__,
            bits if kernels else None,
            activation_bits,
            "; ".join(remarks),
        )


def _made_again(form: Any, config: dict[str, Any]) -> tf.keras.layers.Layer:
    """Returns a layer of a configuration; ValueError says why if it cannot be."""
    try:
        return form.from_config(config)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{config['name']} cannot be copied: {reason}") from None


def _is_open(activation: Any) -> bool:
    """Returns whether it is a quantized activation of a function without a limit."""
    if not isinstance(activation, ActivationOfBits):
        return False
    _, high = range_of(activation.function) or (0.0, None)
    return high != 1.0 and activation.function is not tf.nn.relu6


def _has_levels_of(kernel: QuantizedKernel, other: QuantizedKernel) -> bool:
    """Returns whether codes and scale mean the same weights in both kernels."""
    same_bits = int(kernel.bit_width) == int(other.bit_width)
    same_names = kernel.representation.name == other.representation.name
    return same_bits and same_names and kernel.scale.shape == other.scale.shape


def _copy_weights(source: tf.keras.layers.Layer, target: tf.keras.layers.Layer) -> None:
    """Copies or quantizes the weights of a layer into its converted form."""
    targets = inspection.logical_weights(target)
    if not targets:  # Adapted statistics have become arguments.
        return
    for one, other in zip(inspection.logical_weights(source), targets):
        ours = getattr(one, "quantized_kernel", None)
        kernel = getattr(other, "quantized_kernel", None)
        if kernel is None:
            other.assign(one)
        elif ours is not None and _has_levels_of(kernel, ours):
            for name in ("codes", "scale"):
                getattr(kernel, name).assign(getattr(ours, name))
        else:
            kernel.quantize(one if ours is None else ours.value())
