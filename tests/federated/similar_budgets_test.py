"""Which budgets share BatchNorm statistics, against numbers of Max (1960)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import statistics as oracle

from tff_fedmpq.federated.similar_budgets import similarity

budgets = st.lists(st.floats(1, 8), min_size=1, max_size=6).map(np.array)


@given(budgets, budgets)
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
