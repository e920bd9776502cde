"""Conversion of Keras models into quantized ones.

Kernels of the layers in `QUANTIZED_FORMS` become integer codes, also inside of wrappers
such as Bidirectional; activations of known range get k bits. All else is copied, and
named in the report.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Callable, Union

import tensorflow as tf
from absl import logging

from tff_fedmpq.keras import layers as quant_layers
from tff_fedmpq.keras.layers import QUANTIZED_FORMS, QuantizedLayer
from tff_fedmpq.keras.optimizers import IntegerSGD
from tff_fedmpq.keras.quantization_report import (
    LayerReport,
    QuantizationReport,
    warn_of_float_parts,
)
from tff_fedmpq.keras.quantized_kernel import check_weights
from tff_fedmpq.quantization import activations, representations, scales

# A layer's name, in which * stands for anything, its type, or a function of the layer.
Selector = Union[str, type, Callable[[Any], bool]]

# Layers with few weights, which stay in float by design.
_FLOAT_BY_DESIGN = (
    tf.keras.layers.BatchNormalization,
    tf.keras.layers.GroupNormalization,
    tf.keras.layers.LayerNormalization,
    tf.keras.layers.Normalization,
)
# Layers that save the layers that they wrap.
_WRAPPERS = (
    tf.keras.layers.Wrapper,
    tf.keras.layers.StackedRNNCells,
)
_ACTIVATION_LAYERS = (
    tf.keras.layers.ELU,
    tf.keras.layers.LeakyReLU,
    tf.keras.layers.PReLU,
    tf.keras.layers.ThresholdedReLU,
)
_KERNELS = ("kernel", "recurrent", "depthwise", "pointwise", "embeddings")
# Keras does not export the class of functional models, the base of Sequential.
_FUNCTIONAL = tf.keras.Sequential.__bases__[0]
# Offset binary has a zero level: it is chosen where it has less than this share of the
# squared error, as for sparse weights or outliers.
_LESS_ERROR = 0.8


def quantize_model(
    model: tf.keras.Model,
    bit_width: Any = 8,
    activation_bits: int | None = None,
    *,
    exclude: Selector | Iterable[Selector] = (),
    representation: str | None = None,
    scale_rule: str = "least_squares",
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
    Quantized layers get the new bits. Other models raise TypeError, arguments out of
    range ValueError.

    Args:
      model: Model to convert, with weights; it is not changed.
      bit_width: Bits per weight of every kernel, 1 to 8; None leaves kernels in float.
        Also a function of a layer, or a mapping such as ``{"stem": 8, "head*": None,
        tf.keras.layers.Dense: 4}``, whose first key that fits decides, else 8.
      activation_bits: Bits of activations, 1 to 8; None leaves them float.
      exclude: Layers that are copied as they are: names, types or functions.
      representation: Meaning of the codes: "sign_magnitude" or "offset_binary"; None
        is the former, but the latter for a layer where it has far less error.
      scale_rule: Choice of scales: "least_squares", "gaussian" or "max".
      per_channel: Whether each output channel has a scale, which is counted, instead of
        each kernel; None means in depthwise kernels.
      activation_range: Largest output of ReLUs, and of others without an upper limit.
      calibration_data: Inputs of the model, a batch or a dataset of batches; the ranges
        of activations without limits become what is found there.
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
    default = representations.SIGN_MAGNITUDE.name
    is_rule = callable(bit_width) or isinstance(bit_width, Mapping)
    quant_layers.check_options(
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
    if not model.built:
        raise ValueError(f"{model.name} has no weights: build it, or give it an Input.")
    layers = _leaf_layers(model)
    if isinstance(exclude, (str, type)) or callable(exclude):
        exclude = [exclude]
    bits_by_layer = _bit_widths(layers, bit_width, tuple(exclude))
    num_weights = sum(_num_kernel_weights(layer) for layer in layers)
    convert = _Converter(
        options={
            "representation": representation or default,
            "scale_rule": scale_rule,
            "per_channel": per_channel,
            "lasso_per_weight": lasso / max(num_weights, 1),
        },
        bits_by_layer=bits_by_layer,
        excluded=frozenset(id(x) for x in layers if _fits_any(x, exclude)),
        activation_bits=activation_bits,
        activation_range=activation_range,
        chooses_representation=representation is None and copy_weights,
        dtype_policy=dtype_policy,
        output_ids=frozenset(_output_ids(model)),
    )
    quantized = tf.keras.models.clone_model(model, clone_function=convert)
    if copy_weights:
        for layer in layers:
            if layer.weights:
                _copy_weights(layer, convert(layer))
    known = (layer for layer in layers if id(layer) in convert.converted)
    report = QuantizationReport(tuple(map(convert.report, known)))
    quantized.quantization_report = report
    quantizers = convert.open_activations()
    is_chosen = activation_range is not None or calibration_data is not None
    num_clipped = 0 if is_chosen else len(quantizers)
    warn_of_float_parts(report, is_rule or bit_width is not None, num_clipped)
    logging.info("quantize_model:\n%s", report)
    if calibration_data is not None:
        _calibrate(quantized, calibration_data, quantizers)
    quantized.__class__ = _refusing_optimizers(type(quantized))
    return quantized


def load_float_weights(model: tf.keras.Model, source: tf.keras.Model) -> None:
    """Sets a quantized model to the weights of the float model it was made from."""
    for layer, target in zip(_leaf_layers(source), _leaf_layers(model)):
        _copy_weights(layer, target)


def _calibrate(model: tf.keras.Model, data: Any, quantizers: list[Any]) -> None:
    """Sets ranges of activations to what a batch, or batches, of inputs give."""
    for quantizer in quantizers:
        quantizer.observed = (0.0, 0.0)
    for batch in data if isinstance(data, (tf.data.Dataset, Iterator)) else [data]:
        model(batch, training=False)
    for quantizer in quantizers:
        low, high = quantizer.observed
        if high > 0:
            quantizer.limits = low, high
        quantizer.observed = None


@dataclasses.dataclass(frozen=True)
class _Converter:
    """Maps a layer to its quantized form, or to a plain copy."""

    options: dict[str, Any]  # Of quantized layers.
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
            parts = (converted, *converted.submodules)
            quantizers = (getattr(part, "activation", None) for part in parts)
            if id_ not in self.limited and not isinstance(converted, tf.keras.Model):
                found += [q for q in quantizers if _is_open(q)]
        return found

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
        if id(layer) in self.excluded:
            return type(layer).from_config(config)
        bits = self.bits_by_layer[id(layer)]
        if isinstance(layer, QuantizedLayer):
            config["bit_width"] = bits or config["bit_width"]
            return type(layer).from_config(config)
        if type(layer) in QUANTIZED_FORMS:
            config.update(self._options_of(layer, bits))
            if self._quantizes_activation_of(layer):
                config["activation_bits"] = self.activation_bits
                config["activation_range"] = self._range_of(layer.activation)
            converted = QUANTIZED_FORMS[type(layer)].from_config(config)
            converted.has_initial_weights = False
            return converted
        activation = self._quantized_activation(layer, config.get("dtype"))
        if activation is not None:
            return activation
        copy = type(layer).from_config(config)
        if _is_wrapper(layer) and _num_kernel_weights(layer):
            options = self._options_of(layer, bits)
            quant_layers.quantize_parts(copy, options, self.activation_bits)
            for part in copy.submodules:
                if bits is not None and isinstance(part, QuantizedLayer):
                    part.change_bit_width(bits)
        return copy

    def _options_of(
        self, layer: tf.keras.layers.Layer, bits: int | None
    ) -> dict[str, Any]:
        """Returns the arguments of a layer's quantized form."""
        options = {**self.options, "bit_width": bits, "lasso_strength": 0.0}
        own = getattr(QUANTIZED_FORMS.get(type(layer)), "_kernel_names", ())
        if len(own) == len(_kernels(layer)):  # Else it is made of layers.
            per_weight, options["lasso_per_weight"] = options["lasso_per_weight"], 0.0
            options["lasso_strength"] = per_weight * _num_kernel_weights(layer)
        if self.chooses_representation and bits is not None:
            options["representation"] = _representation_of(layer, bits, options)
        return options

    def _quantizes_activation_of(self, layer: tf.keras.layers.Layer) -> bool:
        if self.activation_bits is None:
            return False
        if not quant_layers.can_quantize_activation(layer):
            return False
        is_relu = layer.activation in quant_layers.RELU_FUNCTIONS
        return is_relu or id(layer) not in self.output_ids

    def _range_of(self, function: Any) -> tuple[float, float] | None:
        """Returns the range of an activation function; None is its default."""
        low, high = quant_layers.range_of(function) or (-1.0, activations.CLIP_VALUE)
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
        if _is_relu_layer(layer):
            limit = self.activation_range if id(layer) not in self.limited else None
            limit = limit or activations.CLIP_VALUE
            return quant_layers.QuantReLU(bits, limit, **options)
        is_function = isinstance(layer, tf.keras.layers.Activation)
        if is_function and self._quantizes_activation_of(layer):
            limits = self._range_of(layer.activation)
            return quant_layers.QuantActivation(
                layer.activation, bits, limits, **options
            )
        is_relu = isinstance(layer, tf.keras.layers.ReLU)
        if not is_relu and not isinstance(layer, _ACTIVATION_LAYERS):
            return None
        high = getattr(layer, "max_value", None)
        high = float(high or self.activation_range or activations.CLIP_VALUE)
        slope = getattr(layer, "negative_slope", getattr(layer, "alpha", 0.0))
        if isinstance(layer, tf.keras.layers.PReLU):
            with tf.init_scope():  # In a graph, of a model that was built before.
                slope = float(tf.reduce_max(tf.abs(layer.alpha)))
        is_elu = isinstance(layer, tf.keras.layers.ELU)
        low = -float(slope) * (1.0 if is_elu else high)
        inner = type(layer).from_config(layer.get_config())
        return quant_layers.QuantActivation(inner, bits, (low, high), **options)

    def report(self, layer: tf.keras.layers.Layer) -> LayerReport:
        """Returns what was done with a layer."""
        converted = self(layer)
        kernels = [v for v in converted.weights if hasattr(v, "quantized_kernel")]
        bits = getattr(converted, "bit_width", self.bits_by_layer[id(layer)])
        remarks = []
        if id(layer) in self.excluded:
            remarks.append("excluded")
        elif _has_constraint(layer):
            remarks.append("a kernel constraint acts on float weights")
        elif isinstance(layer, _FLOAT_BY_DESIGN):
            remarks.append("few weights")
        elif layer.weights and not kernels and not _is_activation(converted):
            known = _num_kernel_weights(layer)
            remarks.append("bit_width=None" if known else "no quantized form")
        activation = getattr(converted, "activation", None)
        activation_bits = getattr(activation, "bits", None)
        if self.activation_bits is not None and activation_bits is None:
            name = _float_activation(layer)
            if name:
                remarks.append(f"activation {name} in float")
        return LayerReport(
            layer.name,
            type(layer).__name__,
            sum(v.shape.num_elements() for v in layer.weights),
            type(converted).__name__,
            bits if kernels else None,
            activation_bits,
            "; ".join(remarks),
        )


