"""Questions about the layers of any Keras model, which its conversion asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

from tff_fedmpq.keras.activation_layers import RELU_FUNCTIONS, QuantActivation
from tff_fedmpq.keras.layers import QUANTIZED_FORMS, QuantizedLayer, parts_of
from tff_fedmpq.quantization import activations

_LOOKUPS = (
    tf.keras.layers.IntegerLookup,
    tf.keras.layers.StringLookup,
    tf.keras.layers.TextVectorization,
)
# Layers with few weights, which stay in float by design.
FLOAT_BY_DESIGN = (
    *_LOOKUPS,
    tf.keras.layers.BatchNormalization,
    tf.keras.layers.GroupNormalization,
    tf.keras.layers.LayerNormalization,
    tf.keras.layers.Normalization,
)
_WRAPPERS = (tf.keras.layers.Wrapper, tf.keras.layers.StackedRNNCells)
ACTIVATION_LAYERS = (
    tf.keras.layers.ELU,
    tf.keras.layers.LeakyReLU,
    tf.keras.layers.PReLU,
    tf.keras.layers.ThresholdedReLU,
)
_LEAST_SLOPE = 0.25
_KERNELS = ("kernel", "recurrent", "depthwise", "pointwise", "embeddings")
# Keras does not export the class of functional models, the base of Sequential.
FUNCTIONAL = tf.keras.Sequential.__bases__[0]


def leaf_layers(model: tf.keras.Model) -> list[Any]:
    """Returns the layers of a model and of its inner models, each once."""
    leaves: list[Any] = []
    for layer in model.layers:
        inner = inner_model(layer)
        leaves += [layer] if inner is None else leaf_layers(inner)
    return list({id(layer): layer for layer in leaves}.values())


def inner_model(layer: tf.keras.layers.Layer) -> Any:
    """Returns the model that a layer is, or that a wrapper holds; None without one."""
    inner = layer.layer if isinstance(layer, tf.keras.layers.Wrapper) else layer
    return inner if isinstance(inner, FUNCTIONAL) else None


def check_nodes(model: tf.keras.Model) -> None:
    """Raises ValueError for operations on variables, which a copy cannot have."""
    for layer in model.layers:
        for node in layer.inbound_nodes:
            for value in tf.nest.flatten((node.call_args, node.call_kwargs)):
                if isinstance(value, tf.Variable):
                    raise ValueError(
                        f"{layer.name} takes {value.name} of another layer, which "
                        "copies and files of a model cannot: make one layer of both."
                    )


def output_ids(model: tf.keras.Model) -> Iterator[int]:
    """Yields the ids of layers that give a model's output, also in inner models."""
    outputs = {id(tensor) for tensor in model.outputs}
    for layer in model.layers:
        # Any call of a layer may give an output.
        calls = map(layer.get_output_at, range(len(layer.inbound_nodes)))
        if not outputs.isdisjoint(map(id, tf.nest.flatten(list(calls)))):
            inner = inner_model(layer)
            yield from [id(layer)] if inner is None else output_ids(inner)


def kernels_of(layer: tf.keras.layers.Layer) -> list[Any]:
    """Returns the weights that can be quantized, or are codes, of a layer's parts."""
    return [kernel for kernel, _, _ in kernels_and_forms(layer)]


def kernels_and_forms(layer: tf.keras.layers.Layer) -> list[tuple[Any, str, Any]]:
    """Returns `kernels_of`, each with its name and the quantized form of its layer."""
    is_known = type(layer) in QUANTIZED_FORMS or isinstance(layer, QuantizedLayer)
    found = []
    for part in parts_of(layer) if is_known or is_wrapper(layer) else ():
        form: Any = QUANTIZED_FORMS.get(type(part), type(part))
        # The pattern that a wrapper holds is not built.
        if issubclass(form, QuantizedLayer) and part.built:
            quantized = vars(part).get("quantized_kernels", {})
            for name in form._kernel_names:
                kernel = quantized.get(name)
                kernel = kernel.codes if kernel else getattr(part, name)
                found.append((kernel, name, form))
    return list({id(row[0]): row for row in found}.values())


def count_kernel_weights(layer: tf.keras.layers.Layer) -> int:
    """Returns the number of weights in `kernels_of`."""
    return sum(kernel.shape.num_elements() for kernel in kernels_of(layer))


