"""Populations: who has how many bits."""

from __future__ import annotations

import numpy as np
import pytest

from tff_fedmpq.simulation.populations import PAPER_TIERS, tiered_budgets


# Clients up to the cumulated shares .2, .5, .8 and 1, rounded to nearest.
@pytest.mark.parametrize(
    ("clients", "counts"),
    [(10, (2, 3, 3, 2)), (20, (4, 6, 6, 4)), (40, (8, 12, 12, 8)), (1, (0, 0, 1, 0))],
)
def test_the_papers_population(clients, counts):
    budgets = tiered_budgets(clients)
    assert tuple(budgets.count(bits) for bits in (2, 4, 6, 8)) == counts
    assert sum(counts) == len(budgets) == clients


def test_shares_are_kept_within_a_client():
    for clients in range(1, 201):
        budgets = tiered_budgets(clients)
        assert len(budgets) == clients and (np.diff(budgets) >= 0).all()
        for bits, share in PAPER_TIERS.items():
            assert abs(budgets.count(bits) - share * clients) <= 1


def test_a_population_has_a_client():
    with pytest.raises(ValueError, match="num_clients has to be a whole number"):
        tiered_budgets(0)