def _bit_widths(
    layers: list[tf.keras.layers.Layer], rule: Any, exclude: tuple[Selector, ...]
) -> dict[int, int | None]:
    """Returns each layer's bit-width by a rule of `quantize_model`; None is float."""
    mapping = rule if isinstance(rule, Mapping) else {}
    for selector in (*mapping, *exclude):
        if isinstance(selector, str) and not any(_fits(x, selector) for x in layers):
            names = ", ".join(layer.name for layer in layers[:10])
            raise ValueError(f"No layer is called {selector!r}; layers are {names}.")

    def bits_of(layer: tf.keras.layers.Layer) -> int | None:
        # A float layer of ours was left so on purpose: only its own rule changes it.
        is_kept = isinstance(layer, QuantizedLayer) and layer.bit_width is None
        default = None if is_kept else representations.MAX_BIT_WIDTH
        bits = None if is_kept else rule
        if isinstance(rule, Mapping):
            bits = next((b for s, b in rule.items() if _fits(layer, s)), default)
        elif callable(rule):
            bits = rule(layer) if _num_kernel_weights(layer) else None
        if bits is None or _has_constraint(layer) or _fits_any(layer, exclude):
            return None
        return representations.check_bit_width(bits, f"bit_width of {layer.name}")

    return {id(layer): bits_of(layer) for layer in layers}


