"""FPQ8: eight bits of everything for everyone."""

from __future__ import annotations

import numpy as np
import pytest

from tff_fedmpq.federated import build_fpq8
from tff_fedmpq.baselines.aqfl import aqfl_scheme
from tff_fedmpq.baselines.fpq8 import fpq8_scheme
from tff_fedmpq.federated.scheme import weigh_by_examples
from tff_fedmpq.keras.layers import QuantReLU


def test_it_is_aqfl_at_eight_bits():
    scheme, aqfl = fpq8_scheme(), aqfl_scheme()
    assert scheme.common_budget == 8
    assert scheme.activation_bits == 8
    assert scheme.weights == aqfl.weights
    assert scheme.training == aqfl.training
    assert scheme.allocation is aqfl.allocation


def test_activations_of_the_clients_model_have_eight_bits(problem):
    model = fpq8_scheme().build_client_model(problem.model_fn)
    relus = [layer for layer in model.layers if isinstance(layer, QuantReLU)]
    assert [relu.activation_bits for relu in relus] == [8]


def test_clients_weigh_by_their_examples():
    assert fpq8_scheme().aggregation_weight is weigh_by_examples
    named = fpq8_scheme(aggregation_weight="budget_and_examples")
    assert named.aggregation_weight(np.float32(8), np.float32(10)) == 80


def test_budgets_are_ignored(runtime, problem):
    """Whatever they are, down and up go eight bits a weight."""
    budgets = dict(zip(problem.budgets, (1, 2, 5.5, 8)))
    process = build_fpq8(
        problem.model_fn, budgets, problem.client_data, epochs=1, batch_size=4
    )
    state = process.initialize()
    np.testing.assert_array_equal(state.distributor["bit_widths"], np.full([4, 2], 8))
    output = process.next(state, problem.client_ids)
    table = output.state.distributor["bit_widths"]
    np.testing.assert_array_equal(table, np.full([4, 2], 8))
    np.testing.assert_array_equal(output.metrics["mean_bit_widths"], [8, 8])
    codes = 8 * problem.spec.layer_sizes.sum()
    for direction in ("uplink_bits", "downlink_bits"):
        np.testing.assert_array_equal(output.metrics[direction][:, 0], 4 * [codes])


@pytest.mark.parametrize("budget", [0, 9, float("nan")])
def test_budgets_have_to_be_budgets_all_the_same(problem, budget):
    with pytest.raises(ValueError, match="1 to 8"):
        build_fpq8(problem.model_fn, {"bert": budget}, problem.client_data)
