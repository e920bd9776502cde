import numpy as np
import pytest
import tensorflow as tf

from studies.controls import outer_layers_at_8


def allocate(sizes, budgets):
    """Calls the policy in a graph, with the budgets as an argument."""

    @tf.function
    def policy(means, reductions, budgets):
        return outer_layers_at_8(means, reductions, np.array(sizes), budgets)

    shape = [len(budgets), len(sizes)]
    return policy(
        tf.ones(shape), tf.zeros(shape, tf.int32), tf.constant(budgets, tf.float64)
    )


@pytest.mark.parametrize(
    "sizes, budget, expected",
    [
        # 480 bits, 160 of them for the outer layers: 320 over 100 weights.
        ([10, 40, 40, 20, 10], 4, [8, 3, 3, 4, 8]),
        # 240 bits, 100 of them for 1 bit of the others: 140 for the 20 outer weights.
        ([10, 40, 40, 20, 10], 2, [7, 1, 1, 1, 7]),
        # 300 bits, 140 left: one layer of 40 weights gets 2 bits.
        ([10, 40, 40, 20, 10], 2.5, [8, 2, 1, 1, 8]),
        # 204 bits, 104 left for the outer layers: 5 bits, and 4 bits remain unused.
        ([10, 40, 40, 20, 10], 1.7, [5, 1, 1, 1, 5]),
        ([10, 40, 40, 20, 10], 1, [1, 1, 1, 1, 1]),
        ([10, 40, 40, 20, 10], 8, [8, 8, 8, 8, 8]),
        # 70 bits: 60 for 8 bits outside and 1 inside, 10 for the larger layer.
        ([3, 10, 2, 3], 3.9, [8, 2, 1, 8]),
        # 63 bits: 3 remain, too few for the larger one.
        ([3, 10, 2, 3], 3.5, [8, 1, 2, 8]),
        ([5], 2.5, [2]),
        ([3, 5], 2, [2, 2]),
    ],
)
def test_by_hand(sizes, budget, expected):
    np.testing.assert_array_equal(allocate(sizes, [budget]), [expected])


@pytest.mark.parametrize("seed", range(20))
def test_is_within_budget_even_and_leaves_no_useful_bits(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 1000, rng.integers(3, 12))
    budget = rng.uniform(1, 8)

    widths = allocate(sizes, [budget])[0].numpy()

    left = budget * sizes.sum() - sizes @ widths
    inner = widths[1:-1]
    assert left >= 0
    assert widths.min() >= 1 and widths.max() <= 8
    assert widths[0] == widths[-1]
    assert inner.max() - inner.min() <= 1
    assert (sizes[1:-1][(inner == inner.min()) & (inner < 8)] > left).all()


def test_returns_a_row_per_budget():
    widths = allocate([10, 40, 40, 20, 10], [4.0, 2.5])

    assert widths.dtype == tf.int32
    np.testing.assert_array_equal(widths, [[8, 3, 3, 4, 8], [8, 2, 1, 1, 8]])
