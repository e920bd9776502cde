"""Bit budgets of a population of clients: average bits per weight over all layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tff_fedmpq.allocation.pruning_growing import check_budgets

# The paper's population: 20, 30, 30 and 20 % of the clients at 2, 4, 6 and 8 bits.
PAPER_TIERS: Mapping[float, float] = {2.0: 0.2, 4.0: 0.3, 6.0: 0.3, 8.0: 0.2}


def tiered_budgets(
    num_clients: int, tiers: Mapping[float, float] = PAPER_TIERS
) -> np.ndarray:
    """Returns the budgets of a population with given shares of budgets, ascending.

    Args:
      num_clients: Number of clients (N).
      tiers: Mapping of budgets in bits to shares of the clients, which sum to 1.

    Returns:
      float64[N]; N = 10 with the paper's tiers gives 2,2,4,4,4,6,6,6,8,8. Boundaries of
      tiers are rounded to whole clients.

    Raises:
      ValueError: If the shares do not sum to 1 or a budget is out of range.
    """
    if num_clients < 1:
        raise ValueError(f"Expected at least one client, found {num_clients}.")
    shares = np.array(list(tiers.values()))
    if (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
        raise ValueError(f"Shares of tiers have to add up to 1, found {dict(tiers)}.")
    bounds = np.rint(np.cumsum(shares) * num_clients).astype(int)
    counts = np.diff(bounds, prepend=0)
    return np.sort(np.repeat(check_budgets(np.array(list(tiers))), counts))
