"""Pruning-Growing: averaged bit-widths fitted to bit budgets (Algorithm 2, Eq. 16).

Per client, layers are ordered by ``m * (db + 1)`` descending, where ``m`` is a layer's
number of weights and ``db`` the bits that the client pruned from it in the round. While
the client is over its budget, the first layer loses bits, down to one, then the next;
while under, the last layer gains bits, up to eight, then the one before.

Deviations from the algorithm as printed, restored by `literal=True`: growing also
reaches the first layer of the order (as printed, an 8-bit client cannot use its
budget), and it never exceeds the budget (as printed, it exceeds Eq. 2 by up to a
layer); layers whose next bit does not fit are skipped, so that no usable bit is left.

Averaged bit-widths are rounded to nearest (half to even) and clipped to 1..8.

Changing a layer by several bits at once is equivalent to changing it bit by bit. The
cost is two passes over the layers, vectorized over clients.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tff_fedmpq.quantization.representations import MAX_BIT_WIDTH, MIN_BIT_WIDTH


def check_budgets(budgets: npt.ArrayLike) -> np.ndarray:
    """Returns budgets as float64; ValueError unless they are numbers from 1 to 8."""
    try:
        checked = np.asarray(budgets, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"Budgets have to be numbers; found {budgets!r}.") from None
    # NaN compares false to everything, so it is not valid.
    valid = (checked >= MIN_BIT_WIDTH) & (checked <= MAX_BIT_WIDTH)
    if not valid.all():
        raise ValueError(
            f"A budget is {MIN_BIT_WIDTH} to {MAX_BIT_WIDTH} bits per weight on "
            f"average; found {checked[~valid].tolist()}."
        )
    return checked


def check_layer_sizes(layer_sizes: npt.ArrayLike, num_layers: int) -> np.ndarray:
    """Returns weights per layer as int64[L]; ValueError unless they are L >= 1 sizes.

    A size is at least 1.
    """
    sizes = np.asarray(layer_sizes, np.int64)
    if sizes.shape != (num_layers,) or not num_layers:
        raise ValueError(
            f"Expected the sizes of {num_layers} layers, at least one; found an array "
            f"of shape {sizes.shape}."
        )
    if (sizes < 1).any():
        raise ValueError("Every layer has at least one weight; found a smaller size.")
    return sizes


def prune_and_grow(
    mean_bit_widths: np.ndarray,
    bit_reductions: np.ndarray,
    layer_sizes: np.ndarray,
    budget: float | np.ndarray,
    *,
    literal: bool = False,
) -> np.ndarray:
    """Fits averaged bit-widths to each client's budget.

    Args:
      mean_bit_widths: Averages over the round's clients, float[L] or float[N, L].
      bit_reductions: Bits each client pruned, ``db >= 0``, integers of the same shape.
      layer_sizes: Weights per layer, int[L].
      budget: Average bits per weight, 1 to 8; a float, or float[N].
      literal: Whether to follow the algorithm as printed (module docstring).

    Returns:
      Bit-widths from 1 to 8, int32 of the shape of `mean_bit_widths`. Unless literal,
      ``sum(m * b)`` is at most ``floor(budget * sum(m))``, and no layer below 8 bits
      could gain another bit.

    Raises:
      ValueError: If shapes do not agree or values are out of range.
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
    """Fits averaged bit-widths to budgets in a graph; see `prune_and_grow`.

    Args:
      mean_bit_widths: Averages over the round's clients, float32[N, L].
      bit_reductions: Bits each client pruned, int32[N, L].
      layer_sizes: Weights per layer, int[L], known when the graph is built.
      budgets: Average bits per weight, float[N], known when the graph is built.
      literal: Whether to follow the algorithm as printed.

    Returns:
      Bit-widths, int32[N, L].

    Raises:
      TypeError: If layer sizes or budgets are tensors of a graph.
      ValueError: If they are out of range.
    """
    for known in (layer_sizes, budgets):
        if tf.is_tensor(known) and not hasattr(known, "numpy"):
            raise TypeError(
                "layer_sizes and budgets have to be known when the graph is built; "
                f"found {known}."
            )
    sizes = check_layer_sizes(layer_sizes, mean_bit_widths.shape[-1])
    # In whole bits, a sum is over budget above the floor of the product, and under
    # budget below its ceiling.
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
    """Returns initial bit-widths for budgets float[N] and sizes int[L], int32[N, L].

    Every layer gets the whole bits of the client's budget; Pruning-Growing distributes
    the bits of a fractional budget that are left.
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
    """Lowers layers from the first on until they fit into `capacity` bits.

    Args:
      widths: Bit-widths of the layers in order, L tensors int64[N].
      sizes: Weights of the layers in order, L tensors int64[N].
      capacity: Available bits, int64[N].
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
