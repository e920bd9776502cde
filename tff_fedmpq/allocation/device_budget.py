"""Bits per weight that fit on a device and its link: from kilobytes to budgets.

A model of b bits per weight takes ``sum(m) b / 8`` bytes of codes and, whatever b is,
four bytes for each scale, bias, number of BatchNorm and other float weight. A kilobyte
has 1,000 bytes here. What may bind:

* ``flash``: the stored model.
* ``ram``: the model beside the input and output of the layer that needs most, in
  float32, which a device computes with.
* ``uplink``: the model, which is sent within a round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.conversion import quantize_model
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.lookup import kilobytes_of
from tff_fedmpq.quantization.representations import MAX_BIT_WIDTH, MIN_BIT_WIDTH

_FLOAT_BYTES = 4
_KILO = 1000.0


@dataclasses.dataclass(frozen=True)
class DeviceBudget:
    """Bits per weight that a device bears; its string says what binds.

    Attributes:
      bits: Average bits per weight, 1 to 8: a budget of `build_fedmpq`.
      binds: What allows no more bits: "flash", "ram", "uplink", or "" at 8 bits.
      code_bytes: Bytes of codes at these bits.
      float_bytes: Bytes of scales and float weights, BatchNorm's among them.
      activation_bytes: Bytes of the largest layer's input and output.
      limits: Bits that each limit alone would allow.
    """

    bits: float
    binds: str
    code_bytes: float
    float_bytes: int
    activation_bytes: int
    limits: Mapping[str, float]

    def __str__(self) -> str:
        allowed = ", ".join(f"{k} {bits:.2f}" for k, bits in self.limits.items())
        reason = f"{self.binds} binds" if self.binds else "nothing binds"
        return (
            f"{self.bits:.2f} bits per weight ({reason}; allowed: {allowed}): codes "
            f"{self.code_bytes:,.0f} bytes, scales and floats {self.float_bytes:,}"
        )


def budget_for(
    model: tf.keras.Model,
    *,
    flash_kb: float | None = None,
    ram_kb: float | None = None,
    uplink_kbps: float | None = None,
    seconds_per_round: float | None = None,
) -> DeviceBudget:
    """Returns the bits per weight of a model that fit on a device.

    ValueError for a model that does not fit with one bit per weight; it says what
    binds, and how much would be needed.

    Args:
      model: Float model, or a quantized one.
      flash_kb: Memory for the stored model, in kilobytes.
      ram_kb: Memory while it computes, in kilobytes.
      uplink_kbps: Speed of sending, in kilobits per second.
      seconds_per_round: Time in which the model has to be sent.
    """
    if (uplink_kbps is None) != (seconds_per_round is None):
        raise ValueError("uplink_kbps and seconds_per_round belong together.")
    if not quantized_kernels(model):
        model = quantize_model(model, MIN_BIT_WIDTH, copy_weights=False)
    kernels = quantized_kernels(model)
    codes = {id(v) for k in kernels for v in (k.codes, k.bit_width)}
    floats = (v for v in model.weights if id(v) not in codes)
    float_bytes = _FLOAT_BYTES * sum(v.shape.num_elements() for v in floats)
    num_codes = sum(kernel.size for kernel in kernels)
    activations = _activation_bytes(model)
    sent = None if uplink_kbps is None else uplink_kbps * (seconds_per_round or 0) / 8
    room = {"flash": (flash_kb, 0), "ram": (ram_kb, activations), "uplink": (sent, 0)}
    limits = {}
    for name, (kilobytes, other) in room.items():
        if kilobytes is None:
            continue
        fixed = float_bytes + other
        limits[name] = 8 * (_KILO * kilobytes - fixed) / max(num_codes, 1)
        if not limits[name] >= MIN_BIT_WIDTH:
            needed = (fixed + num_codes / 8) / _KILO
            raise ValueError(
                f"{model.name} does not fit with one bit per weight: {name} allows "
                f"{kilobytes:.4g} kB of {needed:.4g}, of which {fixed / _KILO:.4g} are "
                "no codes."
            )
    bits = min([float(MAX_BIT_WIDTH), *limits.values()])
    binds = min(limits, key=lambda name: limits[name], default="")
    binds = binds if bits < MAX_BIT_WIDTH else ""
    return DeviceBudget(
        bits, binds, num_codes * bits / 8, float_bytes, activations, limits
    )


def budgets_in_bits(
    budgets: Mapping[Any, float | str], model: tf.keras.Model
) -> dict[Any, float]:
    """Returns budgets in bits per weight, of numbers of bits and texts like "40 kB"."""
    return {
        client_id: budget_for(model, flash_kb=kilobytes_of(value)).bits
        if isinstance(value, str)
        else value
        for client_id, value in budgets.items()
    }


def _activation_bytes(model: tf.keras.Model) -> int:
    """Returns the largest bytes of a layer's inputs and outputs, of one example."""

    def size(tensors: Any) -> int:
        shapes = (tensor.shape[1:] for tensor in tf.nest.flatten(tensors))
        return sum(int(np.prod([n or 1 for n in shape])) for shape in shapes)

    nodes = (node for layer in model.layers for node in layer.inbound_nodes)
    sizes = [size(node.input_tensors) + size(node.outputs) for node in nodes]
    return _FLOAT_BYTES * max(sizes, default=0)
