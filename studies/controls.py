"""Allocation policies that serve as controls in the studies."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.representations import MAX_BIT_WIDTH, MIN_BIT_WIDTH


def outer_layers_at_8(
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: tf.Tensor,
) -> tf.Tensor:
    """Gives the first and last layer 8 bits, the others even shares of what remains.

    An `AllocationPolicy` that depends on layer sizes and budgets only. The outer layers
    have 8 bits or, where the others would fall below 1 bit, the largest common
    bit-width that the budget allows. Bit-widths of the others differ by at most 1; the
    larger layers are raised first, which leaves the fewest weights at the lower
    bit-width.

    Args:
      mean_bit_widths: Has no effect.
      bit_reductions: Has no effect.
      layer_sizes: Weights per layer, int64[L].
      budgets: Mean bits per weight, float64[N].

    Returns:
      int32[N, L] from 1 to 8, each row within its budget.
    """
    del mean_bit_widths, bit_reductions
    sizes = [int(size) for size in layer_sizes]
    outer = {0, len(sizes) - 1}
    outer_size = sum(sizes[i] for i in outer)
    inner_size = sum(sizes) - outer_size

    capacity = tf.cast(tf.floor(budgets * sum(sizes)), tf.int64)
    affordable = (capacity - MIN_BIT_WIDTH * inner_size) // outer_size
    outer_width = tf.minimum(affordable, MAX_BIT_WIDTH)
    left = capacity - outer_width * outer_size
    # Without inner layers, any divisor will do.
    inner_width = tf.minimum(left // max(inner_size, 1), MAX_BIT_WIDTH)
    left -= inner_width * inner_size
    widths = [outer_width if i in outer else inner_width for i in range(len(sizes))]
    for layer in sorted(set(range(len(sizes))) - outer, key=lambda i: (-sizes[i], i)):
        is_raised = (inner_width < MAX_BIT_WIDTH) & (left >= sizes[layer])
        widths[layer] += tf.cast(is_raised, tf.int64)
        left -= tf.where(is_raised, tf.constant(sizes[layer], tf.int64), 0)
    return tf.cast(tf.stack(widths, axis=1), tf.int32)
