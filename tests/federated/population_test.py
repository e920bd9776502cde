"""Clients' ids and rows, states of other populations, and rounds that are refused."""

from __future__ import annotations

import asyncio
import functools
import logging

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles import statistics as statistics_oracle
from oracles.problem import device_bit_widths
from oracles.seeds import set_random_seed

from tff_fedmpq.baselines.aqfl import AQFLConfig, build_aqfl
from tff_fedmpq.baselines.fedavg import FedAvgConfig, build_fedavg
from tff_fedmpq.baselines.fedpaq import FedPAQConfig, build_fedpaq
from tff_fedmpq.baselines.uveqfed import UVeQFedConfig, build_uveqfed
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.learning_process import carry_over
from tff_fedmpq.federated.local_training import learning_rates_at
from tff_fedmpq.federated.population import Population, as_client_ids
from tff_fedmpq.federated.runtime import local_async_runtime

ClientData = tff.simulation.datasets.TestClientData
SHORT = {"epochs": 1, "batch_size": 8}


def model_fn():
    set_random_seed(2)
    return tf.keras.Sequential([
        tf.keras.Input([4]),
        tf.keras.layers.Dense(8, use_bias=False),
        tf.keras.layers.BatchNormalization(),
        tf.keras.layers.ReLU(),
        tf.keras.layers.Dense(3),
    ])  # fmt: skip


def data_of(*ids):
    rng = np.random.default_rng(0)
    return ClientData({
        i: (rng.normal(size=(8, 4)).astype(np.float32), rng.integers(0, 3, 8))
        for i in ids
    })  # fmt: skip


def build(budgets, *, data=None, builder=build_fedmpq, config=None, **options):
    data = data or data_of(*budgets)
    config = config or FedMPQConfig(rounds=4, **SHORT)
    return builder(model_fn, budgets, data, config, **options)


@pytest.fixture(scope="module")
def abc(runtime):
    """A process of three clients, and its state after a round of two of them."""
    process = build({"a": 2, "b": 4, "c": 8})
    return process, process.next(process.initialize(), ["a", "c"]).state


# --- ids and rows -----------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        (["c", "a", "b"], ["a", "b", "c"]),
        (["c10", "c9"], ["c10", "c9"]),
        ([10, 9, 2], ["2", "9", "10"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        ([np.int64(3), 1], ["1", "3"]),
    ],
)
def test_rows_are_by_sorted_id(ids, rows):
    budgets = {client_id: 1 + n for n, client_id in enumerate(ids)}
    scheme = FedMPQConfig().compose()
    population = Population.of(budgets, data_of(*ids), scheme)
    assert population.client_ids == rows
    expected = {str(client_id): 1 + n for n, client_id in enumerate(ids)}
    assert population.budgets.tolist() == [expected[row] for row in rows]
    mixed = dict(reversed(list(budgets.items())))
    assert Population.of(mixed, data_of(*ids), scheme).digest == population.digest


def test_digests_tell_populations_apart():
    scheme = FedMPQConfig().compose()
    data = data_of("a", "b", "ab", "1")
    populations = [{"a": 2, "b": 4}, {"a": 4, "b": 2}, {"a": 2, "ab": 4}]
    populations += [{"a": 2}, {"ab": 2}, {"a": 2.5}]
    digests = {Population.of(budgets, data, scheme).digest for budgets in populations}
    assert len(digests) == len(populations)
    assert all(0 <= digest < 2**63 for digest in digests)


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2],
        (1, 2),
        np.array([1, 2]),
        ["1", "2"],
        np.array(["1", "2"]),
        np.array(["1", "2"], object),
        [b"1", np.int32(2)],
        tf.constant(["1", "2"]),
        tf.constant([1, 2]),
    ],
)
def test_ids_are_strings_or_numbers_in_any_sequence(ids):
    assert as_client_ids(ids) == ["1", "2"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("ids", "kind", "text"),
    [
        ("ab", TypeError, "have to be a list"),
        (b"ab", TypeError, "have to be a list"),
        ({"a"}, TypeError, "have to be a list"),
        (None, TypeError, "have to be a list"),
        (3, TypeError, "have to be a list"),
        ([1.0], TypeError, "string or a whole number; found 1.0"),
        ([True], TypeError, "string or a whole number; found True"),
        ([None], TypeError, "string or a whole number"),
        ([tf.data.Dataset.range(2)] * 2, TypeError, "not data sets"),
        (["a", "b", "a"], ValueError, r"\['a'\] were given twice"),
        ([1, "1"], ValueError, r"\['1'\] were given twice"),
        (["zoe", "a"], ValueError, r"clients \['zoe'\]; clients are"),
        (["a\0"], ValueError, "No budget was given"),
        ([""], ValueError, "No budget was given"),
    ],
)
def test_wrong_ids_are_one_sentence_before_the_round(abc, ids, kind, text):
    process, state = abc
    with pytest.raises(kind, match=text) as error:
        process.next(state, ids)
    assert "\n" not in str(error.value)


