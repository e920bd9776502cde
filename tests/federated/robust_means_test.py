"""Trimmed mean and median against NumPy, and as aggregation processes of TFF."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_federated as tff
from hypothesis import given
from hypothesis import strategies as st

from tff_fedmpq.federated.robust_means import TrimmedMeanFactory, trimmed_mean


def by_oracle(values, fraction):
    """Sorts each coordinate's values in Python and drops the ends."""
    count = len(values)
    cut = 0
    while cut < fraction * count - 1e-9:
        cut += 1
    cut = min(cut, (count - 1) // 2)
    columns = values.reshape(count, -1).T
    kept = [sorted(column)[cut : count - cut] for column in columns.tolist()]
    return np.array([sum(c) / len(c) for c in kept]).reshape(values.shape[1:])


@given(
    count=st.integers(1, 12),
    fraction=st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.5]),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    seed=st.integers(0, 99),
)
def test_trimmed_mean_is_that_of_sorted_values(count, fraction, shape, seed):
    values = np.random.default_rng(seed).normal(size=(count, *shape))
    found = trimmed_mean(values.astype(np.float32), fraction)
    np.testing.assert_allclose(found, by_oracle(values, fraction), atol=1e-6)


@pytest.mark.parametrize("count", range(1, 8))
def test_half_is_numpys_median(count):
    values = np.random.default_rng(count).normal(size=(count, 4)).astype(np.float32)
    np.testing.assert_allclose(
        trimmed_mean(values, 0.5), np.median(values, axis=0), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("count", "dropped"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (10, 2)]
)
def test_a_fifth_is_rounded_up_and_leaves_a_value(count, dropped):
    """Fewer than a fifth of the clients have no way out of the others' range."""
    values = np.zeros([count, 1], np.float32)
    values[:dropped] = 1e6
    assert trimmed_mean(values, 0.2) == 0
    values[dropped] = 1e6
    assert trimmed_mean(values, 0.2) > 0


def test_no_values_are_zero():
    assert trimmed_mean(np.zeros([0, 3], np.float32), 0.2).numpy().tolist() == [0] * 3


@pytest.mark.parametrize("fraction", [-0.1, 0.6, float("nan")])
def test_refuses_other_shares(fraction):
    with pytest.raises(ValueError, match="fraction has to be from 0 to 0.5"):
        TrimmedMeanFactory(fraction)


def test_process_counts_clients_that_have_weight_alike(runtime):
    value_type = tff.to_type([np.float32, tff.TensorType(np.float32, [2])])
    process = TrimmedMeanFactory().create(value_type, tff.TensorType(np.float32))
    result_type = process.next.type_signature.result.result
    assert result_type == tff.FederatedType(value_type, tff.SERVER)
    rng = np.random.default_rng(0)
    values = [[np.float32(x), rng.normal(size=2).astype(np.float32)] for x in range(6)]
    values[4] = [np.float32("inf"), np.float32([-1e30, 1e30])]
    weights = np.float32([1, 50, 0.1, 3, 7, 0])
    output = process.next(process.initialize(), values, list(weights))
    for found, parts in zip(output.result, zip(*values[:5])):
        expected = by_oracle(np.stack(parts).astype(np.float64), 0.2)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    output = process.next(output.state, values[5:], list(weights[5:]))
    assert not any(map(np.any, output.result))
