"""What the architecture in a packed file may name.

Keras imports the module that a configuration names, calls functions of TensorFlow by
their names, and unmarshals the bytecode of Lambda layers. Here these are refused before
Keras sees them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_MODULES: set[Any] = {
    f"keras.{name}"
    for name in (
        "activations",
        "constraints",
        "initializers",
        "layers",
        "layers.experimental",
        "layers.experimental.preprocessing",
        "mixed_precision",
        "models",
        "regularizers",
    )
}
_MODULES |= {
    f"{keras}.src.{name}"
    for keras in ("keras", "tf_keras")
    for name in ("engine.functional", "engine.sequential", "layers.core.tf_op_layer")
}
_MODULES |= {None, "builtins"}
_VALUES = {"__bytes__", "__numpy__", "__tensor__"}
_REFUSED_CLASSES = {"Lambda", "TFSMLayer", "ClassMethod", "InstanceMethod"}
_OPERATION_CLASSES = {"TFOpLambda", "SlicingOpLambda"}
# Operations on tensors, which touch nothing else.
_OPERATION_PREFIXES = ("__operators__.", "math.", "nn.", "image.", "linalg.", "signal.")
_OPERATIONS = set(
    "broadcast_to cast clip_by_value compat.v1.shape concat expand_dims gather "
    "identity one_hot ones_like pad range repeat reshape reverse shape split squeeze "
    "stack stop_gradient tile transpose unstack where zeros_like".split()
)


class UnsafeModelError(ValueError):
    """An architecture names code that is not known to be harmless."""


def check_config(config: Any) -> None:
    """Raises `UnsafeModelError` for a Keras configuration that may run foreign code."""
    if isinstance(config, dict):
        if "class_name" in config:
            _check_class(config)
        if config.get("compile_config"):
            raise UnsafeModelError("A packed model is not compiled.")
        if isinstance(config.get("vocabulary"), str):
            raise UnsafeModelError("A packed model reads no vocabulary file.")
        for value in config.values():
            check_config(value)
    elif isinstance(config, list):
        for value in config:
            check_config(value)


def _check_class(config: dict[str, Any]) -> None:
    name, module = config["class_name"], config.get("module")
    inner = config.get("config")
    if name in _VALUES:
        return
    if name in _REFUSED_CLASSES:
        raise UnsafeModelError(f"{name} layers bring code of their own.")
    if name in _OPERATION_CLASSES:
        function = inner.get("function") if isinstance(inner, dict) else inner
        if not _is_operation(function):
            raise UnsafeModelError(f"The operation {function!r} is not allowed.")
    is_function = name == "function"
    registered_name = inner if is_function else config.get("registered_name", name)
    if tf.keras.utils.get_registered_object(registered_name) is not None:
        return
    # Names of classes begin with a capital; a function would be called with tensors.
    is_known = _is_activation(inner) if is_function else name[:1].isupper()
    is_inner_model = (module, name) == ("keras", "Sequential")
    if not is_inner_model and (module not in _MODULES or not is_known):
        raise UnsafeModelError(
            f"{inner if is_function else name!r} of {module!r} is neither Keras's nor "
            "registered by register_keras_serializable."
        )


def _is_operation(name: Any) -> bool:
    """Returns whether a function of TensorFlow only computes tensors of tensors."""
    return isinstance(name, str) and (
        name in _OPERATIONS or name.startswith(_OPERATION_PREFIXES)
    )


def _is_activation(name: Any) -> bool:
    is_name = isinstance(name, str) and name not in ("deserialize", "get", "serialize")
    return is_name and hasattr(tf.keras.activations, name)