def test_whole_numbers_are_ids_everywhere(runtime):
    """Also those of the data, where TFF itself compares them with strings."""
    process = build({3: 2, 20: 4, 1: 8}, builder=build_fedavg, config=FedAvgConfig())
    assert process.client_ids == ["1", "3", "20"]
    outputs = [
        process.next(process.initialize(), ids)
        for ids in ([1, 20], np.array([1, 20]), ("1", "20"))
    ]
    assert outputs[0].metrics["participations"].tolist() == [1, 0, 1]
    assert outputs[0].metrics["client_work"]["train"]["num_examples"] == 5 * 16
    for other in outputs[1:]:
        tf.nest.map_structure(np.testing.assert_array_equal, other, outputs[0])
    process.device_model(outputs[0].state, 20)


# --- states -----------------------------------------------------------------


def test_the_order_of_the_mapping_has_no_effect(abc):
    process, state = abc
    other = build({"c": 8, "b": 4, "a": 2})
    assert other.client_ids == process.client_ids
    output = other.next(state, ["a"])
    # A client of 2 bits gets no more than these.
    bits = device_bit_widths(other, state)[0] @ other.spec.layer_sizes
    assert bits <= 2 * other.spec.layer_sizes.sum()
    assert output.metrics["participations"].tolist() == [1, 0, 0]


@pytest.fixture(scope="module")
def others():
    """Processes of the same clients with other budgets, and of other clients."""
    return {
        "other budgets": build({"a": 4, "b": 2, "c": 8}),
        "other clients": build({"d": 8, "b": 8, "c": 3}, data=data_of("b", "c", "d")),
    }


@pytest.mark.faults
@pytest.mark.parametrize("what", ["other budgets", "other clients"])
def test_a_state_of_others_is_refused(abc, others, what):
    text = "other clients or budgets.*carry_over"
    with pytest.raises(ValueError, match=text) as error:
        others[what].next(abc[1], ["b"])
    assert "\n" not in str(error.value)


def test_a_state_of_others_is_refused_in_a_program_too(abc, others):
    """There the state is not at hand before the round."""
    state, other = abc[1], others["other budgets"]

    async def run():
        first = await tff.program.materialize_value(other.initialize())
        wrong = first._replace(distributor=state.distributor)
        output = other.next(wrong, ["a"])
        await tff.program.materialize_value(output)

    with local_async_runtime():
        with pytest.raises(Exception, match="other clients or budgets"):
            asyncio.run(run())


@pytest.mark.faults
@pytest.mark.parametrize("what", ["an output", "a list", "nothing"])
def test_what_is_no_state_is_refused(abc, what):
    process, state = abc
    wrong = {
        "an output": tff.learning.templates.LearningProcessOutput(state, {}),
        "a list": [state],
        "nothing": None,
    }[what]
    text = "pass output.state" if what == "an output" else "The state has to be"
    with pytest.raises(TypeError, match=text):
        process.next(wrong, ["a"])


