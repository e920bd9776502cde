"""FedMPQ's options, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from oracles import allocation as oracle
from oracles.problem import device_bit_widths, small_model

from tff_fedmpq.allocation import uniform_bit_widths
from tff_fedmpq.allocation.pruning_growing import (
    distortion_order,
    prune_and_grow_graph,
)
from tff_fedmpq.baselines.aqfl import AQFLConfig
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.local_training import LocalTrainer, Pruning
from tff_fedmpq.federated.messages import ModelChangeUplink, ModelUplink
from tff_fedmpq.keras import (
    IntegerSGD,
    QuantDense,
    quantize_model,
    quantized_kernels,
)
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization.representations import OFFSET_BINARY, SIGN_MAGNITUDE
from tff_fedmpq.quantization.scales import (
    get_scale_rule,
    max_scale,
    widening_scale,
)


def optimizer_settings(config, model) -> dict:
    """Returns the settings of the optimizer that clients train with."""
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return LocalTrainer(model, config, loss)._optimizer.get_config()


def test_defaults_are_the_papers_but_for_how_codes_learn():
    scheme = FedMPQConfig().compose()
    assert scheme.name == "fedmpq"
    assert (scheme.lasso, scheme.pruning, scheme.activation_bits) == (0, None, 4)
    training = scheme.training
    assert (training.epochs, training.batch_size) == (5, 64)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)
    assert training.learning_rate_unit == "weight"
    assert (training.learning_rate, training.learning_rate_decay) == (0.1, "cosine")
    assert training.float_learning_rate == 0.1
    assert training.float_learning_rate_decay == "none"
    assert isinstance(scheme.uplink, ModelChangeUplink)  # Error feedback.
    assert scheme.allocation.func is prune_and_grow_graph
    assert scheme.allocation.keywords == {"order": distortion_order}
    assert scheme.weights.representation is SIGN_MAGNITUDE
    assert scheme.weights.scale_rule is widening_scale
    assert scheme.aggregation_weight(np.float32(4), np.float32(10)) == 10


def test_keras_pieces_have_the_defaults_of_fedmpqs_clients():
    scheme, alone = FedMPQConfig().compose(), IntegerSGD().get_config()
    # Of many weights, or chance would choose their representation.
    model = tf.keras.Sequential([tf.keras.Input([64]), tf.keras.layers.Dense(32)])
    quantized = quantize_model(model, 8)
    of_clients = optimizer_settings(scheme.training, quantized)
    for settings in (alone, of_clients):
        del settings["weight_decay"]  # Keras's own is none.
    assert of_clients.keys() == alone.keys()
    for name, value in alone.items():
        if isinstance(value, float):
            assert of_clients[name] == pytest.approx(value, rel=1e-6), name
        else:
            assert of_clients[name] == value, name
    for layer in (QuantDense(3), quantized.layers[-1]):
        assert layer.representation == scheme.weights.representation.name
        assert get_scale_rule(layer.scale_rule) is scheme.weights.scale_rule


@pytest.mark.parametrize("config", [FedMPQConfig, FedMPQConfig.literal, AQFLConfig])
def test_how_steps_are_rounded_reaches_the_optimizer(config):
    for name in ("nearest", "up"):
        training = config(step_rounding=name).compose().training
        settings = optimizer_settings(training, small_model())
        assert settings["step_rounding"] == name


def test_options_reach_the_scheme():
    options = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.5,
        "float_learning_rate": 0.25,
        "momentum": 0.0,
        "weight_decay": 0.125,
        "pruning_threshold": 0.5,
        "pruning_saturates": False,
        "pruning_end": 0.25,
        "lasso": 0.5,
        "allocation": "uniform",
        "activation_bits": None,
        "representation": "offset_binary",
        "scale_rule": "max",
        "aggregation_weight": "examples",
        "error_feedback": False,
    }
    scheme = FedMPQConfig(**options).compose()
    training = ("epochs", "batch_size", "learning_rate", "float_learning_rate")
    for name in (*training, "momentum", "weight_decay"):
        assert getattr(scheme.training, name) == options[name]
    assert scheme.pruning == Pruning(0.5, saturates=False, end=0.25)
    assert scheme.lasso == 0.5
    assert scheme.allocation is uniform_bit_widths
    assert scheme.activation_bits is None
    assert scheme.weights.representation is OFFSET_BINARY
    assert scheme.weights.scale_rule is max_scale
    assert type(scheme.uplink) is ModelUplink
    assert scheme.aggregation_weight(np.float32(4), np.float32(10)) == 10
    assert FedMPQConfig(pruning_threshold=None).compose().pruning is None


def test_options_reach_the_optimizer(problem):
    options = {
        "learning_rate": 0.5,
        "float_learning_rate": 0.25,
        "momentum": 0.125,
        "weight_decay": 0.0625,
        "learning_rate_unit": "code",
    }
    config = FedMPQConfig(**options)
    model = config.compose().build_client_model(problem.model_fn())
    found = optimizer_settings(config, model)
    assert {name: found[name] for name in options} == options


def test_options_reach_the_clients_model(problem):
    scheme = FedMPQConfig(
        lasso=0.5, activation_bits=3, representation="offset_binary"
    ).compose()
    model = scheme.build_client_model(problem.model_fn())
    assert [k.representation for k in quantized_kernels(model)] == [OFFSET_BINARY] * 2
    # lambda M_l / M: layers of 108 and 144 weights.
    lasso = [model.get_layer(name).lasso_strength for name in ("conv", "classifier")]
    assert lasso == pytest.approx([0.5 * 108 / 252, 0.5 * 144 / 252])
    assert [layer.activation_bits for layer in model.layers[2:3]] == [3]


@pytest.mark.parametrize(
    ("order", "expected"), [("size", [1, 7]), ("distortion", [4, 4])]
)
def test_bits_are_pruned_in_the_order_of_that_name(order, expected):
    """From 8 bits of layers of 12 and 10 weights, to 4 on average: 88 bits.

    By size, the larger layer loses all its bits but one, and then the other one bit; by
    distortion, both lose their last bits in turn.
    """
    scheme = FedMPQConfig(order=order).compose()
    rows = scheme.allocation(
        tf.constant([[8.0, 8.0]]),
        tf.zeros([1, 2], tf.int32),
        np.array([12, 10]),
        tf.constant([4.0], tf.float64),
    )
    assert rows.numpy().tolist() == [expected]


def test_a_representation_that_layers_do_not_know_is_refused():
    """Layers are saved with its name, so that an object would be lost."""
    with pytest.raises(ValueError, match="representation.*'sign_magnitude'"):
        FedMPQConfig(representation=OFFSET_BINARY)


@pytest.mark.parametrize(
    "changes", [{}, {"learning_rate": 0.3, "pruning_saturates": True}]
)
def test_the_literal_reading_can_be_changed(changes):
    literal = FedMPQConfig.literal(**changes)
    expected = {
        "representation": "offset_binary",
        "scale_rule": "max",
        "error_feedback": False,
        "statistics_per_budget": False,
        "learning_rate_unit": "code",
        "learning_rate": 0.1,
        "learning_rate_decay": "none",
        "lasso": 0.01,
        "pruning_threshold": 0.03,
        "pruning_saturates": False,
        "pruning_end": 1.0,
        "order": "size",
        "aggregation_weight": "budget_and_examples",
        **changes,
    }
    assert literal == FedMPQConfig(**expected)
    with pytest.raises(TypeError, match="bits"):
        FedMPQConfig.literal(bits=3)


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ({}, "budgets is empty"),
        ({"dora": 0.5}, "1 to 8"),
        ({"dora": 2, "bert": 8.01}, r"1 to 8.*8\.01"),
        ({"dora": -3}, "1 to 8"),
        ({"dora": float("nan")}, "1 to 8.*nan"),
        ({"dora": float("inf")}, "1 to 8.*inf"),
        ({"dora": "many"}, "numbers of bits.*many"),
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
        process = problem.build(**{"lasso": 20.0, **options})
        state = process.initialize()
        for _ in range(2):
            state, metrics = process.next(state, problem.client_ids)
        return metrics["bit_widths"]

    return run


@pytest.mark.slow
def test_every_part_has_its_effect_on_the_table(table_after_two_rounds):
    tables = {
        "all": table_after_two_rounds(),
        "no lasso": table_after_two_rounds(lasso=0.0),
        "no pruning": table_after_two_rounds(pruning_threshold=None),
        "no allocation": table_after_two_rounds(allocation="uniform"),
    }
    shown = {name: table.tolist() for name, table in tables.items()}
    for name in ("no lasso", "no pruning", "no allocation"):
        assert shown[name] != shown["all"], shown
    # The whole bits of each budget.
    assert shown["no allocation"] == [[4, 4], [8, 8], [5, 5], [2, 2]]


def test_nothing_is_pruned_after_the_end(runtime, problem):
    """A threshold of 1 prunes to one bit, in the first of two rounds alone."""
    process = problem.build(pruning_threshold=1.0, pruning_end=0.5, rounds=2)
    first = process.next(process.initialize(), problem.client_ids)
    second = process.next(first.state, problem.client_ids)
    assert (first.metrics["mean_bit_widths"] == 1).all()
    sent = first.metrics["bit_widths"]
    assert (sent > 1).any() and second.metrics["participations"].all()
    examples = [len(problem.examples[name][1]) for name in process.client_ids]
    np.testing.assert_allclose(
        second.metrics["mean_bit_widths"],
        np.average(sent, axis=0, weights=process.budgets * examples),
        rtol=1e-6,
    )


def uneven_model() -> tf.keras.Model:
    """Layers of 108 and 576 weights."""
    layers = tf.keras.layers
    inputs, conv = layers.Input((8, 8, 3)), layers.Conv2D(4, 3, strides=2)
    return tf.keras.Sequential([inputs, conv, layers.Flatten(), layers.Dense(16)])


def tables_of_bits(problem, budget, **options):
    """Yields the bits of clients of one budget, in the first round and the next."""
    budgets = dict.fromkeys(problem.budgets, budget)
    config = FedMPQConfig(epochs=1, batch_size=4, **options)
    process = build_fedmpq(uneven_model, budgets, problem.client_data, config)
    state = process.initialize()
    yield device_bit_widths(process, state)
    state = process.next(state, problem.client_ids).state
    yield device_bit_widths(process, state)


def test_clients_of_one_budget_get_mixed_bits(runtime, problem):
    """Those of least error, in the first round and, as nothing is pruned, ever after.

    Started from whole bits, which use all of a budget, they would stay uniform.
    """
    sizes, unpruned = np.array([108, 576]), np.zeros(2, int)
    values = oracle.distortion_values(gaussian.DISTORTIONS, unpruned, sizes)
    expected = oracle.by_value(values, np.ones(2), sizes, budget=3)
    assert expected == [8, 2]
    for table in tables_of_bits(problem, 3):
        assert table.tolist() == len(problem.budgets) * [expected]


def test_the_papers_order_starts_from_whole_bits(runtime, problem):
    for table in tables_of_bits(problem, 3, order="size"):
        assert (table == 3).all()
