"""FPQ8: eight bits of everything for everyone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracles.problem import device_bit_widths

from tff_fedmpq.baselines.aqfl import AQFLConfig
from tff_fedmpq.baselines.fpq8 import FPQ8Config, build_fpq8
from tff_fedmpq.keras import QuantReLU


def test_it_is_aqfl_at_eight_bits():
    scheme, aqfl = FPQ8Config().compose(), AQFLConfig().compose()
    assert scheme.common_budget == 8
    assert scheme.activation_bits == 8
    assert scheme.weights == aqfl.weights
    training, other = (dataclasses.asdict(s.training) for s in (scheme, aqfl))
    differing = {name for name in other if training[name] != other[name]}
    assert training.keys() == other.keys()
    assert differing == {"activation_bits"}
    assert (scheme.lasso, scheme.pruning) == (aqfl.lasso, aqfl.pruning) == (0, None)
    assert type(scheme.uplink) is type(aqfl.uplink)
    assert scheme.allocation is aqfl.allocation


def test_activations_of_the_clients_model_have_eight_bits(problem):
    model = FPQ8Config().compose().build_client_model(problem.model_fn())
    relus = [layer for layer in model.layers if isinstance(layer, QuantReLU)]
    assert [relu.activation_bits for relu in relus] == [8]


def test_clients_weigh_by_their_examples():
    scheme = FPQ8Config().compose()
    assert scheme.aggregation_weight(np.float32(8), np.float32(10)) == 10
    named = FPQ8Config(aggregation_weight="budget_and_examples").compose()
    assert named.aggregation_weight(np.float32(8), np.float32(10)) == 80


def test_budgets_are_ignored(runtime, problem):
    """Whatever they are, down and up go eight bits a weight."""
    budgets = dict(zip(problem.budgets, (1, 2, 5.5, 8)))
    config = FPQ8Config(epochs=1, batch_size=4)
    process = build_fpq8(problem.model_fn, budgets, problem.client_data, config)
    assert process.budgets.tolist() == [8, 8, 8, 8]
    state = process.initialize()
    table = device_bit_widths(process, state)
    np.testing.assert_array_equal(table, np.full([4, 2], 8))
    output = process.next(state, problem.client_ids)
    np.testing.assert_array_equal(output.metrics["bit_widths"], np.full([4, 2], 8))
    np.testing.assert_array_equal(output.metrics["mean_bit_widths"], [8, 8])
    codes = 8 * problem.spec.layer_sizes.sum()
    for direction in ("uplink_bits", "downlink_bits"):
        np.testing.assert_array_equal(output.metrics[direction][:, 0], 4 * [codes])


@pytest.mark.parametrize("budget", [0, 9, float("nan")])
def test_budgets_have_to_be_budgets_all_the_same(problem, budget):
    with pytest.raises(ValueError, match="1 to 8"):
        build_fpq8(problem.model_fn, {"bert": budget}, problem.client_data)
