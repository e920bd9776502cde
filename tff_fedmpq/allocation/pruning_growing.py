"""Pruning-Growing: bit-widths of a client within its budget (Algorithm 2, Eq. 16).

An *order* values every bit of every layer. While a client's averaged bit-widths are
over its budget, the least valuable bits are pruned; while they are under, the most
valuable ones that fit are grown. Two orders:

* `size_order`, the paper's: layers by ``m (db + 1)``, m the number of weights and db
  the bits that the client's training pruned. A layer that is large, or was found to
  need fewer bits, gives up all its bits (down to 1) before the next layer gives any.
* `distortion_order`: the quantization error that a bit removes per weight it costs,
  ``(D(b - 1) - D(b)) / (m (db + 1))``, with D(b) the error of Gaussian weights at the
  best scale as a share of their energy (`quantization.gaussian`). As BatchNorm cancels
  the scales of all layers of a ResNet but the last, the sum of these shares measures
  what reaches the output (a heuristic). Grown from 1 bit this is marginal analysis
  (Fox, 1966), optimal until the first bit that does not fit.

Deviations from the algorithm as printed, where an 8-bit client can never use its budget
and others exceed theirs by up to a layer: growing reaches the first layer of the order
too, and skips bits that do not fit, until none does. Averaged bit-widths are rounded to
nearest (half to even) and clipped to 1..8.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization.representations import MAX_BIT_WIDTH, MIN_BIT_WIDTH
from tff_fedmpq.quantization.tracing import traced

# (weights per layer int64[L], bits pruned int32[N, L]) -> value of bits 2..8 of each
# layer, float64[N, 7, L], which does not increase from one bit of a layer to the next.
Order = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# (averaged bit-widths float32[N, L], bits pruned int32[N, L], weights per layer
# int64[L], budgets float64[N]) -> bit-widths int32[N, L], from 1 to 8.
AllocationPolicy = Callable[[tf.Tensor, tf.Tensor, np.ndarray, tf.Tensor], tf.Tensor]

_NUM_BITS = MAX_BIT_WIDTH - MIN_BIT_WIDTH  # That may be pruned or grown.


def size_order(layer_sizes: tf.Tensor, bit_reductions: tf.Tensor) -> tf.Tensor:
    """Values bits by the paper's order of layers; see `Order`."""
    importance = layer_sizes * (tf.cast(bit_reductions, tf.int64) + 1)
    # The rank of each layer: the first in descending importance is worth least.
    order = tf.argsort(importance, axis=1, direction="DESCENDING", stable=True)
    rank = tf.cast(tf.argsort(order, axis=1), tf.float64)
    return tf.tile(rank[:, tf.newaxis], [1, _NUM_BITS, 1])


def distortion_order(layer_sizes: tf.Tensor, bit_reductions: tf.Tensor) -> tf.Tensor:
    """Values bits by the quantization error removed per weight; see `Order`."""
    gains = tf.constant(-np.diff(gaussian.DISTORTIONS))[:, tf.newaxis]
    gains /= tf.cast(layer_sizes, tf.float64)
    weights = 1.0 / tf.cast(bit_reductions + 1, tf.float64)
    return gains * weights[:, tf.newaxis]


ORDERS: Mapping[str, Order] = {"size": size_order, "distortion": distortion_order}


def prune_and_grow(
    mean_bit_widths: npt.ArrayLike,
    bit_reductions: npt.ArrayLike,
    layer_sizes: npt.ArrayLike,
    budget: npt.ArrayLike,
    *,
    order: str | Order = "size",
) -> np.ndarray:
    """Brings averaged bit-widths to each client's budget.

    Returns bit-widths ``b``, int32 of the shape of `mean_bit_widths`, from 1 to 8. The
    total ``sum(m * b)`` is at most ``floor(budget * sum(m))``, and no layer below 8
    bits could gain one more. Wrong shapes and values raise ValueError.

    Args:
      mean_bit_widths: Average over the round's clients, float[L] or float[N, L].
      bit_reductions: Bits that each client's training pruned (db), int of that shape.
      layer_sizes: Number of weights of each layer (m), int[L].
      budget: Average bits per weight, 1 to 8: float, or float[N].
      order: Value of the bits: "size", "distortion", or an `Order`.
    """
    means, reductions = np.asarray(mean_bit_widths), np.asarray(bit_reductions)
    if means.ndim not in (1, 2) or means.shape != reductions.shape:
        raise ValueError(
            "mean_bit_widths and bit_reductions have to be of one shape, [layers] or "
            f"[clients, layers]; found {means.shape} and {reductions.shape}."
        )
    if not np.isfinite(means).all():
        raise ValueError("mean_bit_widths holds values that are not finite.")
    if not (np.equal(reductions, np.floor(reductions)) & (reductions >= 0)).all():
        raise ValueError("bit_reductions are numbers of bits: integers, 0 or more.")
    rows = np.atleast_2d(means).astype(np.float32)
    budgets = check_budgets(budget)
    if budgets.ndim > 1 or budgets.size not in (1, len(rows)):
        raise ValueError(
            f"Expected one budget, or one for each of {len(rows)} clients; found an "
            f"array of shape {budgets.shape}."
        )
    fitted = prune_and_grow_graph(
        tf.constant(rows),
        tf.constant(np.atleast_2d(reductions), tf.int32),
        check_layer_sizes(layer_sizes, rows.shape[1]),
        tf.constant(np.broadcast_to(budgets, len(rows))),
        order=lookup(order, ORDERS, "order"),
    )
    return fitted.numpy().reshape(means.shape)