def count_weights(layer: tf.keras.layers.Layer) -> int:
    """Returns the number of all weights of a layer, without what it was adapted to."""
    variables = (v for v in layer.weights if isinstance(v, tf.Variable))
    return sum(v.shape.num_elements() or 0 for v in variables)


def logical_weights(layer: tf.keras.layers.Layer) -> list[tf.Variable]:
    """Returns the weights of a layer, without scales and bit-widths of its codes."""
    kernels = [getattr(v, "quantized_kernel", None) for v in layer.weights]
    extra = {id(v) for k in kernels if k for v in (k.scale, k.bit_width)}
    return [v for v in layer.weights if id(v) not in extra]


def has_constraint(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether a kernel of a layer with a quantized form has a constraint."""
    names = [f"{prefix}{kind}_constraint" for kind in _KERNELS for prefix in ("", "_")]
    attributes = (vars(part).get(name) for part in parts_of(layer) for name in names)
    return any(attribute is not None for attribute in attributes)


def is_wrapper(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether a layer saves the layers that it wraps, and only calls them."""
    if isinstance(layer, tf.keras.layers.SpectralNormalization):  # Assigns the kernel.
        return False
    return isinstance(layer, _WRAPPERS) or type(layer) is tf.keras.layers.RNN


def slope_of(layer: tf.keras.layers.PReLU) -> float:
    """Returns the largest slope of a PReLU, and at least room for one to be learned."""
    if not hasattr(layer.alpha.handle, "numpy"):  # Built in a graph.
        return _LEAST_SLOPE
    with context.eager_mode():  # Also in a graph, of a model that was built before.
        return max(_LEAST_SLOPE, float(tf.reduce_max(tf.abs(layer.alpha))))


def is_activation_layer(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether a layer is an activation with arguments or weights of its own."""
    return isinstance(layer, (QuantActivation, *ACTIVATION_LAYERS))


def is_relu_layer(layer: tf.keras.layers.Layer) -> bool:
    """Returns whether the layer is a ReLU or, like QuantReLU, a clipped one."""
    if isinstance(layer, tf.keras.layers.ReLU):
        is_plain = not layer.negative_slope and not layer.threshold
        return bool(is_plain and layer.max_value in (None, activations.CLIP_VALUE))
    is_activation = isinstance(layer, tf.keras.layers.Activation)
    return is_activation and layer.activation in RELU_FUNCTIONS


def float_activation(layer: tf.keras.layers.Layer) -> str:
    """Returns the name of an activation that has no quantized form here, or ""."""
    if isinstance(layer, (tf.keras.layers.ReLU, tf.keras.layers.Softmax)):
        return type(layer).__name__.lower()
    if isinstance(layer, ACTIVATION_LAYERS):
        return type(layer).__name__
    function = getattr(layer, "function", None)  # Lambda layers and operations.
    name = getattr(function, "__name__", "")
    if name in activations.RANGES:
        return name
    activation: Any = getattr(layer, "activation", None)
    if activation in (None, tf.keras.activations.linear):
        return ""
    return getattr(activation, "__name__", type(activation).__name__)


def adapted_state(layer: tf.keras.layers.Layer) -> dict[str, Any]:
    """Returns what a layer was adapted to as arguments; as weights it does nothing."""
    if isinstance(layer, _LOOKUPS):
        config = layer.get_config()
        if config["vocabulary"] is not None or not tf.executing_eagerly():
            return {}
        words = layer.get_vocabulary(include_special_tokens=False)
        if not words:
            return {}
        state = {"vocabulary": words, "has_input_vocabulary": True}
        if config["output_mode"] == "tf_idf":
            table = getattr(layer, "_lookup_layer", layer)
            weights = table.idf_weights.numpy()[table._token_start_index() :]
            state["idf_weights"] = weights[: len(words)]
        return state
    if isinstance(layer, tf.keras.layers.Discretization):
        is_adapted = layer.get_config()["num_bins"] and len(layer.bin_boundaries)
        found = {"num_bins": None, "bin_boundaries": list(layer.bin_boundaries)}
        return found if is_adapted else {}
    if not isinstance(layer, tf.keras.layers.Normalization):
        return {}
    is_known = layer.built and hasattr(layer.mean, "numpy")  # Else built in a graph.
    if layer.input_mean is not None or not is_known:
        return {}
    mean, variance = layer.mean.numpy(), layer.variance.numpy()
    if not mean.any() and (variance == 1).all():
        return {}
    shape = layer.adapt_mean.shape
    return {"mean": mean.reshape(shape), "variance": variance.reshape(shape)}
