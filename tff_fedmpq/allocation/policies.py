"""Allocation policies: the choice of all clients' bit-widths for the next round.

The server calls a policy once per round::

    policy(bit_widths, mean_bit_widths, bit_reductions, layer_sizes, budgets)

Args:
  bit_widths: Table of the round, int32[N, L].
  mean_bit_widths: Weighted mean of the bit-widths that clients returned, float32[L].
  bit_reductions: Bits that each client pruned, int32[N, L].
  layer_sizes: Weights per layer, int64[L].
  budgets: Average bits per weight of each client, float64[N].

It returns the next table, int32[N, L]. The caller keeps the rows of clients that did
not take part.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.allocation.pruning_growing import prune_and_grow_graph
from tff_fedmpq.allocation.rate_distortion import minimize_distortion_graph
from tff_fedmpq.lookup import lookup

AllocationPolicy = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor, np.ndarray, np.ndarray], tf.Tensor
]


def keep_bit_widths(
    bit_widths, mean_bit_widths, bit_reductions, layer_sizes, budgets
) -> tf.Tensor:
    """Keeps every client's bit-widths."""
    del mean_bit_widths, bit_reductions, layer_sizes, budgets
    return bit_widths


def pruning_growing(
    bit_widths,
    mean_bit_widths,
    bit_reductions,
    layer_sizes,
    budgets,
    *,
    literal: bool = False,
) -> tf.Tensor:
    """Brings the mean bit-widths to each client's budget (Algorithm 2)."""
    means = tf.broadcast_to(mean_bit_widths, tf.shape(bit_widths))
    means = tf.ensure_shape(means, bit_widths.shape)
    return prune_and_grow_graph(
        means, bit_reductions, layer_sizes, budgets, literal=literal
    )


def rate_distortion(
    bit_widths, mean_bit_widths, bit_reductions, layer_sizes, budgets
) -> tf.Tensor:
    """Spends each client's budget where bits reduce the quantization error most."""
    del bit_widths, mean_bit_widths
    return minimize_distortion_graph(bit_reductions, layer_sizes, budgets)


ALLOCATION_POLICIES: Mapping[str, AllocationPolicy] = {
    "uniform": keep_bit_widths,
    "pruning_growing": pruning_growing,
    "literal_pruning_growing": functools.partial(pruning_growing, literal=True),
    "rate_distortion": rate_distortion,
}


def get_allocation_policy(identifier: str | AllocationPolicy) -> AllocationPolicy:
    """Returns the policy of a name, or the function itself; see `lookup`."""
    return lookup(identifier, ALLOCATION_POLICIES, "allocation policy")
