"""Bits where they remove the most quantization error: marginal analysis (Fox, 1966).

A layer of ``M_l`` weights at ``b`` bits loses the part ``D(b)`` of its weights' energy
to quantization. Under BatchNorm, which follows every layer of a ResNet but the last, a
network's output does not depend on a layer's scale; so we take the sum of these parts
over layers, whatever their sizes, as the measure of what reaches the output (a
heuristic), while a bit costs ``M_l``. To

    minimise  sum_l D(b_l) / (db_l + 1)   subject to   sum_l M_l b_l <= v_n sum_l M_l

a bit is given where ``(D(b) - D(b + 1)) / (M_l (db_l + 1))`` is greatest, over and
over. As D is convex, that is the optimum for what has been spent until the first bit
that does not fit; such bits are passed over, and what is left goes to layers where it
does: greedy, and near the optimum where no layer holds most of the weights. ``db_l``,
the bits that the client's training took off the layer, is weighed as Algorithm 2
weighs it: a layer found to need fewer bits pays first. Where nothing is taken off, the
bit-widths are a function of layer sizes and budget alone.

Since D falls by nearly four a bit, a layer four times as large has about one bit less;
Algorithm 2 gives it up to seven less.

D is that of Gaussian weights at the best scale (`quantization.gaussian`).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.allocation.budgets import check_budgets, check_layer_sizes
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization.representation import MIN_BIT_WIDTH


def minimize_distortion_graph(
    bit_reductions: tf.Tensor, layer_sizes: np.ndarray, budgets: np.ndarray
) -> tf.Tensor:
    """Returns each client's bit-widths by the greedy rule, int32[N, L] from 1 to 8.

    The total ``sum(m * b)`` is at most ``floor(budget * sum(m))``, and no layer below 8
    bits could gain one more: a bit that does not fit is passed over.

    Args:
      bit_reductions: int[N, L], bits that clients took off.
      layer_sizes: int[L], known when the graph is built.
      budgets: float[N], known when the graph is built.

    Raises:
      ValueError: if layer sizes or budgets are out of range, or sizes of other layers.
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
        # A layer whose bit did not fit gains none later on: `left` only shrinks.
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
