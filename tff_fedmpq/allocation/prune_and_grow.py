"""Pruning-Growing: every client gets its bit budget back (Algorithm 2, Eq. 16).

The averaged bit-widths of a round fit no client's budget. Per client, layers stand in
the order of ``m * (db + 1)`` descending, ``m`` a layer's number of weights and ``db``
the bits the client took off it in the round: what is large, or was found to need fewer
bits, pays first. While the client is over its budget, the first layer of the order
loses bits, down to one, then the next; while under, the last gains bits, up to eight,
then the one before.

Deviations from the algorithm as printed, which `literal=True` brings back: growing
reaches the first layer of the order too (printed, it stops before it and an 8-bit
client can never use its budget), and it never exceeds the budget (printed, it
overshoots Eq. 2 by up to a layer); layers that no longer fit are passed over, so that
no bit is left that some layer could use.

Averaged bit-widths are fractional; they are rounded to nearest (half to even), then
brought into 1..8.

A layer moves by several bits at once: lowering layer after layer to the least number of
bits that is enough is what lowering it bit by bit comes to. So the cost is two passes
over the layers, each vectorised over clients, whatever the distance to the budget. The
passes are TensorFlow operations: they run eagerly here, in the server's graph there.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.allocation.budgets import check_budgets, check_layer_sizes
from tff_fedmpq.quantization.representation import MAX_BIT_WIDTH, MIN_BIT_WIDTH


def prune_and_grow(
    mean_bit_widths: np.ndarray,
    bit_reductions: np.ndarray,
    layer_sizes: np.ndarray,
    budget: float | np.ndarray,
    *,
    literal: bool = False,
) -> np.ndarray:
    """Brings averaged bit-widths to each client's budget.

    Args:
      mean_bit_widths: float[L] or float[N, L], the average over the round's clients.
      bit_reductions: int of the same shape, ``db >= 0``: bits each client took off.
      layer_sizes: int[L], weights per layer.
      budget: average bits per weight, 1 to 8; a float, or float[N].
      literal: whether to follow the algorithm as printed (module docstring).

    Returns:
      int32 of the shape of `mean_bit_widths`, from 1 to 8. Unless literal, the total
      ``sum(m * b)`` is at most ``floor(budget * sum(m))``, and no layer below 8 bits
      could gain one more.

    Raises:
      ValueError: for shapes that do not agree or values out of range.
    """
    means, reductions = np.asarray(mean_bit_widths), np.asarray(bit_reductions)
    _check_shapes(means, reductions)
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
        layer_sizes,
        np.broadcast_to(budgets, len(rows)),
        literal=literal,
    )
    return fitted.numpy().reshape(means.shape)


def prune_and_grow_graph(
    mean_bit_widths: tf.Tensor,
    bit_reductions: tf.Tensor,
    layer_sizes: np.ndarray,
    budgets: np.ndarray,
    *,
    literal: bool = False,
) -> tf.Tensor:
    """`prune_and_grow` on tensors, for the server's graph.

    Args:
      mean_bit_widths: float32[N, L].
      bit_reductions: int32[N, L].
      layer_sizes: int[L], known when the graph is built.
      budgets: float[N], known when the graph is built.
      literal: whether to follow the algorithm as printed.

    Returns:
      int32[N, L].

    Raises:
      TypeError: if layer sizes or budgets are tensors of a graph.
      ValueError: if they are out of range.
    """
    for known in (layer_sizes, budgets):
        if tf.is_tensor(known) and not hasattr(known, "numpy"):
            raise TypeError(
                "layer_sizes and budgets have to be known when the graph is built; "
                f"found {known}."
            )
    sizes = check_layer_sizes(layer_sizes, mean_bit_widths.shape[-1])
    # Whole bits: the average exceeds the budget when the sum exceeds the floor of their
    # product, and falls short of it when it falls short of the ceiling.
    total = check_budgets(budgets) * sizes.sum()
    capacity = np.floor(total).astype(np.int64)
    target = np.ceil(total).astype(np.int64) if literal else capacity

    importance = sizes * (tf.cast(bit_reductions, tf.int64) + 1)
    order = tf.argsort(importance, axis=1, direction="DESCENDING", stable=True)
    rounded = tf.cast(tf.round(mean_bit_widths), tf.int64)
    widths = tf.clip_by_value(rounded, MIN_BIT_WIDTH, MAX_BIT_WIDTH)
    widths = tf.unstack(tf.gather(widths, order, batch_dims=1), axis=1)
    ordered_sizes = tf.unstack(tf.gather(sizes, order), axis=1)

    widths = _prune(widths, ordered_sizes, capacity)
    widths = _grow(widths, ordered_sizes, target, literal)
    fitted = tf.gather(
        tf.stack(widths, axis=1), tf.argsort(order, axis=1), batch_dims=1
    )
    return tf.cast(fitted, tf.int32)


def uniform_bit_widths(layer_sizes: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Returns the table that training starts from: each client's budget everywhere.

    A whole budget gives every layer that many bits. A fractional one gives the floor,
    and what is left goes where Pruning-Growing puts it.

    Args:
      layer_sizes: int[L].
      budgets: float[N].

    Returns:
      int32[N, L].
    """
    budgets = check_budgets(budgets)
    floors = np.tile(np.floor(budgets)[:, np.newaxis], [1, len(layer_sizes)])
    no_reductions = np.zeros(floors.shape, np.int32)
    return prune_and_grow(floors, no_reductions, layer_sizes, budgets)


