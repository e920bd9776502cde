"""Statistics for a budget from those of others, against a fit in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import statistics as oracle

from tff_fedmpq.federated.budget_statistics import (
    FLOAT_BUDGET,
    mean_statistics,
    statistics_shares,
)

budgets = st.floats(1, 8)
models = st.lists(budgets | st.just(FLOAT_BUDGET), min_size=1, max_size=6)
clients = st.dictionaries(budgets, st.integers(0, 9), min_size=1, max_size=6)


def shares_of(some, weights):
    known = np.array(list(weights.values()), np.float32)
    return statistics_shares(np.array(some), np.array(list(weights)), known).numpy()


@settings(deadline=None)
@given(models, clients)
def test_shares_are_those_of_a_fit(some, weights):
    assume(any(weights.values()))
    expected = [oracle.shares(budget, weights) for budget in some]
    np.testing.assert_allclose(shares_of(some, weights), expected, rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(st.lists(budgets, min_size=1), st.integers(-3, 3), st.integers(-9, 9))
def test_statistics_that_are_linear_in_the_error_are_found(inner, a, b):
    """Between two budgets so far apart that the ridge hardly counts."""
    errors = np.array([oracle.error_at(budget) for budget in (1, 8)])
    found = shares_of(inner, {1.0: 1, 8.0: 1}) @ (a + b * errors)
    expected = [a + b * oracle.error_at(budget) for budget in inner]
    np.testing.assert_allclose(found, expected, atol=0.02 * abs(b) + 1e-9)


def test_what_shares_and_what_does_not():
    """At the paper's budgets, for devices of 2 and 8 bits and for float weights."""
    weights = {2.0: 2, 4.0: 3, 6.0: 3, 8.0: 2}
    two, eight, floats = shares_of([2, 8, FLOAT_BUDGET], weights)
    assert two[0] > 0.8 and eight[0] < 0.01
    assert eight[1:] == pytest.approx([0.375, 0.375, 0.25], abs=0.03)
    assert floats == pytest.approx(eight, abs=0.01)


def test_a_budget_of_which_no_one_took_part_has_the_others():
    assert shares_of([2, 8], {2.0: 0, 4.0: 5}).tolist() == [[0, 1], [0, 1]]


def test_statistics_of_nobody_are_zero():
    shares = shares_of([2, 8], {2.0: 0, 4.0: 0})
    (mean,) = mean_statistics([np.ones([2, 3], np.float32)], shares)
    assert (mean.numpy() == 0).all()


def test_means_over_budgets():
    rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    shares = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75]])
    (means,) = mean_statistics([rows], shares)
    np.testing.assert_array_equal(
        means, [rows[:2].mean(0), rows[1] / 4 + rows[2] * 0.75]
    )
    (mean,) = mean_statistics([rows], shares[0])
    np.testing.assert_array_equal(mean, means[0])
