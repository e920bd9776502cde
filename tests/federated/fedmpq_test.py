"""FedMPQ's options, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.allocation.policies import keep_bit_widths, rate_distortion
from tff_fedmpq.federated import build_fedmpq
from tff_fedmpq.federated.fedmpq import fedmpq_scheme
from tff_fedmpq.federated.scheme import weigh_by_examples
from tff_fedmpq.federated.uplink import ModelChangeUplink
from tff_fedmpq.keras import (
    IntegerSGD,
    QuantDense,
    quantize_model,
    quantized_kernels,
)
from tff_fedmpq.quantization.representations import (
    OFFSET_BINARY,
    SIGN_MAGNITUDE,
    SignMagnitude,
)
from tff_fedmpq.quantization.scales import (
    get_scale_rule,
    least_squares_scale,
    max_scale,
)


def test_defaults_are_the_papers_but_for_how_codes_learn():
    scheme = fedmpq_scheme()
    assert scheme.name == "fedmpq"
    assert (scheme.lasso, scheme.activation_bits) == (0.01, 4)
    training = scheme.training
    assert (training.epochs, training.batch_size) == (5, 64)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert training.pruning_threshold == 0.03
    assert training.saturate
    assert (training.code_update, training.learning_rate_unit) == ("integer", "weight")
    assert (training.learning_rate, training.learning_rate_decay) == (0.1, "cosine")
    assert isinstance(scheme.uplink, ModelChangeUplink)  # Error feedback.
    assert scheme.allocation is rate_distortion
    assert scheme.weights.representation is SIGN_MAGNITUDE
    assert scheme.weights.scale_rule is least_squares_scale
    assert scheme.aggregation_weight(np.float32(4), np.float32(10)) == 40


def test_keras_pieces_have_the_defaults_of_fedmpqs_clients():
    scheme, alone = fedmpq_scheme(), IntegerSGD().get_config()
    of_clients = scheme.training.build_optimizer().get_config()
    del alone["weight_decay"], of_clients["weight_decay"]  # Keras's own is none.
    assert alone == of_clients
    model = tf.keras.Sequential([tf.keras.Input([2]), tf.keras.layers.Dense(3)])
    for layer in (QuantDense(3), quantize_model(model).layers[-1]):
        assert layer.representation == scheme.weights.representation.name
        assert get_scale_rule(layer.scale_rule) is scheme.weights.scale_rule


def test_options_reach_the_scheme():
    training = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.5,
        "float_learning_rate": 0.25,
        "momentum": 0.0,
        "weight_decay": 0.125,
        "code_update": "stochastic_rounding",
        "pruning_threshold": None,
        "saturate": False,
    }
    scheme = fedmpq_scheme(
        lasso=0.5,
        allocation=keep_bit_widths,
        activation_bits=None,
        representation="offset_binary",
        scale_rule="max",
        aggregation_weight=weigh_by_examples,
        **training,
    )
    assert {name: getattr(scheme.training, name) for name in training} == training
    assert scheme.lasso == 0.5
    assert scheme.allocation is keep_bit_widths
    assert scheme.activation_bits is None
    assert scheme.weights.representation is OFFSET_BINARY
    assert scheme.weights.scale_rule is max_scale
    assert scheme.aggregation_weight(np.float32(4), np.float32(10)) == 10


def test_options_reach_the_optimizer():
    options = {
        "learning_rate": 0.5,
        "float_learning_rate": 0.25,
        "momentum": 0.125,
        "low_bit_damping": 0.75,
        "learning_rate_unit": "weight",
    }
    for code_update in ("integer", "compensated"):
        scheme = fedmpq_scheme(code_update=code_update, **options)
        config = scheme.training.build_optimizer().get_config()
        assert {name: config[name] for name in options} == options


def test_options_reach_the_clients_model(problem):
    scheme = fedmpq_scheme(lasso=0.5, activation_bits=3, representation="offset_binary")
    model = scheme.build_client_model(problem.model_fn)
    assert [k.representation for k in quantized_kernels(model)] == [OFFSET_BINARY] * 2
    # lambda M_l / M: layers of 108 and 144 weights.
    lasso = [model.get_layer(name).lasso for name in ("conv", "classifier")]
    assert lasso == pytest.approx([0.5 * 108 / 252, 0.5 * 144 / 252])
    assert [layer.activation_bits for layer in model.layers[2:3]] == [3]


@pytest.mark.parametrize(
    # Printed, Algorithm 2 never grows the first layer of the order.
    ("allocation", "expected"),
    [("pruning_growing", [[8, 8]]), ("literal_pruning_growing", [[4, 8]])],
)
def test_both_readings_of_algorithm_2_can_be_named(allocation, expected):
    scheme = fedmpq_scheme(allocation=allocation)
    rows = scheme.allocation(
        np.full([1, 2], 8), np.float32([4, 1]), np.zeros([1, 2], np.int32),
        np.array([10, 1]), np.array([8.0]),
    )  # fmt: skip
    assert np.asarray(rows).tolist() == expected


def test_a_representation_that_layers_do_not_know_is_refused():
    class Mine(SignMagnitude):
        """Has the name of another."""

    assert fedmpq_scheme(representation=OFFSET_BINARY).weights is not None
    with pytest.raises(ValueError, match="representation has to be one of"):
        fedmpq_scheme(representation=Mine())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"representation": "ternary"}, ValueError),
        ({"representation": 1}, ValueError),
        ({"saturate": "no"}, ValueError),
        ({"error_feedback": "off"}, ValueError),
        ({"pooled_statistics": "no"}, ValueError),
        ({"scale_rule": "min"}, ValueError),
        ({"allocation": "random"}, ValueError),
        ({"aggregation_weight": "age"}, ValueError),
        ({"epochs": 0}, ValueError),
        ({"learning_rate": -0.1}, ValueError),
        ({"float_learning_rate": float("nan")}, ValueError),
        ({"weight_decay": -1e-4}, ValueError),
        ({"pruning_threshold": 2}, ValueError),
        ({"no_such_option": 1}, TypeError),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, error):
    with pytest.raises(error) as caught:
        fedmpq_scheme(**options)
    assert "\n" not in str(caught.value)
    name, value = next(iter(options.items()))
    assert str(value) in str(caught.value) or name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lasso": -1.0}, "lasso"),
        ({"lasso": float("nan")}, "lasso"),
        ({"activation_bits": 9}, "activation_bits"),
        ({"activation_bits": 0}, "activation_bits"),
        ({"momentum": 1.0}, "momentum"),
        ({"code_update": "guess"}, "guess"),
        ({"code_update": "compensated", "momentum": 0.0}, "momentum 0.0"),
        ({"learning_rate_unit": "bit"}, "'bit'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_when_the_process_is_built(problem, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        problem.build(**options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ({}, "budgets is empty"),
        ({"dora": 0.5}, "1 to 8"),
        ({"dora": 2, "bert": 8.01}, r"1 to 8.*8\.01"),
        ({"dora": -3}, "1 to 8"),
        ({"dora": float("nan")}, "1 to 8.*nan"),
        ({"dora": float("inf")}, "1 to 8.*inf"),
        ({"dora": "many"}, "numbers.*many"),
        ({"dora": None}, "1 to 8|numbers"),
        ({"dora": [2, 4]}, "one number"),
        ({"dora": 2, "bert": [2, 4]}, "numbers"),
        ({"dora": 2, "zoe": 4}, "zoe"),
    ],
    ids=str,
)
def test_bad_budgets_are_refused_when_the_process_is_built(problem, budgets, words):
    with pytest.raises(ValueError, match=words) as caught:
        build_fedmpq(problem.model_fn, budgets, problem.client_data)
    assert len(str(caught.value).splitlines()) == 1


def test_a_client_without_data_is_named_with_those_that_have(problem):
    with pytest.raises(ValueError, match=r"no clients \['zoe'\].*'dora'"):
        build_fedmpq(problem.model_fn, {"zoe": 2}, problem.client_data)


# --- its parts, each left out -----------------------------------------------


@pytest.fixture(scope="module")
def table_after_two_rounds(runtime, problem):
    """options -> int32[N, L]."""

    def run(**options) -> np.ndarray:
        process = (
            problem.build(lasso=20.0, **options)
            if "lasso" not in options
            else (problem.build(**options))
        )
        state = process.initialize()
        for _ in range(2):
            state = process.next(state, problem.client_ids).state
        return state.distributor["bit_widths"]

    return run


def test_every_part_has_its_effect_on_the_table(table_after_two_rounds):
    tables = {
        "all": table_after_two_rounds(),
        "no lasso": table_after_two_rounds(lasso=0.0),
        "no pruning": table_after_two_rounds(pruning_threshold=None),
        "no allocation": table_after_two_rounds(allocation="keep"),
    }
    shown = {name: table.tolist() for name, table in tables.items()}
    for name in ("no lasso", "no pruning", "no allocation"):
        assert shown[name] != shown["all"], shown
    # Nobody decides: everyone keeps the uniform bits of the start.
    assert shown["no allocation"] == [[2, 2], [8, 8], [6, 5], [4, 4]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error_feedback": False, "server_learning_rate": 0.5}, "error_feedback=True"),
        ({"server_learning_rate": 0.0}, "above 0, found 0.0"),
    ],
)
def test_refuses_server_learning_rates(options, message):
    with pytest.raises(ValueError, match=message):
        fedmpq_scheme(**options)
