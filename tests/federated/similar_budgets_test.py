"""Which budgets share BatchNorm statistics, against numbers of Max (1960)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import statistics as oracle

from tff_fedmpq.federated.similar_budgets import (
    FLOAT_BUDGET,
    similarity,
    statistics_for,
)

budgets = st.lists(st.floats(1, 8), min_size=1, max_size=6).map(np.array)


models = st.lists(st.floats(1, 8) | st.just(FLOAT_BUDGET), min_size=1, max_size=6)


@given(models.map(np.array), budgets)
def test_similarity_of_quantization_errors(some, others):
    expected = [[oracle.similarity(v, h) for h in others] for v in some]
    np.testing.assert_allclose(similarity(some, others), expected, rtol=1e-9)


@given(budgets)
def test_the_nearest_of_those_that_are_coarser_prevails(coarser):
    """However far it is: a weight of zero would leave a device without statistics."""
    shares = similarity(np.array([8.0]), coarser)[0]
    assert (shares > 0).all()
    assert shares.argmax() == coarser.argmax() or shares.max() == pytest.approx(
        shares[coarser.argmax()]
    )


def test_what_shares_and_what_does_not():
    two, four, eight = similarity(np.array([2.0, 4.0, 8.0]), np.array([2.0, 4.0, 8.0]))
    assert two[0] == four[1] == eight[2] == 1
    assert four[2] > 0.9 and eight[0] < 0.001 and two[1] < 0.01


@given(st.lists(st.tuples(st.floats(1, 8), st.integers(0, 9)), min_size=1, max_size=6))
def test_statistics_for_float_weights_are_those_of_precise_clients(clients):
    weights = dict(clients)
    assume(any(weights.values()))
    rows = np.arange(2.0 * len(weights), dtype=np.float32).reshape(-1, 2)
    alike = similarity(np.array([FLOAT_BUDGET]), np.array(list(weights)))[0]
    known = np.array(list(weights.values()), np.float32)
    (mean,) = statistics_for(alike, [rows], known)
    np.testing.assert_allclose(mean, oracle.mixed(math.inf, rows, weights), rtol=1e-5)


def test_statistics_of_nobody_are_zero():
    (mean,) = statistics_for(np.ones(2), [np.ones([2, 3], np.float32)], np.zeros(2))
    assert (mean.numpy() == 0).all()
