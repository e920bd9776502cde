"""Allocation of least quantization error, against exhaustive search and a NumPy oracle.

Budgets are multiples of 1/16, as in `pruning_growing_test`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from oracles import allocation as oracle
from oracles import strategies
from oracles.allocation import capacity_bits, used_bits
from oracles.strategies import SETTINGS

from tff_fedmpq.allocation.policies import get_allocation_policy
from tff_fedmpq.allocation.rate_distortion import minimize_distortion_graph
from tff_fedmpq.quantization.gaussian import DISTORTIONS

RESNET_LAYERS = (432, 2304, 4608, 9216, 512, 18432, 36864, 36864, 2048, 640)


@st.composite
def problems(draw):
    """(reductions [N, L], sizes [L], budgets [N])."""
    num_layers = draw(st.integers(min_value=1, max_value=7))
    num_clients = draw(st.integers(min_value=1, max_value=3))
    rng = np.random.default_rng(draw(strategies.seeds))
    sizes = rng.integers(1, draw(st.sampled_from([1, 5, 40_000])) + 1, size=num_layers)
    reductions = rng.integers(
        0, draw(st.sampled_from([1, 4])), [num_clients, num_layers]
    )
    budgets = rng.integers(16, 8 * 16 + 1, size=num_clients) / 16
    return reductions, sizes, budgets


def allocate(reductions, sizes, budgets):
    widths = minimize_distortion_graph(
        tf.constant(reductions, tf.int32), np.asarray(sizes), np.asarray(budgets)
    )
    return widths.numpy()


def cost(widths, reductions):
    """What is minimised, of one client."""
    parts = DISTORTIONS[np.asarray(widths) - 1] / (np.asarray(reductions) + 1)
    return parts.sum()


@SETTINGS
@given(problems())
def test_uses_the_budget_and_no_more(problem):
    reductions, sizes, budgets = problem
    for widths, budget in zip(allocate(*problem), budgets):
        assert widths.min() >= 1 and widths.max() <= 8
        left = capacity_bits(budget, sizes) - used_bits(widths, sizes)
        assert left >= 0
        assert all(size > left for size, b in zip(sizes, widths) if b < 8)


@pytest.mark.parametrize("budget", [1.5, 2.0, 3.25, 5.0])
@pytest.mark.parametrize("reductions", [[0, 0, 0], [0, 2, 0], [3, 0, 1]])
def test_none_of_equal_layers_is_better_by_exhaustion(budget, reductions):
    # With layers of one size no bit is ever passed over: greedy choice is exact.
    sizes = [10, 10, 10]
    found = allocate([reductions], sizes, [budget])[0]
    affordable = (
        widths
        for widths in itertools.product(range(1, 9), repeat=3)
        if used_bits(widths, sizes) <= capacity_bits(budget, sizes)
    )
    least = min(cost(widths, reductions) for widths in affordable)
    assert cost(found, reductions) == pytest.approx(least, rel=1e-12)


@SETTINGS
@given(problems())
def test_takes_the_bits_that_the_oracle_takes(problem):
    reductions, sizes, budgets = problem
    expected = [
        oracle.least_distortion(DISTORTIONS, row, sizes, budget)
        for row, budget in zip(reductions, budgets)
    ]
    found = allocate(*problem)
    # Gains that are equal but for rounding may be taken in either order.
    for widths, other, row in zip(found, np.array(expected), reductions):
        if (widths != other).any():
            assert cost(widths, row) == pytest.approx(cost(other, row), rel=1e-9)


@pytest.mark.parametrize("budget", [2.0, 4.0, 6.0])
def test_beats_uniform_bits_on_a_resnet(budget):
    no_reductions = np.zeros(len(RESNET_LAYERS), int)
    widths = allocate([no_reductions], RESNET_LAYERS, [budget])[0]
    uniform = np.full(len(RESNET_LAYERS), int(budget))
    assert cost(widths, no_reductions) < 0.75 * cost(uniform, no_reductions)


def test_four_times_the_weights_take_about_one_bit_less():
    sizes = np.repeat([10, 40, 160], 8)
    widths = allocate([np.zeros(24, int)], sizes, [4.0])[0]
    np.testing.assert_allclose(np.diff(widths.reshape(3, 8).mean(axis=1)), -1, atol=0.4)


def test_a_reduced_layer_gets_no_more_than_its_equal():
    for reduction in range(1, 5):
        widths = allocate([[0, reduction]], [100, 100], [3.0])[0]
        assert widths[1] <= widths[0]


def test_clients_do_not_disturb_each_other():
    reductions = np.array([[0, 1, 0], [2, 0, 0]])
    sizes, budgets = [7, 30, 11], [2.5, 6.0]
    together = allocate(reductions, sizes, budgets)
    for row, reduction, budget in zip(together, reductions, budgets):
        np.testing.assert_array_equal(row, allocate([reduction], sizes, [budget])[0])


@pytest.mark.parametrize("sizes", [[7, 30], [7, 30, 0], [[7, 30, 11]]])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="layer"):
        allocate([[0, 1, 0]], sizes, [2.5])


def test_is_a_policy_that_traces():
    policy = get_allocation_policy("rate_distortion")
    table = tf.fill([2, 3], 2)
    sizes, budgets = np.array([7, 30, 11]), np.array([2.5, 6.0])

    @tf.function
    def decide(reductions):
        return policy(table, tf.zeros([3]), reductions, sizes, budgets)

    reductions = np.array([[0, 1, 0], [2, 0, 0]])
    expected = allocate(reductions, sizes, budgets)
    np.testing.assert_array_equal(decide(tf.constant(reductions, tf.int32)), expected)