@pytest.mark.faults
def test_weights_of_another_model_are_refused(abc):
    process, state = abc
    weights = process.get_model_weights(state)
    fewer = weights._replace(trainable=weights.trainable[:-1])
    other = weights._replace(trainable=[w.T for w in weights.trainable])
    quantized = process.device_model(state, "a").get_weights()
    for wrong in (fewer, other, quantized, None, state):
        with pytest.raises(ValueError, match="weights are of another model") as error:
            process.set_model_weights(state, wrong)
        assert "\n" not in str(error.value)


def test_a_state_is_carried_over_to_clients_that_come_and_go(abc, others):
    process, state = abc
    new = others["other clients"]
    pruned = state.distributor["bit_reductions"].copy()
    pruned[:] = [[1, 0], [0, 1], [2, 1]]
    state = state._replace(distributor={**state.distributor, "bit_reductions": pruned})
    carried = carry_over(state, process, new)
    assert carried.distributor["round"] == 1
    # Rows b, c, d: two of them as before, a new one without anything.
    assert carried.distributor["bit_reductions"].tolist() == [[0, 1], [2, 1], [0, 0]]
    tf.nest.map_structure(
        np.testing.assert_array_equal,
        carried.global_model_weights,
        state.global_model_weights,
    )
    used = device_bit_widths(new, carried) @ new.spec.layer_sizes
    assert (used <= np.array([8, 3, 8]) * new.spec.layer_sizes.sum()).all()
    # "a" and "c" took part: 3 bits are more like the 8 of "c" than the 2 of "a".
    levels = process._server.levels.tolist()
    assert levels == [2, 4, 8] and new._server.levels.tolist() == [3, 8]
    weights = dict(zip(levels, state.distributor["statistics_weights"]))
    assert weights[2] > 0 and weights[4] == 0 and weights[8] > 0
    for rows, old in zip(
        carried.distributor["statistics"], state.distributor["statistics"]
    ):
        expected = statistics_oracle.mixed(3, old, weights)
        np.testing.assert_allclose(rows[0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rows[1], old[2])  # 8 bits were there before.
    carried_weights = carried.distributor["statistics_weights"]
    assert carried_weights[1] == weights[8]
    lowest, highest = sorted([weights[2], weights[8]])
    assert lowest <= carried_weights[0] <= highest
    after = new.next(carried, ["b", "d"])
    assert after.state.distributor["round"] == 2
    with pytest.raises(ValueError, match="other clients or budgets"):
        carry_over(carried, process, new)


def test_what_is_carried_over_to_the_same_clients_is_sent_as_before(abc):
    process, state = abc
    same = build({"a": 2, "b": 4, "c": 8}, seed=9)
    carried = carry_over(state, process, same)
    for name in process.client_ids:
        for mine, before in zip(
            same.device_model(carried, name).get_weights(),
            process.device_model(state, name).get_weights(),
        ):
            np.testing.assert_allclose(mine, before, rtol=1e-6, atol=1e-7)


@pytest.mark.faults
def test_a_state_of_another_version_is_refused(abc):
    process, state = abc
    former = dict(state.distributor)
    former["has_statistics"] = former.pop("statistics_weights") > 0
    old = state._replace(distributor=former)
    for use in (
        lambda: process.next(old, ["a"]),
        lambda: process.device_model(old, "a"),
        lambda: carry_over(old, process, process),
    ):
        with pytest.raises(ValueError, match="another version of tff_fedmpq"):
            use()


def test_a_state_is_not_carried_over_to_another_model(abc):
    process, state = abc
    other = build_fedmpq(
        lambda: tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Dense(3)]),
        {"a": 4},
        data_of("a"),
        FedMPQConfig(rounds=1),
    )
    with pytest.raises(ValueError, match="different models"):
        carry_over(state, process, other)


# --- learning rates and whole bits ------------------------------------------


