"""Bridge to TensorFlow Model Optimization (tfmot): train there, convert here, and back.

tfmot trains float weights whose forward pass is quantized. With `BitsQuantizeConfig` a
layer gets b bits on our levels, as codes do; with `BitsQuantizeScheme` all annotated
layers do, and tfmot changes nothing else, such as where it quantizes activations::

    annotate = tfmot.quantization.keras.quantize_annotate_layer
    apply = tfmot.quantization.keras.quantize_apply
    layer = annotate(Dense(10), BitsQuantizeConfig(bit_width=2))
    trained = apply(model, BitsQuantizeScheme(bit_width=4, activation_bits=4))
    quantized = from_tfmot(trained)       # codes, with equal outputs
    again = to_tfmot(quantized)           # float weights on these levels

In training, scales follow the weights by the scale rule; then they stay.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras import (
    quantize_config,
    quantize_layer,
    quantize_layout_transform,
    quantize_registry,
    quantize_scheme,
    quantize_wrapper,
)

from tff_fedmpq.keras.activation_layers import (
    ActivationOfBits,
    QuantActivation,
    QuantReLU,
    can_quantize_activation,
    range_of,
)
from tff_fedmpq.keras.layers import QUANTIZED_FORMS, QuantizedLayer, check_options
from tff_fedmpq.quantization import activations, representations, scales

_keras: Any = tfmot.quantization.keras
_STOCK_FORMS: dict[type, Any] = {form: stock for stock, form in QUANTIZED_FORMS.items()}


class LevelQuantizer(_keras.quantizers.Quantizer):
    """Weights rounded to the levels of b bits, with a straight-through gradient."""

    def __init__(self, bit_width: int, representation: str, scale_rule: str):
        self.bit_width = representations.check_bit_width(bit_width)
        self.representation = representations.get_representation(representation)
        self.scale_rule = scale_rule

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        # Zero stands for the scale of the present weights.
        scale = layer.add_weight(
            f"{name}_scale", (), initializer="zeros", trainable=False
        )
        return {"scale": scale}

    def __call__(self, inputs, training, weights, **kwargs):
        values = tf.stop_gradient(tf.convert_to_tensor(inputs))
        scale = self.scale_of(values, weights["scale"], training)
        if training:
            weights["scale"].assign(scale)

        def levels(tensor: tf.Tensor) -> tf.Tensor:
            bits = tf.constant(self.bit_width)
            codes = self.representation.quantize(tensor, scale, bits)
            return self.representation.dequantize(codes, scale, bits)

        return tf.grad_pass_through(levels)(inputs)

    def scale_of(self, values: tf.Tensor, stored: Any, training: bool) -> tf.Tensor:
        """Returns the scale of weights, float32[]."""
        rule = scales.get_scale_rule(self.scale_rule)
        args = values, tf.constant(self.bit_width), self.representation
        if training:
            return rule(*args)
        return tf.cond(stored > 0.0, lambda: tf.identity(stored), lambda: rule(*args))

    def get_config(self) -> dict[str, Any]:
        return {
            "bit_width": self.bit_width,
            "representation": self.representation.name,
            "scale_rule": self.scale_rule,
        }


class RangeQuantizer(_keras.quantizers.Quantizer):
    """Outputs of a ReLU layer rounded to k bits."""

    def __init__(self, bits: int, clip_value: float):
        self.bits, self.clip_value = bits, clip_value

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return activations.quantize_range(
            inputs, self.bits, 0.0, self.clip_value, training
        )

    def get_config(self) -> dict[str, Any]:
        return {"bits": self.bits, "clip_value": self.clip_value}


@tf.keras.utils.register_keras_serializable("tff_fedmpq")
class BitsQuantizeConfig(_keras.QuantizeConfig):
    """How tfmot quantizes a layer: kernels of b bits, activations of k bits.

    Kernels are those of the layer's quantized form (`register_quantized_layer`), with
    one scale each; the arguments are those of `quantize_model`.
    """

    def __init__(
        self,
        bit_width: int | None = 8,
        activation_bits: int | None = None,
        representation: str = representations.SIGN_MAGNITUDE.name,
        scale_rule: str = "widening",
        activation_range: float = activations.CLIP_VALUE,
    ):
        self.options: dict[str, Any] = {
            "bit_width": bit_width,
            "activation_bits": activation_bits,
            "representation": representation,
            "scale_rule": scale_rule,
            "activation_range": activation_range,
        }
        check_options(bit_width, activation_bits, representation, scale_rule, 0.0)

    def kernel_names(self, layer: Any) -> tuple[str, ...]:
        """Returns the names of the kernels of a layer that get levels."""
        form: Any = QUANTIZED_FORMS.get(type(layer))
        is_float = form is None or self.options["bit_width"] is None
        return () if is_float else form._kernel_names

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        names = ("bit_width", "representation", "scale_rule")
        options = [self.options[name] for name in names]
        return [
            (getattr(layer, name), LevelQuantizer(*options))
            for name in self.kernel_names(layer)
        ]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        for name, weights in zip(self.kernel_names(layer), quantize_weights):
            setattr(layer, name, weights)

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return []  # tfmot would round before some functions, after others.

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        bits = self.options["activation_bits"]
        function = getattr(layer, "activation", None)
        is_new = not isinstance(function, ActivationOfBits)
        if bits is not None and is_new and can_quantize_activation(layer):
            low, high = range_of(function) or (0.0, activations.CLIP_VALUE)
            if high != 1.0:
                high = self.options["activation_range"]
            layer.activation = ActivationOfBits(function, bits, (low, high))

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        bits = self.options["activation_bits"]
        if bits is None or not isinstance(layer, tf.keras.layers.ReLU):
            return []
        return [RangeQuantizer(bits, self.options["activation_range"])]

    def get_config(self) -> dict[str, Any]:
        return dict(self.options)


class _NoTransform(quantize_layout_transform.QuantizeLayoutTransform):
    def apply(self, model: Any, layer_quantize_map: Any) -> Any:
        return model, layer_quantize_map


@dataclasses.dataclass
class _Registry(quantize_registry.QuantizeRegistry):
    options: dict[str, Any]

    def supports(self, layer: Any) -> bool:
        return True

    def get_quantize_config(self, layer: Any) -> BitsQuantizeConfig:
        return BitsQuantizeConfig(**self.options)


class BitsQuantizeScheme(quantize_scheme.QuantizeScheme):
    """Scheme of `quantize_apply`; the arguments are those of `BitsQuantizeConfig`."""

    def __init__(self, **options: Any):
        self.options = BitsQuantizeConfig(**options).get_config()

    def get_layout_transformer(self) -> Any:
        return _NoTransform()

    def get_quantize_registry(self) -> Any:
        return _Registry(self.options)


def from_tfmot(model: tf.keras.Model) -> tf.keras.Model:
    """Returns a quantized model with the outputs of one that `quantize_apply` made.

    Layers without a `BitsQuantizeConfig` are copied, as float layers; ValueError if
    tfmot quantizes them in another way.
    """
    quantized = tf.keras.models.clone_model(model, clone_function=_with_codes)
    for layer, target in zip(model.layers, quantized.layers):
        if not isinstance(layer, quantize_wrapper.QuantizeWrapper):
            target.set_weights(layer.get_weights())
            continue
        variables = {_last(v.name): v for v in (*layer.layer.weights, *layer.weights)}
        quantizers = {_last(v.name): (v, q, w) for v, q, w in layer._weight_vars}
        of_codes: set[int] = set()  # Variables of kernels, which follow their codes.
        for variable in target.trainable_weights + target.non_trainable_weights:
            kernel = getattr(variable, "quantized_kernel", None)
            if kernel is not None:
                of_codes |= {id(kernel.scale), id(kernel.bit_width)}
                weights, quantizer, stored = quantizers[_last(kernel.name)]
                values = tf.convert_to_tensor(weights)
                scale = quantizer.scale_of(values, stored["scale"], False)
                bits = kernel.bit_width
                kernel.scale.assign(scale)
                variable.assign(kernel.representation.quantize(values, scale, bits))
            elif id(variable) not in of_codes:
                variable.assign(variables[_last(variable.name)])
    return quantized


def to_tfmot(model: tf.keras.Model) -> tf.keras.Model:
    """Returns what `quantize_apply` makes, with the outputs of a quantized model.

    ValueError for scales per channel, and for layers that are made of layers.
    """
    kernels = [v for v in model.weights if hasattr(v, "quantized_kernel")]
    own = [k for layer in model.layers for k in _own_kernels(layer).values()]
    if len(own) < len(kernels) or any(k.scale.shape.rank for k in own):
        raise ValueError(
            "tfmot gets kernels with one scale each, of layers that are not wrapped."
        )
    annotated = tf.keras.models.clone_model(model, clone_function=_annotated)
    for layer, target in zip(model.layers, annotated.layers):
        values = {_last(v.name): v for v in layer.weights}
        for kernel in _own_kernels(layer).values():
            values[_last(kernel.name)] = kernel.value()
        target.set_weights([values[_last(v.name)].numpy() for v in target.weights])
    applied = _keras.quantize_apply(annotated, BitsQuantizeScheme())
    for layer, target in zip(model.layers, applied.layers):
        for kernel, (_, _, stored) in zip(
            _own_kernels(layer).values(), getattr(target, "_weight_vars", ())
        ):
            stored["scale"].assign(kernel.scale)
    return applied


def _with_codes(layer: Any) -> Any:
    """Returns the form with codes of a layer that tfmot wraps, or a copy."""
    if isinstance(layer, quantize_layer.QuantizeLayer):
        raise ValueError(
            f"{layer.name} has no BitsQuantizeConfig but tfmot's quantizer."
        )
    if not isinstance(layer, quantize_wrapper.QuantizeWrapper):
        return type(layer).from_config(layer.get_config())
    inner, how = layer.layer, layer.quantize_config
    is_output = isinstance(how, quantize_config.OutputOnlyConfig)
    how = how.quantize_config if is_output else how
    if not isinstance(how, BitsQuantizeConfig):
        raise ValueError(
            f"{inner.name} has no BitsQuantizeConfig but {type(how).__name__}."
        )
    options: dict[str, Any] = dict(how.options)
    activation: Any = getattr(inner, "activation", None)
    options["bit_width"] = None if is_output else options["bit_width"]
    bits = options["activation_bits"]
    is_rounded = isinstance(activation, ActivationOfBits)
    if is_rounded:
        inner.activation = activation.function  # Which has a name in the configuration.
    config = inner.get_config()
    if is_rounded:
        inner.activation = activation
    if bits is not None and isinstance(inner, tf.keras.layers.ReLU):
        limit = options["activation_range"]
        return QuantReLU(bits, limit, name=inner.name)
    if is_rounded and isinstance(inner, tf.keras.layers.Activation):
        function, limits = activation.function, activation.limits
        return QuantActivation(function, bits, limits, name=inner.name)
    if type(inner) not in QUANTIZED_FORMS:
        return type(inner).from_config(config)
    for name in ("bit_width", "representation", "scale_rule"):
        config[name] = options[name]
    if is_rounded:
        config.update(activation_bits=bits, activation_range=activation.limits)
    return QUANTIZED_FORMS[type(inner)].from_config(config)


def _annotated(layer: Any) -> Any:
    """Returns a layer as annotated for tfmot, or a copy of one in float."""
    config = layer.get_config()
    activation = getattr(layer, "activation", None)
    options: dict[str, Any] = {"bit_width": None}
    if isinstance(activation, ActivationOfBits):
        options["activation_bits"] = activation.bits
        options["activation_range"] = activation.limits[1]
    if isinstance(layer, QuantReLU):
        stock: Any = tf.keras.layers.ReLU(name=layer.name)
    elif isinstance(layer, QuantActivation):
        stock = tf.keras.layers.Activation(config["activation"], name=layer.name)
    elif type(layer) in _STOCK_FORMS:
        for name in ("bit_width", "representation", "scale_rule"):
            options[name] = config[name]
        stock = _STOCK_FORMS[type(layer)].from_config(_without_options(config))
    else:
        return type(layer).from_config(config)
    return _keras.quantize_annotate_layer(stock, BitsQuantizeConfig(**options))


def _without_options(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a stock layer, of its quantized form's."""
    ours = inspect.getfullargspec(QuantizedLayer.__init__).kwonlyargs
    return {name: value for name, value in config.items() if name not in ours}


def _own_kernels(layer: Any) -> dict[str, Any]:
    return vars(layer).get("quantized_kernels", {})


def _last(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(":0")
