"""Populations: who has how many bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.strategies import SETTINGS

from tff_fedmpq.simulation.populations import tiered_budgets


# Clients up to the cumulated shares .2, .5, .8 and 1, rounded to nearest.
@pytest.mark.parametrize(
    ("clients", "counts"),
    [(10, (2, 3, 3, 2)), (20, (4, 6, 6, 4)), (40, (8, 12, 12, 8)), (1, (0, 0, 1, 0))],
)
def test_the_papers_population(clients, counts):
    budgets = tiered_budgets(clients)
    assert tuple(budgets.count(bits) for bits in (2, 4, 6, 8)) == counts
    assert sum(counts) == len(budgets) == clients


@SETTINGS
@given(
    clients=st.integers(1, 200),
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
)
def test_shares_are_kept_within_a_client(clients, weights):
    tiers = {1.0 + i: weight / sum(weights) for i, weight in enumerate(weights)}
    budgets = tiered_budgets(clients, tiers)
    assert len(budgets) == clients and (np.diff(budgets) >= 0).all()
    for bits, share in tiers.items():
        assert abs(budgets.count(bits) - share * clients) <= 1


@pytest.mark.parametrize(
    ("clients", "tiers", "message"),
    [
        (0, {2.0: 1.0}, "at least one client"),
        (4, {2.0: 0.5, 4.0: 0.4}, "add up to 1"),
        (4, {2.0: 1.5, 4.0: -0.5}, "add up to 1"),
    ],
)
def test_wrong_populations_are_refused(clients, tiers, message):
    with pytest.raises(ValueError, match=message):
        tiered_budgets(clients, tiers)
