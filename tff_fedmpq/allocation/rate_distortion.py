"""Allocation by rate and distortion: greedy marginal analysis (Fox, 1966).

Quantization at ``b`` bits leaves an error of the fraction ``D(b)`` of a layer's weight
energy; D is that of Gaussian weights at the best scale (`quantization.gaussian`). Under
BatchNorm, which follows every layer of a ResNet except the last, the output does not
depend on a layer's scale. As a heuristic, the sum of the fractions over layers,
independent of their sizes, measures the error of the output. A bit costs ``M_l``. To

    minimize  sum_l D(b_l) / (db_l + 1)   subject to   sum_l M_l b_l <= v_n sum_l M_l

the next bit goes to the layer of greatest ``(D(b) - D(b+1)) / (M_l (db_l + 1))``. As D
is convex, this is optimal for the bits spent until the first bit that does not fit.
Such bits are skipped; the result is near the optimum unless one layer has most of the
weights. ``db_l``, the bits that the client pruned from the layer, is weighted as in
Algorithm 2. Without pruning, bit-widths depend on layer sizes and budget only.

D falls by a factor of nearly four per bit, so a layer four times as large gets about
one bit less; Algorithm 2 gives it up to seven less.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.allocation.pruning_growing import check_budgets, check_layer_sizes
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization.representations import MIN_BIT_WIDTH


def minimize_distortion_graph(
    bit_reductions: tf.Tensor, layer_sizes: np.ndarray, budgets: np.ndarray
) -> tf.Tensor:
    """Returns each client's bit-widths by the greedy rule, int32[N, L] from 1 to 8.

    ``sum(m * b)`` is at most ``floor(budget * sum(m))``, and no layer below 8 bits
    could gain another bit.

    Args:
      bit_reductions: Bits each client pruned, int[N, L].
      layer_sizes: Weights per layer, int[L], known when the graph is built.
      budgets: Average bits per weight, float[N], known when the graph is built.

    Raises:
      ValueError: If layer sizes or budgets are out of range.
    """
    sizes = check_layer_sizes(layer_sizes, bit_reductions.shape[-1])
    gains = -np.diff(gaussian.DISTORTIONS)[:, np.newaxis] / sizes  # [7, L]
    weights = 1.0 / tf.cast(bit_reductions + 1, tf.float64)
    candidates = tf.reshape(gains * weights[:, tf.newaxis, :], [len(budgets), -1])
    order = tf.argsort(candidates, axis=1, direction="DESCENDING", stable=True)
    layers = tf.math.floormod(order, len(sizes))

    capacity = np.floor(check_budgets(budgets) * sizes.sum()).astype(np.int64)
    first_left = tf.constant(capacity - MIN_BIT_WIDTH * sizes.sum())
    first_widths = tf.fill([len(budgets), len(sizes)], MIN_BIT_WIDTH)

    def spend(rank, widths, left):
        # A layer whose bit did not fit gains none later, as `left` only shrinks.
        layer = layers[:, rank]
        cost = tf.gather(tf.constant(sizes), layer)
        fits = cost <= left
        bits = tf.one_hot(layer, len(sizes), dtype=tf.int32)
        widths += bits * tf.cast(fits, tf.int32)[:, tf.newaxis]
        return rank + 1, widths, left - tf.where(fits, cost, tf.zeros_like(cost))

    _, widths, _ = tf.while_loop(
        lambda rank, *_: rank < gains.size,
        spend,
        (tf.constant(0), first_widths, first_left),
    )
    return widths