def _used(widths: list[tf.Tensor], sizes: list[tf.Tensor]) -> tf.Tensor:
    """Returns the bits that all layers together use, int64[N]."""
    return tf.add_n([width * size for width, size in zip(widths, sizes)])


def _prune(
    widths: list[tf.Tensor], sizes: list[tf.Tensor], capacity: np.ndarray
) -> list[tf.Tensor]:
    """Lowers layers from the first on until `capacity` bits hold them all.

    Args:
      widths: L tensors int64[N], layers in order.
      sizes: L tensors int64[N].
      capacity: int64[N].
    """
    excess = _used(widths, sizes) - capacity
    pruned = []
    for width, size in zip(widths, sizes):
        enough = _ceiling_divide(tf.maximum(excess, 0), size)
        lost = tf.minimum(enough, width - MIN_BIT_WIDTH)
        pruned.append(width - lost)
        excess -= lost * size
    return pruned


def _grow(
    widths: list[tf.Tensor], sizes: list[tf.Tensor], capacity: np.ndarray, literal: bool
) -> list[tf.Tensor]:
    """Raises layers from the last on as far as `capacity` allows; see `_prune`."""
    divide = _ceiling_divide if literal else tf.math.floordiv
    left = capacity - _used(widths, sizes)
    grown = list(widths)
    for layer in reversed(range(1 if literal else 0, len(widths))):
        fitting = divide(tf.maximum(left, 0), sizes[layer])
        gained = tf.minimum(fitting, MAX_BIT_WIDTH - widths[layer])
        grown[layer] = widths[layer] + gained
        left -= gained * sizes[layer]
    return grown


def _ceiling_divide(numerator: tf.Tensor, denominator: tf.Tensor) -> tf.Tensor:
    return -tf.math.floordiv(-numerator, denominator)


def _check_shapes(means: np.ndarray, reductions: np.ndarray) -> None:
    if means.ndim not in (1, 2) or means.shape != reductions.shape:
        raise ValueError(
            "mean_bit_widths and bit_reductions have to be of one shape, [layers] or "
            f"[clients, layers]; found {means.shape} and {reductions.shape}."
        )
    if not np.isfinite(means).all():
        raise ValueError("mean_bit_widths holds values that are not finite.")
    if not (np.equal(reductions, np.floor(reductions)) & (reductions >= 0)).all():
        raise ValueError("bit_reductions are numbers of bits: integers, 0 or more.")
