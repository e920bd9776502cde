"""Pruning-growing (Algorithm 2): corrected and literal, NumPy and graph.

Budgets are multiples of 1/16, and so exact in float32: no capacity hangs on a
rounding.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import allocation as oracle
from oracles import strategies
from oracles.strategies import SETTINGS

from tff_fedmpq.allocation.pruning_growing import (
    prune_and_grow,
    prune_and_grow_graph,
)

RESNET_LAYERS = (432, 2304, 2304, 4608, 9216, 512, 18432, 36864, 2048, 640)


@st.composite
def problems(draw, max_clients=4):
    """(means [N, L], reductions [N, L], sizes [L], budgets [N])."""
    num_layers = draw(st.integers(min_value=1, max_value=7))
    num_clients = draw(st.integers(min_value=1, max_value=max_clients))
    largest = draw(st.sampled_from([1, 4, 100, 40_000]))
    rng = np.random.default_rng(draw(strategies.seeds))
    shape = (num_clients, num_layers)
    sizes = rng.integers(1, largest + 1, size=num_layers)
    # Sixteenths: exact, with many halves to round.
    means = rng.integers(16, 8 * 16 + 1, size=shape) / 16
    reductions = rng.integers(0, draw(st.sampled_from([1, 3, 8])), size=shape)
    budgets = rng.integers(16, 8 * 16 + 1, size=num_clients) / 16
    return means, reductions, sizes, budgets


def by_oracle(function, means, reductions, sizes, budgets):
    rows = zip(means, reductions, budgets)
    return np.array([function(mean, red, sizes, v) for mean, red, v in rows])


def in_graph(means, reductions, sizes, budgets, **options):
    return prune_and_grow_graph(
        tf.constant(means, tf.float32),
        tf.constant(reductions, tf.int32),
        tf.constant(sizes, tf.int32),
        tf.constant(budgets, tf.float32),
        **options,
    )


@pytest.mark.parametrize("literal", [False, True], ids=["corrected", "literal"])
@SETTINGS
@given(problem=problems())
def test_numpy_graph_and_oracle_agree(literal, problem):
    want = by_oracle(oracle.literal if literal else oracle.corrected, *problem)
    result = prune_and_grow(*problem, literal=literal)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, want)
    result = in_graph(*problem, literal=literal)
    assert result.dtype == tf.int32
    np.testing.assert_array_equal(result.numpy(), want)


@pytest.mark.parametrize("literal", [False, True], ids=["corrected", "literal"])
@pytest.mark.parametrize("budget", [1.0, 2.0, 3.25, 4.0, 6.0, 8.0])
def test_layers_of_a_network(literal, budget):
    rng = np.random.default_rng(int(100 * budget))
    shape = (5, len(RESNET_LAYERS))
    means = rng.uniform(1, 8, size=shape).astype(np.float32)
    reductions = rng.integers(0, 4, size=shape)
    budgets = np.full(5, budget)
    problem = (means, reductions, np.array(RESNET_LAYERS), budgets)
    want = by_oracle(oracle.literal if literal else oracle.corrected, *problem)
    np.testing.assert_array_equal(prune_and_grow(*problem, literal=literal), want)
    np.testing.assert_array_equal(in_graph(*problem, literal=literal).numpy(), want)


@SETTINGS
@given(problem=problems())
def test_within_bounds_and_capacity_and_maximal(problem):
    means, reductions, sizes, budgets = problem
    for row, budget in zip(prune_and_grow(*problem), budgets):
        assert np.all((row >= 1) & (row <= 8))
        spare = oracle.capacity_bits(budget, sizes) - oracle.used_bits(row, sizes)
        assert spare >= 0
        # Not one bit more fits anywhere.
        assert np.all(sizes[row < 8] > spare)


@SETTINGS
@given(problem=problems(max_clients=1))
def test_layers_early_in_the_order_are_pruned_first(problem):
    """A layer that ends below where it began stands after layers of 1 bit.

    What those have above 1 bit grew out of the rest that was too small for the
    layer itself.
    """
    means, reductions, sizes, _ = problem
    row = prune_and_grow(*problem)[0]
    start = [oracle.rounded_bit_width(mean) for mean in means[0]]
    order = oracle.pruning_order(reductions[0], sizes)
    for position, layer in enumerate(order):
        if row[layer] < start[layer]:
            earlier = order[:position]
            regrown = sum((int(row[i]) - 1) * int(sizes[i]) for i in earlier)
            assert regrown < sizes[layer]


@SETTINGS
@given(problem=problems())
def test_a_second_pass_changes_nothing(problem):
    """The result is within its capacity and maximal, so it stays."""
    _, reductions, sizes, budgets = problem
    once = prune_and_grow(*problem)
    again = prune_and_grow(once.astype(np.float64), reductions, sizes, budgets)
    np.testing.assert_array_equal(again, once)


@SETTINGS
@given(problem=problems())
def test_clients_do_not_depend_on_each_other(problem):
    means, reductions, sizes, budgets = problem
    together = prune_and_grow(*problem)
    for row, mean, reduction, budget in zip(together, means, reductions, budgets):
        alone = prune_and_grow(mean, reduction, sizes, float(budget))
        assert alone.shape == mean.shape
        np.testing.assert_array_equal(alone, row)


def test_one_budget_for_all_clients():
    means = np.array([[3.0, 5.0, 2.0], [8.0, 8.0, 8.0]])
    reductions, sizes = np.zeros([2, 3], np.int64), np.array([10, 20, 30])
    np.testing.assert_array_equal(
        prune_and_grow(means, reductions, sizes, 3.5),
        prune_and_grow(means, reductions, sizes, np.array([3.5, 3.5])),
    )


@pytest.mark.parametrize("literal", [False, True], ids=["corrected", "literal"])
def test_halves_round_to_even(literal):
    """3.5, 2.5 and 0.5, 7.5 at the ends: 4, 2, 1, 8, exactly the budget."""
    means = np.array([[3.5, 2.5, 0.5, 7.5]])
    sizes = np.array([5, 5, 5, 5])
    budgets = np.array([(4 + 2 + 1 + 8) / 4])
    problem = (means, np.zeros([1, 4], np.int64), sizes, budgets)
    np.testing.assert_array_equal(
        prune_and_grow(*problem, literal=literal), [[4, 2, 1, 8]]
    )
    np.testing.assert_array_equal(
        in_graph(*problem, literal=literal).numpy(), [[4, 2, 1, 8]]
    )


@pytest.mark.parametrize("version", [prune_and_grow, in_graph])
def test_ties_go_by_index(version):
    """Equal keys (20 * 1, 10 * 2, 20 * 1): the first is pruned first."""
    means, sizes = np.array([[4.0, 4.0, 4.0]]), np.array([20, 10, 20])
    reductions = np.array([[0, 1, 0]])
    result = version(means, reductions, sizes, np.array([3.25]))
    # 200 bits to 162: the first layer gives 20 twice; 2 bits are left over.
    np.testing.assert_array_equal(np.asarray(result), [[2, 4, 4]])


@pytest.mark.parametrize("version", [prune_and_grow, in_graph])
def test_layers_that_do_not_fit_are_skipped(version):
    """13 * 4 = 52 bits of 1 + 2 + 10: the smaller ones take the rest."""
    sizes = np.array([2, 10, 1])
    result = version(np.ones([1, 3]), np.zeros([1, 3], np.int64), sizes, np.ones(1) * 4)
    # Last in the order first: sizes 1 and 2 to 8 bits (24), then 10 to 2 bits.
    np.testing.assert_array_equal(np.asarray(result), [[8, 2, 8]])


@pytest.mark.parametrize("version", [prune_and_grow, in_graph])
def test_the_first_layer_grows_only_in_the_corrected_reading(version):
    """At 8 bits on average all layers have 8 bits, unless it is forbidden."""
    means, reductions = np.ones([1, 3]), np.zeros([1, 3], np.int64)
    problem = (means, reductions, np.array([5, 70, 3]), np.array([8.0]))
    np.testing.assert_array_equal(np.asarray(version(*problem)), [[8, 8, 8]])
    np.testing.assert_array_equal(
        np.asarray(version(*problem, literal=True)), [[8, 1, 8]]
    )


@pytest.mark.parametrize("version", [prune_and_grow, in_graph])
def test_the_literal_reading_overshoots(version):
    means, reductions = np.array([[1.0, 1.0]]), np.zeros([1, 2], np.int64)
    problem = (means, reductions, np.array([10, 9]), np.array([1.25]))
    # 19 weights, capacity 23 bits: no layer fits, the literal reading takes one.
    np.testing.assert_array_equal(np.asarray(version(*problem)), [[1, 1]])
    np.testing.assert_array_equal(np.asarray(version(*problem, literal=True)), [[1, 2]])


@pytest.mark.parametrize("version", [prune_and_grow, in_graph])
def test_reductions_move_a_layer_forward(version):
    """10 * (2 + 1) is more than 20 * 1: 8 of 120 bits have to go.

    The small layer gives one bit; or the large one does, and the small one
    takes half of what that left over.
    """
    means, sizes = np.array([[4.0, 4.0]]), np.array([20, 10])
    budgets = np.array([3.75])
    for reductions, want in ([[0, 2]], [[4, 3]]), ([[0, 0]], [[3, 5]]):
        result = version(means, np.array(reductions), sizes, budgets)
        np.testing.assert_array_equal(np.asarray(result), want)


@pytest.mark.parametrize("version", [prune_and_grow, in_graph])
@pytest.mark.parametrize("budget", [2.0, 3.0625, 5.5, 7.9375, 8.0])
def test_layers_too_large_for_float32_sums(version, budget):
    """Above 2^24 bits float32 has no odd numbers: the capacity is still exact."""
    sizes = np.array([9_437_185, 2_359_297, 11_173_963, 1, 3, 5_000_001])
    means = np.array([[1.0, 8.0, 4.5, 2.0, 7.0, 3.0]])
    reductions = np.array([[0, 2, 1, 0, 3, 0]])
    problem = (means, reductions, sizes, np.array([budget]))
    want = by_oracle(oracle.corrected, *problem)
    np.testing.assert_array_equal(np.asarray(version(*problem)), want)


@SETTINGS
@given(problem=problems(), budget=st.floats(min_value=1, max_value=8))
def test_any_budget(problem, budget):
    """float64 budgets, away from those whose capacity a rounding decides."""
    means, reductions, sizes, _ = problem
    exact = budget * float(np.sum(sizes))
    assume(abs(exact - round(exact)) > 1e-6)
    budgets = np.full(len(means), budget)
    np.testing.assert_array_equal(
        prune_and_grow(means, reductions, sizes, budgets),
        by_oracle(oracle.corrected, means, reductions, sizes, budgets),
    )


@pytest.mark.parametrize("budget", [1.0, 8.0])
def test_ends_of_the_range_of_budgets(budget):
    rng = np.random.default_rng(9)
    means, sizes = rng.uniform(1, 8, size=[3, 5]), rng.integers(1, 99, size=5)
    result = prune_and_grow(means, np.ones([3, 5], np.int64), sizes, np.full(3, budget))
    np.testing.assert_array_equal(result, np.full([3, 5], budget))


def test_means_out_of_range_are_clipped():
    """To 1 and 8, which is what they then may keep."""
    means = np.array([[-2.0, 0.2, 9.7, 8.4]])
    sizes = np.array([4, 4, 4, 4])
    result = prune_and_grow(means, np.zeros([1, 4], np.int64), sizes, np.array([4.5]))
    np.testing.assert_array_equal(result, [[1, 1, 8, 8]])


def test_the_arguments_are_left_alone():
    means, reductions = np.full([2, 3], 8.0), np.ones([2, 3], np.int64)
    sizes, budgets = np.array([3, 2, 1]), np.array([2.0, 3.0])
    prune_and_grow(means, reductions, sizes, budgets)
    assert np.all(means == 8) and np.all(reductions == 1)
    assert sizes.tolist() == [3, 2, 1] and budgets.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("literal", [False, True], ids=["corrected", "literal"])
def test_one_trace_serves_every_round(literal):
    """Sizes and budgets belong to model and clients: constants of the trace."""
    traces = []
    sizes, budgets = np.array(RESNET_LAYERS), np.array([2.0, 4.0625, 6.5])

    @tf.function
    def allocated(means, reductions):
        traces.append(means)
        return prune_and_grow_graph(means, reductions, sizes, budgets, literal=literal)

    rng = np.random.default_rng(6)
    for _ in range(5):
        means = rng.uniform(1, 8, size=(3, len(sizes))).astype(np.float32)
        reductions = rng.integers(0, 4, size=means.shape)
        result = allocated(tf.constant(means), tf.constant(reductions, tf.int32))
        function = oracle.literal if literal else oracle.corrected
        want = by_oracle(function, means, reductions, sizes, budgets)
        np.testing.assert_array_equal(result.numpy(), want)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "sizes_are_traced, budgets_are_traced", [(True, False), (False, True)]
)
def test_sizes_and_budgets_of_the_graph_are_refused(
    sizes_are_traced, budgets_are_traced
):
    sizes, budgets = np.array([20, 10]), np.array([3.75], np.float32)

    @tf.function
    def allocated(traced_sizes, traced_budgets):
        return prune_and_grow_graph(
            tf.constant([[4.0, 4.0]]),
            tf.constant([[0, 2]]),
            traced_sizes if sizes_are_traced else sizes,
            traced_budgets if budgets_are_traced else budgets,
        )

    with pytest.raises(TypeError, match="known when the graph is built"):
        allocated(tf.constant(sizes, tf.int32), tf.constant(budgets))


GOOD = {
    "mean_bit_widths": np.array([4.0, 4.0]),
    "bit_reductions": np.array([0, 0]),
    "layer_sizes": np.array([10, 20]),
    "budget": 4.0,
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"budget": 0.99}, id="budget below 1"),
        pytest.param({"budget": 8.01}, id="budget above 8"),
        pytest.param({"budget": math.nan}, id="budget not a number"),
        pytest.param({"budget": math.inf}, id="budget infinite"),
        pytest.param({"bit_reductions": np.array([0])}, id="reductions shorter"),
        pytest.param({"bit_reductions": np.zeros([1, 2], int)}, id="other rank"),
        pytest.param({"layer_sizes": np.array([1, 2, 3])}, id="sizes longer"),
        pytest.param({"layer_sizes": np.array([10, 0])}, id="layer of nothing"),
        pytest.param({"layer_sizes": np.array([10, -1])}, id="negative size"),
        pytest.param({"bit_reductions": np.array([0, -1])}, id="negative reduction"),
        pytest.param({"bit_reductions": np.array([0, 0.5])}, id="half a bit"),
        pytest.param({"bit_reductions": np.array([0, math.nan])}, id="no number"),
        pytest.param(
            {
                "mean_bit_widths": np.zeros(0),
                "bit_reductions": np.zeros(0, int),
                "layer_sizes": np.zeros(0, int),
            },
            id="no layer",
        ),
        pytest.param(
            {
                "mean_bit_widths": np.ones([2, 2]),
                "bit_reductions": np.zeros([2, 2], int),
                "budget": np.array([2.0, 3.0, 4.0]),
            },
            id="more budgets than clients",
        ),
    ],
)
def test_wrong_input_is_refused(change):
    prune_and_grow(**GOOD)
    with pytest.raises(ValueError):
        prune_and_grow(**{**GOOD, **change})
