"""Multiply-accumulates of a model's kernels, and an estimate of their energy.

Energy per operation: M. Horowitz, "Computing's energy problem (and what we can do about
it)", ISSCC 2014, for 45 nm: an integer multiplication takes 0.2 pJ at 8 bits and 3.1 pJ
at 32, a float32 one 3.7; an addition 0.1 pJ in int32 and 0.9 in float32; reading 32
bits from an 8 kB memory 5 pJ. As 8 and 32 bits show, the energy of a multiplication
grows with the product of its operands' bits, which is taken for other bits here.

Activations are taken as 8 bits, as device runtimes have them, and each weight is read
once. The memory of activations, and sums without kernels, as in attention, are left
out: the estimate compares bit-widths, it does not predict a battery.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.inspection import inner_model
from tff_fedmpq.keras.layers import parts_of

_ACTIVATION_BITS = 8
_MULTIPLY, _ADD, _READ = 3.1, 0.1, 5.0  # pJ, of 32-bit integers.
_FLOAT_MULTIPLY_ADD = 3.7 + 0.9


def energy(macs: int, num_weights: int, bit_width: int) -> float:
    """Returns an estimate in nanojoules; 32 bits are float32."""
    operation = _MULTIPLY * bit_width * _ACTIVATION_BITS / 32**2 + _ADD
    if bit_width == 32:
        operation = _FLOAT_MULTIPLY_ADD
    return 1e-3 * (macs * operation + num_weights * _READ * bit_width / 32)


def macs_by_kernel(model: tf.keras.Model, times: int = 1) -> dict[int, int]:
    """Returns multiply-accumulates of one example by the id of a kernel's codes.

    An axis of unknown length, as of words, counts as one position; `times` is how often
    the model is called.
    """
    found = {}
    for layer in model.layers:
        inner = inner_model(layer)
        if inner is not None:
            steps = 1 if inner is layer else _size(_shape(layer, "input_shape")[1:2])
            found.update(macs_by_kernel(inner, times * steps))
            continue
        for part in parts_of(layer):
            for kernel in vars(part).get("quantized_kernels", {}).values():
                positions = times * _positions(layer, part, kernel)
                found[id(kernel.codes)] = kernel.size * positions
    return found


def _positions(layer: Any, part: Any, kernel: Any) -> int:
    """Returns how often a weight of a layer's part is used in one example."""
    layers = tf.keras.layers
    if isinstance(part, layers.Embedding):
        return 0
    given, got = (_shape(layer, name) for name in ("input_shape", "output_shape"))
    if isinstance(layer, (layers.RNN, layers.Bidirectional)):
        return _size(given[1:2])  # Steps in time.
    if isinstance(part, layers.EinsumDense) and part is layer:
        labels = part.equation.replace("->", ",").replace(" ", "").split(",")
        sizes = zip(labels[1], kernel.codes.shape)
        return _size(got[1:]) // _size([n for label, n in sizes if label in labels[2]])
    if type(layer).__name__.endswith("Transpose"):
        got = given
    channels_first = getattr(layer, "data_format", "") == "channels_first"
    return _size(got[2:] if channels_first else got[1:-1])


def _shape(layer: Any, name: str) -> tuple[int | None, ...]:
    """Returns a layer's shape where it is called first; () if it never was."""
    if not layer.inbound_nodes:
        return ()
    shape: Any = getattr(layer.inbound_nodes[0], f"{name}s")
    while isinstance(shape, (list, dict)) and shape:
        shape = list(shape.values())[0] if isinstance(shape, dict) else shape[0]
    return tuple(shape)


def _size(axes: Any) -> int:
    return int(np.prod([axis or 1 for axis in axes], dtype=np.int64))
