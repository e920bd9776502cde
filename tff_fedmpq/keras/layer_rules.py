"""Rules that choose bits for the layers of a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Union

import tensorflow as tf

from tff_fedmpq.keras import inspection
from tff_fedmpq.keras.layers import QuantizedLayer, parts_of
from tff_fedmpq.quantization import representations

# A layer, its name, in which * stands for anything, its type or that of the layer in a
# wrapper, or a function of the layer.
Selector = Union[str, type, tf.keras.layers.Layer, Callable[[Any], bool]]


def bit_widths_of(
    layers: list[tf.keras.layers.Layer], rule: Any, exclude: tuple[Selector, ...]
) -> dict[int, int | None]:
    """Returns each layer's bit-width by a rule of `quantize_model`; None is float."""
    mapping = rule if isinstance(rule, Mapping) else {}
    for selector in (*mapping, *exclude):
        if not (isinstance(selector, str) or callable(selector)):
            raise TypeError(
                f"A layer is chosen by name, type or function; found {selector!r}."
            )
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
            bits = rule(layer) if inspection.count_kernel_weights(layer) else None
        if bits is None or inspection.has_constraint(layer) or fits_any(layer, exclude):
            return None
        return representations.check_bit_width(bits, f"bit_width of {layer.name}")

    return {id(layer): bits_of(layer) for layer in layers}


def _fits(layer: tf.keras.layers.Layer, selector: Selector) -> bool:
    """Returns whether a selector means a layer."""
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(layer.name, selector)
    if isinstance(selector, type):
        parts = parts_of(layer) if inspection.is_wrapper(layer) else [layer]
        return any(isinstance(part, selector) for part in parts)
    if isinstance(selector, tf.keras.layers.Layer):
        return layer is selector
    return bool(selector(layer))


def fits_any(layer: tf.keras.layers.Layer, selectors: Iterable[Selector]) -> bool:
    """Returns whether one of the selectors means a layer."""
    return any(_fits(layer, selector) for selector in selectors)