def prune_and_grow_graph(
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: tf.Tensor,
    *,
    order: Order = size_order,
) -> tf.Tensor:
    """Implements `prune_and_grow` on tensors, as an `AllocationPolicy`.

    (float32[N, L], int32[N, L], int64[L], float64[N]) -> int32[N, L]
    """
    fit = _prune_and_grow_in_order(order)
    fitted = fit(mean_bit_widths, bit_reductions, layer_sizes, budgets)
    return tf.ensure_shape(fitted, mean_bit_widths.shape)


# One graph serves all numbers of clients and layers.
@functools.cache
def _prune_and_grow_in_order(order: Order) -> Any:
    """Returns `prune_and_grow_graph` of an order as a TensorFlow function."""
    signature = [tf.TensorSpec([None, None]), tf.TensorSpec([None, None], tf.int32)]
    signature += [tf.TensorSpec([None], dtype) for dtype in (tf.int64, tf.float64)]

    @traced(signature)
    def fit(mean_bit_widths, bit_reductions, layer_sizes, budgets):
        num_layers = tf.size(layer_sizes)
        rounded = tf.cast(tf.round(mean_bit_widths), tf.int64)
        widths = tf.clip_by_value(rounded, MIN_BIT_WIDTH, MAX_BIT_WIDTH)
        # Whole bits: the average exceeds the budget where the sum exceeds this floor.
        total = tf.cast(tf.reduce_sum(layer_sizes), tf.float64)
        left = tf.cast(tf.floor(budgets * total), tf.int64)
        left -= tf.reduce_sum(widths * layer_sizes, axis=1)

        # All bits, the most valuable first; bit k of layer l has the index k * L + l.
        values = order(layer_sizes, bit_reductions)
        values = tf.reshape(values, [-1, _NUM_BITS * num_layers])
        ranked = tf.argsort(values, axis=1, direction="DESCENDING", stable=True)
        layers = tf.math.floormod(ranked, num_layers)
        bits = tf.cast(ranked // num_layers, tf.int64) + MIN_BIT_WIDTH + 1
        costs = tf.gather(layer_sizes, layers)
        is_present = bits <= tf.gather(widths, layers, batch_dims=1)

        # Prune from the last bit on, until what was pruned makes up the excess.
        present_costs = tf.where(is_present, costs, 0)
        pruned_after = tf.cumsum(present_costs, axis=1, exclusive=True, reverse=True)
        is_kept = is_present & (pruned_after >= -left[:, tf.newaxis])
        left += tf.reduce_sum(tf.where(is_present & ~is_kept, costs, 0), axis=1)

        def fits(is_kept, left):
            return ~is_kept & (costs <= left[:, tf.newaxis])

        def grow(is_kept, left):
            # Bits that fit together, up to the first that does not. Where a bit of a
            # layer does not fit, the next does not either: `left` only falls.
            candidates = tf.where(fits(is_kept, left), costs, 0)
            fit_together = tf.cumsum(candidates, axis=1) <= left[:, tf.newaxis]
            grown = tf.where(fit_together, candidates, 0)
            return is_kept | (grown > 0), left - tf.reduce_sum(grown, axis=1)

        is_kept, _ = tf.while_loop(
            lambda *state: tf.reduce_any(fits(*state)), grow, (is_kept, left)
        )
        # Counts the bits of each layer of each client.
        segments = num_layers * tf.range(tf.shape(layers)[0])[:, tf.newaxis] + layers
        is_kept = tf.cast(is_kept, tf.int32)
        kept = tf.math.unsorted_segment_sum(is_kept, segments, tf.size(widths))
        return MIN_BIT_WIDTH + tf.reshape(kept, tf.shape(widths))

    return fit


def uniform_bit_widths(
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: tf.Tensor,
) -> tf.Tensor:
    """Gives every layer the whole bits of the budget, as an `AllocationPolicy`."""
    del mean_bit_widths, bit_reductions
    whole = tf.cast(tf.floor(budgets), tf.int32)
    return tf.tile(whole[:, tf.newaxis], [1, len(layer_sizes)])


def check_budgets(budgets: npt.ArrayLike) -> np.ndarray:
    """Returns budgets as float64; ValueError unless they are numbers from 1 to 8."""
    # Without this, NumPy would read True as 1 and "4" as 4.
    for value in np.asarray(budgets, object).flat:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            found = bool(value) if isinstance(value, np.bool_) else value
            raise ValueError(f"Budgets have to be numbers; found {found!r}.")
    checked = np.asarray(budgets, np.float64)
    # Negated so that NaN, which compares false to everything, is caught.
    wrong = checked[~((checked >= MIN_BIT_WIDTH) & (checked <= MAX_BIT_WIDTH))].tolist()
    if wrong:
        raise ValueError(f"Budgets are 1 to 8 bits per weight; found {wrong}.")
    return checked


def check_layer_sizes(layer_sizes: npt.ArrayLike, num_layers: int) -> np.ndarray:
    """Returns weights per layer, int64[L]; ValueError unless whole numbers from 1."""
    sizes = np.asarray(layer_sizes)
    if sizes.shape != (num_layers,) or not num_layers:
        expected = f"sizes of {num_layers} layers, at least one"
        raise ValueError(f"Expected {expected}; found {sizes.shape}.")
    if (sizes < 1).any() or (sizes != np.floor(sizes)).any():
        raise ValueError(f"Sizes are whole numbers, at least one; found {sizes}.")
    if sizes.sum(dtype=np.float64) * MAX_BIT_WIDTH >= 2**62:
        raise ValueError(f"Layers of {sizes.tolist()} weights are too large.")
    return sizes.astype(np.int64)
