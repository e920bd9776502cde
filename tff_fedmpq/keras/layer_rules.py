"""Rules that choose bits for the layers of a model."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, Callable, Union

import tensorflow as tf

from tff_fedmpq.keras import inspection
from tff_fedmpq.keras.layers import QuantizedLayer, parts_of
from tff_fedmpq.quantization import representations

# A layer, its name, in which * stands for anything, its type or that of the layer in a
# wrapper, or a function of the layer. One that means an inner model means its layers.
Selector = Union[str, type, tf.keras.layers.Layer, Callable[[Any], bool]]
_Chain = list[Any]  # A layer, and the models and wrappers that hold it.


def apply_rules(
    model: tf.keras.Model, rule: Any, exclude: tuple[Selector, ...]
) -> tuple[dict[int, int | None], frozenset[int]]:
    """Returns bit-widths by a rule of `quantize_model`, and what is excluded, by ids.

    None is float.
    """
    chains = _chains(model)
    mapping = rule if isinstance(rule, Mapping) else {}
    for selector in (*mapping, *exclude):
        if not (isinstance(selector, str) or callable(selector)):
            raise TypeError(
                f"A layer is chosen by name, type or function; found {selector!r}."
            )
        is_one = isinstance(selector, (str, tf.keras.layers.Layer))
        if is_one and not any(_fits(chain, selector) for chain in chains.values()):
            names = ", ".join(layer.name for layer, *_ in list(chains.values())[:10])
            name = getattr(selector, "name", selector)
            raise ValueError(f"No layer is called {name!r}; layers are {names}.")

    def is_excluded(chain: _Chain) -> bool:
        return any(_fits(chain, selector) for selector in exclude)

    def bits_of(chain: _Chain) -> int | None:
        layer = chain[0]
        # A float layer of ours was left so on purpose: only its own rule changes it.
        is_kept = isinstance(layer, QuantizedLayer) and layer.bit_width is None
        default = None if is_kept else representations.MAX_BIT_WIDTH
        bits = None if is_kept else rule
        if isinstance(rule, Mapping):
            bits = next((b for s, b in rule.items() if _fits(chain, s)), default)
        elif callable(rule):
            bits = rule(layer) if inspection.count_kernel_weights(layer) else None
        if bits is None or inspection.has_constraint(layer) or is_excluded(chain):
            return None
        return representations.check_bit_width(bits, f"bit_width of {layer.name}")

    bits_by_layer = {id_: bits_of(chain) for id_, chain in chains.items()}
    return bits_by_layer, frozenset(i for i, c in chains.items() if is_excluded(c))


def _chains(model: tf.keras.Model) -> dict[int, _Chain]:
    """Returns the chain of each layer, by the layer's id."""
    chains: dict[int, _Chain] = {}
    for layer in model.layers:
        inner = inspection.inner_model(layer)
        if inner is None:
            chains.setdefault(id(layer), [layer])
        for id_, chain in _chains(inner).items() if inner is not None else ():
            chains[id_] = [*chains.get(id_, ()), *chain, inner, layer]
    return chains


def _fits(chain: _Chain, selector: Selector) -> bool:
    """Returns whether a selector means a layer, or a model that holds it."""
    layer, *holders = chain
    if isinstance(selector, str):
        return any(fnmatch.fnmatchcase(each.name, selector) for each in chain)
    if isinstance(selector, type):
        parts = parts_of(layer) if inspection.is_wrapper(layer) else [layer]
        return any(isinstance(part, selector) for part in (*parts, *holders))
    if isinstance(selector, tf.keras.layers.Layer):
        return any(each is selector for each in chain)
    return bool(selector(layer))