def test_rates_are_measured_and_their_end_is_said_once(runtime, caplog):
    config = FedMPQConfig(
        rounds=2, learning_rate=0.2, float_learning_rate=0.05, **SHORT
    )
    process = build({"a": 8}, config=config)
    state, rates = process.initialize(), []
    for _ in range(4):
        state, metrics = process.next(state, ["a"])
        rates.append(metrics["training_rates"])
    # The half cosine at 0, 1/2, and from its end on.
    expected = [[0.2, 0.05], [0.1, 0.05], [0, 0.05], [0, 0.05]]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    said = [r for r in caplog.records if "is beyond rounds=2" in r.getMessage()]
    assert len(said) == 1


def rates_in_a_graph(config):
    """Returns the rate of rounds 0 to 2, as the server's graph has them."""
    rates_at = tf.function(functools.partial(learning_rates_at, config))
    return [rates_at(tf.constant(number))[0] for number in range(3)]


@pytest.mark.parametrize("floor", [0.25, 1.0])
def test_a_floor_keeps_rates_from_zero(floor):
    config = FedAvgConfig(rounds=1, learning_rate=0.2, learning_rate_floor=floor)
    expected = [0.2, 0.2 * floor, 0.2 * floor]
    np.testing.assert_allclose(rates_in_a_graph(config), expected, rtol=1e-6)


def test_a_keras_schedule_is_a_rate_by_round():
    schedule = tf.keras.optimizers.schedules.ExponentialDecay(0.2, 1, 0.5)
    config = FedAvgConfig(rounds=2, learning_rate=schedule)
    np.testing.assert_allclose(rates_in_a_graph(config), [0.2, 0.1, 0.05], rtol=1e-6)


@pytest.mark.parametrize(
    ("builder", "config", "budgets", "used", "in_tables"),
    [
        (build_fedpaq, FedPAQConfig(), (2.5, 2.9), "[2.0, 2.0]", "int(v)/32/32"),
        (build_aqfl, AQFLConfig(), (2.9, 4), "[2.0, 4.0]", "int(v)/int(v)/4"),
        (
            build_fedmpq,
            FedMPQConfig(allocation="uniform"),
            (2.9, 4),
            "[2.0, 4.0]",
            "int(v)/int(v)/4",
        ),
        (build_aqfl, AQFLConfig(), (2, 4), None, "v/v/4"),
        (build_fedmpq, FedMPQConfig(), (2.5, 2.9), None, "v/v/4"),
    ],
)
def test_bits_that_a_scheme_cannot_use_are_said(
    caplog, builder, config, budgets, used, in_tables
):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    assert config.compose().precision_of(np.array(budgets)) == in_tables
    caplog.set_level(logging.WARNING)
    with pytest.raises(Stop):
        builder(stop, dict(zip("ab", budgets)), data_of("a", "b"), config)
    if used is None:
        assert "whole bits" not in caplog.text
    else:
        expected = f"of budgets {list(map(float, budgets))} it uses {used} bits"
        assert expected in caplog.text


# --- bits that were sent ----------------------------------------------------


def test_the_uplink_of_uveqfed_is_what_was_sent(runtime):
    """The range coder's bytes, beside float vectors, scales and headers."""
    from tff_fedmpq.baselines import entropy_coding

    def wide():
        set_random_seed(2)
        return tf.keras.Sequential(
            [tf.keras.Input([40]), tf.keras.layers.Dense(50, name="only")]
        )

    rng = np.random.default_rng(0)
    data = ClientData({
        i: (rng.normal(size=(16, 40)).astype(np.float32), rng.integers(0, 50, 16))
        for i in "ab"
    })  # fmt: skip
    budgets = {"a": 3, "b": 5}
    process = build_uveqfed(wide, budgets, data, UVeQFedConfig(epochs=1))
    _, metrics = process.next(process.initialize(), ["b"])
    blocks = [entropy_coding.encode(s) for s in metrics["uplink_symbols"][1]]
    codes = 8 * sum(map(len, blocks))
    # A scale; the dither's seed and the weight; 50 biases.
    expected = [[0, 0, 0, 0], [codes, 32, 64 + 32, 32 * 50]]
    np.testing.assert_array_equal(metrics["uplink_bits"], expected)
    assert 0.8 * 5 < codes / 2000 <= 5
