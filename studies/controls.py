"""Allocation policies that serve as controls in the studies."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.representations import MAX_BIT_WIDTH, MIN_BIT_WIDTH


def outer_layers_at_8(
    bit_widths: tf.Tensor,
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: np.ndarray,
) -> tf.Tensor:
    """Gives the first and last layer 8 bits, the others even shares of what remains.

    An `AllocationPolicy` that depends on layer sizes and budgets only. It keeps each
    client within its budget, see `outer_layers_at_8_row`.
    """
    del mean_bit_widths, bit_reductions
    rows = [outer_layers_at_8_row(layer_sizes, budget) for budget in budgets]
    return tf.constant(np.stack(rows), bit_widths.dtype)


def outer_layers_at_8_row(layer_sizes: np.ndarray, budget: float) -> np.ndarray:
    """Returns one client's bit-widths.

    The outer layers have 8 bits or, where the others would fall below 1 bit, the
    largest common bit-width that the budget allows. Bit-widths of the others differ by
    at most 1; the larger layers are raised first, which leaves the fewest weights at
    the lower bit-width.

    Args:
      layer_sizes: Weights per layer, int[L].
      budget: Mean bits per weight, 1 to 8.

    Returns:
      int64[L] from 1 to 8; ``sum(layer_sizes * widths) <= budget * sum(layer_sizes)``.
    """
    sizes = np.asarray(layer_sizes, np.int64)
    capacity = int(np.floor(budget * sizes.sum()))
    outer = np.zeros(len(sizes), bool)
    outer[[0, -1]] = True
    outer_size, inner_size = int(sizes[outer].sum()), int(sizes[~outer].sum())

    affordable = (capacity - MIN_BIT_WIDTH * inner_size) // outer_size
    outer_width = min(MAX_BIT_WIDTH, affordable)
    left = capacity - outer_width * outer_size
    inner_width = min(MAX_BIT_WIDTH, left // inner_size) if inner_size else 0
    widths = np.where(outer, outer_width, inner_width)
    left -= inner_width * inner_size
    for layer in np.argsort(-sizes, kind="stable"):
        if not outer[layer] and widths[layer] < MAX_BIT_WIDTH and sizes[layer] <= left:
            widths[layer] += 1
            left -= sizes[layer]
    return widths
