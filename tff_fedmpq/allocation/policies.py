"""Who decides the bit-widths of the next round, as functions of one signature.

A policy is called once per round at the server::

    policy(bit_widths, mean_bit_widths, bit_reductions, layer_sizes, budgets)

with the table ``int32[N, L]`` of the round, the average ``float32[L]`` of what came
back and the bits ``int32[N, L]`` that each client took off, and returns the next table.
The caller keeps the rows of clients that took no part.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.allocation.prune_and_grow import prune_and_grow_graph
from tff_fedmpq.allocation.rate_distortion import minimize_distortion_graph
from tff_fedmpq.lookup import lookup

AllocationPolicy = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor, np.ndarray, np.ndarray], tf.Tensor
]


def keep_bit_widths(
    bit_widths: tf.Tensor,
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: np.ndarray,
) -> tf.Tensor:
    """Leaves every client's bit-widths as they are."""
    del mean_bit_widths, bit_reductions, layer_sizes, budgets
    return bit_widths


def pruning_growing(
    bit_widths: tf.Tensor,
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: np.ndarray,
    *,
    literal: bool = False,
) -> tf.Tensor:
    """Brings the average to each client's budget (Algorithm 2)."""
    means = tf.broadcast_to(mean_bit_widths, tf.shape(bit_widths))
    means = tf.ensure_shape(means, bit_widths.shape)
    return prune_and_grow_graph(
        means, bit_reductions, layer_sizes, budgets, literal=literal
    )


def rate_distortion(
    bit_widths: tf.Tensor,
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: np.ndarray,
) -> tf.Tensor:
    """Spends each client's budget where bits remove the most quantization error."""
    del bit_widths, mean_bit_widths
    return minimize_distortion_graph(bit_reductions, layer_sizes, budgets)


ALLOCATION_POLICIES: Mapping[str, AllocationPolicy] = {
    "keep": keep_bit_widths,
    "pruning_growing": pruning_growing,
    "literal_pruning_growing": functools.partial(pruning_growing, literal=True),
    "rate_distortion": rate_distortion,
}


def get_allocation_policy(identifier: str | AllocationPolicy) -> AllocationPolicy:
    """Returns the policy of that name; see `lookup`."""
    return lookup(identifier, ALLOCATION_POLICIES, "allocation policy")
