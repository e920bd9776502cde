"""Bit budgets: how many bits per weight each client affords, on average over layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tff_fedmpq.quantization.representation import MAX_BIT_WIDTH, MIN_BIT_WIDTH

# The paper's population: 20, 30, 30 and 20 % of the clients at 2, 4, 6 and 8 bits.
PAPER_TIERS: Mapping[float, float] = {2.0: 0.2, 4.0: 0.3, 6.0: 0.3, 8.0: 0.2}


def check_budgets(budgets: npt.ArrayLike) -> np.ndarray:
    """Returns budgets as float64, checked to be numbers from 1 to 8.

    Raises:
      ValueError: if one is not.
    """
    try:
        checked = np.asarray(budgets, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"Budgets have to be numbers; found {budgets!r}.") from None
    # Written so that NaN, which compares false to everything, is caught.
    valid = (checked >= MIN_BIT_WIDTH) & (checked <= MAX_BIT_WIDTH)
    if not valid.all():
        raise ValueError(
            f"A budget is {MIN_BIT_WIDTH} to {MAX_BIT_WIDTH} bits per weight on "
            f"average; found {checked[~valid].tolist()}."
        )
    return checked


def check_layer_sizes(layer_sizes: npt.ArrayLike, num_layers: int) -> np.ndarray:
    """Returns weights per layer as int64[L], checked to be L numbers from 1.

    Raises:
      ValueError: if there is another number of them, none, or one below 1.
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


def tiered_budgets(
    num_clients: int, tiers: Mapping[float, float] = PAPER_TIERS
) -> np.ndarray:
    """Returns budgets for `num_clients` clients in the given shares, ascending.

    Args:
      num_clients: N.
      tiers: budget in bits -> share of the clients; shares add up to 1.

    Returns:
      float64[N]; N = 10 with the paper's tiers gives 2,2,4,4,4,6,6,6,8,8. Where shares
      do not come to whole clients, boundaries are rounded to nearest.

    Raises:
      ValueError: if the shares do not add up to 1 or a budget is out of range.
    """
    if num_clients < 1:
        raise ValueError(f"Expected at least one client, found {num_clients}.")
    shares = np.array(list(tiers.values()))
    if (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
        raise ValueError(f"Shares of tiers have to add up to 1, found {dict(tiers)}.")
    bounds = np.rint(np.cumsum(shares) * num_clients).astype(int)
    counts = np.diff(bounds, prepend=0)
    return np.sort(np.repeat(check_budgets(np.array(list(tiers))), counts))