def _fits(layer: tf.keras.layers.Layer, selector: Selector) -> bool:
    """Returns whether a selector means a layer."""
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(layer.name, selector)
    if isinstance(selector, type):
        return isinstance(layer, selector)
    return bool(selector(layer))


def _fits_any(layer: tf.keras.layers.Layer, selectors: Iterable[Selector]) -> bool:
    return any(_fits(layer, selector) for selector in selectors)


def _is_wrapper(layer: tf.keras.layers.Layer) -> bool:
    return isinstance(layer, _WRAPPERS) or type(layer) is tf.keras.layers.RNN


def _is_activation(layer: tf.keras.layers.Layer) -> bool:
    return isinstance(layer, (quant_layers.QuantActivation, *_ACTIVATION_LAYERS))


def _has_constraint(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether a kernel of a layer with a quantized form has a constraint."""
    names = (f"{prefix}{kind}_constraint" for kind in _KERNELS for prefix in ("", "_"))
    is_constrained = any(vars(layer).get(name) is not None for name in names)
    parts = (
        part for part in layer.submodules if isinstance(part, tf.keras.layers.Layer)
    )
    return is_constrained or any(_has_constraint(part) for part in parts)


def _kernels(layer: tf.keras.layers.Layer) -> list[Any]:
    """Returns the weights that can be quantized, or are codes, of a layer's parts."""
    is_known = type(layer) in QUANTIZED_FORMS or isinstance(layer, QuantizedLayer)
    found = []
    for part in (layer, *layer.submodules) if is_known or _is_wrapper(layer) else ():
        form: Any = QUANTIZED_FORMS.get(type(part), type(part))
        if (
            issubclass(form, QuantizedLayer) and part.built
        ):  # A wrapper's pattern isn't.
            quantized = vars(part).get("quantized_kernels", {})
            for name in form._kernel_names:
                kernel = quantized.get(name)
                found.append(kernel.codes if kernel else getattr(part, name))
    return list({id(kernel): kernel for kernel in found}.values())


def _num_kernel_weights(layer: tf.keras.layers.Layer) -> int:
    return sum(kernel.shape.num_elements() for kernel in _kernels(layer))


def _representation_of(
    layer: tf.keras.layers.Layer, bits: int, options: dict[str, Any]
) -> str:
    """Returns the name of the representation with a layer's least squared error."""
    kernels = [kernel for kernel in _kernels(layer) if kernel.dtype.is_floating]
    rule, bit_width = scales.get_scale_rule(options["scale_rule"]), tf.constant(bits)

    def error_of(representation: representations.Representation) -> float:
        total = 0.0
        for kernel in kernels:
            weights = tf.convert_to_tensor(kernel, tf.float32)
            check_weights(weights, layer.name)
            scale = rule(weights, bit_width, representation)
            codes = representation.quantize(weights, scale, bit_width)
            restored = representation.dequantize(codes, scale, bit_width)
            total += float(tf.reduce_sum(tf.math.squared_difference(weights, restored)))
        return total

    default, other = representations.SIGN_MAGNITUDE, representations.OFFSET_BINARY
    is_better = error_of(other) < _LESS_ERROR * error_of(default)
    return other.name if is_better else default.name


def _is_open(activation: Any) -> bool:
    """Returns whether it is a quantized activation of a function without a limit."""
    if not isinstance(activation, quant_layers.ActivationOfBits):
        return False
    _, high = quant_layers.range_of(activation.function) or (0.0, None)
    return high != 1.0 and activation.function is not tf.nn.relu6


def _float_activation(layer: tf.keras.layers.Layer) -> str:
    """Returns the name of an activation that has no quantized form here, or ""."""
    if isinstance(layer, (tf.keras.layers.ReLU, tf.keras.layers.Softmax)):
        return type(layer).__name__.lower()
    if isinstance(layer, _ACTIVATION_LAYERS):
        return type(layer).__name__
    function = getattr(layer, "function", None)  # Lambda layers and operations.
    name = getattr(function, "__name__", "")
    if name in activations.RANGES:
        return name
    activation: Any = getattr(layer, "activation", None)
    if activation in (None, tf.keras.activations.linear):
        return ""
    return getattr(activation, "__name__", type(activation).__name__)


def _refusing_optimizers(base: Any) -> type:
    """Returns the class of a quantized model, which refuses Keras's own optimizers."""
    if hasattr(base, "refuses_optimizers"):
        return base

    def compile(self, optimizer="rmsprop", *args, **kwargs):  # noqa: A001
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        has_codes = any(hasattr(v, "quantized_kernel") for v in self.weights)
        if has_codes and not isinstance(inner, IntegerSGD):
            name = inner if isinstance(inner, str) else type(inner).__name__
            raise ValueError(
                f"{name} cannot train integer codes: compile quantized models with "
                "tff_fedmpq.IntegerSGD, for its float weights too."
            )
        if has_codes:
            quant_layers.check_strategy(self.name)
        return base.compile(self, optimizer, *args, **kwargs)

    def set_weights(self, weights):
        quant_layers.check_codes(self.weights, weights)
        base.set_weights(self, weights)

    attributes = {
        "compile": compile,
        "set_weights": set_weights,
        "refuses_optimizers": True,
        "__doc__": base.__doc__,
        "__module__": base.__module__,  # Keras saves it as its own class.
    }
    return type(base.__name__, (base,), attributes)


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
    """Returns whether the layer is a ReLU or, like QuantReLU, a clipped one."""
    if isinstance(layer, tf.keras.layers.ReLU):
        is_plain = not layer.negative_slope and not layer.threshold
        return bool(is_plain and layer.max_value in (None, activations.CLIP_VALUE))
    is_activation = isinstance(layer, tf.keras.layers.Activation)
    return is_activation and layer.activation in quant_layers.RELU_FUNCTIONS


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


def _copy_weights(source: tf.keras.layers.Layer, target: tf.keras.layers.Layer) -> None:
    """Copies or quantizes the weights of a layer into its converted form."""
    targets = _logical_weights(target)
    if not targets:  # Adapted statistics have become arguments.
        return
    for one, other in zip(_logical_weights(source), targets):
        ours = getattr(one, "quantized_kernel", None)
        kernel = getattr(other, "quantized_kernel", None)
        if kernel is None:
            other.assign(one)
        elif ours is not None and int(ours.bit_width) == int(kernel.bit_width):
            for name in ("codes", "scale"):
                getattr(kernel, name).assign(getattr(ours, name))
        else:
            kernel.quantize(one if ours is None else ours.value())


def _logical_weights(layer: tf.keras.layers.Layer) -> list[tf.Variable]:
    """Returns the weights of a layer, without scales and bit-widths of its codes."""
    kernels = [getattr(v, "quantized_kernel", None) for v in layer.weights]
    extra = {id(v) for k in kernels if k for v in (k.scale, k.bit_width)}
    return [v for v in layer.weights if id(v) not in extra]
