"""Budgets: what is one, and who has how many bits in a population."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.strategies import SETTINGS

from tff_fedmpq.allocation import check_budgets, tiered_budgets


@pytest.mark.parametrize("budgets", [[1, 8], [2.5], np.float32([4, 1.0]), 3])
def test_numbers_from_one_to_eight_are_budgets(budgets):
    checked = check_budgets(budgets)
    assert checked.dtype == np.float64
    np.testing.assert_array_equal(checked, budgets)


@pytest.mark.parametrize(
    ("budgets", "found"),
    [
        ([2, 0.99], r"found \[0.99\]"),
        ([8.01, 2, 9], r"found \[8.01, 9.0\]"),
        ([float("nan")], "found .nan"),
        ([float("inf")], "found .inf"),
        (["two"], "numbers"),
        ([[2, 3], [4]], "numbers"),
    ],
)
def test_others_are_named(budgets, found):
    with pytest.raises(ValueError, match=found):
        check_budgets(budgets)


# Clients up to the cumulated shares .2, .5, .8 and 1, rounded to nearest.
@pytest.mark.parametrize(
    ("clients", "counts"),
    [(10, (2, 3, 3, 2)), (20, (4, 6, 6, 4)), (40, (8, 12, 12, 8)), (1, (0, 0, 1, 0))],
)
def test_the_papers_population(clients, counts):
    budgets = tiered_budgets(clients)
    assert tuple((budgets == bits).sum() for bits in (2, 4, 6, 8)) == counts


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
        assert abs((budgets == bits).sum() - share * clients) <= 1


@pytest.mark.parametrize(
    ("clients", "tiers", "message"),
    [
        (0, {2.0: 1.0}, "at least one client"),
        (4, {2.0: 0.5, 4.0: 0.4}, "add up to 1"),
        (4, {2.0: 1.5, 4.0: -0.5}, "add up to 1"),
        (4, {9.0: 1.0}, "1 to 8 bits"),
    ],
)
def test_wrong_populations_are_refused(clients, tiers, message):
    with pytest.raises(ValueError, match=message):
        tiered_budgets(clients, tiers)
