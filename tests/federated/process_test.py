"""A round against NumPy, and a run with TFF's own programs and evaluation."""

from __future__ import annotations

import asyncio
import collections
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles import allocation as allocation_oracle
from oracles import quantization as oracle
from oracles import statistics
from oracles.problem import device_bit_widths

from tff_fedmpq.allocation import prune_and_grow
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.runtime import local_async_runtime
from tff_fedmpq.keras import QuantReLU, quantize_model, quantized_kernels
from tff_fedmpq.keras.variables import (
    float_non_trainable_variables,
    float_parameter_variables,
)
from tff_fedmpq.simulation.samplers import ClientSampler

LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def assert_equal(a, b):
    """Of two states or metrics: bit for bit."""
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def model_by_oracle(problem, message) -> list[np.ndarray]:
    """The float model that a client's message stands for, in `spec`'s split order."""
    kernels, begin = [], 0
    for shape, bits, scale in zip(
        problem.spec.kernel_shapes, message["bit_widths"].tolist(), message["scales"]
    ):
        size = int(np.prod(shape))
        end = begin + -(-size * bits // 8)
        codes = oracle.unpack(message["codes"][begin:end], bits, size).reshape(shape)
        kernels.append(oracle.levels(oracle.SIGN_MAGNITUDE, scale, bits)[codes])
        begin = end
    return [*kernels, *message["float_parameters"]]


def as_list(problem, state) -> list[np.ndarray]:
    weights = problem.split(state.global_model_weights)
    return [*weights.kernels, *weights.float_parameters]


def used_bits(problem, table) -> np.ndarray:
    return table @ problem.spec.layer_sizes


def budget_bits(problem) -> np.ndarray:
    budgets = np.array([problem.budgets[name] for name in problem.client_ids])
    return np.floor(budgets * problem.spec.layer_sizes.sum())


# --- types ------------------------------------------------------------------


def test_only_strings_go_in(process):
    signature = process.next.type_signature
    state_type = process.initialize.type_signature.result
    assert tff.structure.name_list(signature.parameter) == ["state", "client_ids"]
    assert signature.parameter["state"] == state_type
    assert state_type.placement is tff.SERVER
    clients = tff.FederatedType(tff.TensorType(np.str_), tff.CLIENTS)
    assert signature.parameter["client_ids"] == clients
    assert signature.result["state"] == state_type
    assert signature.result["metrics"].placement is tff.SERVER
    assert isinstance(process, tff.learning.templates.LearningProcess)


def test_weights_have_the_types_of_model_weights(process, problem):
    result = process.get_model_weights.type_signature.result
    assert result.python_container is tff.learning.models.ModelWeights
    trainable = [tuple(t.shape) for t in result["trainable"]]
    assert trainable == list(problem.spec.trainable_shapes)
    non_trainable = [tuple(t.shape) for t in result["non_trainable"]]
    assert non_trainable == list(problem.spec.non_trainable_shapes)


# --- the start --------------------------------------------------------------


def test_training_starts_from_model_fns_weights_and_uniform_bits(
    runtime, process, problem
):
    state = process.initialize()
    model = problem.model_fn()
    for value, variable in zip(
        state.global_model_weights.trainable, model.trainable_variables
    ):
        np.testing.assert_array_equal(value, variable)
    for value, variable in zip(
        state.global_model_weights.non_trainable, model.non_trainable_variables
    ):
        np.testing.assert_array_equal(value, variable)
    assert state.distributor["round"] == 0
    assert (state.distributor["mean_bit_widths"] == 0).all()
    assert (state.distributor["bit_reductions"] == 0).all()
    table = device_bit_widths(process, state)
    # 5.5 bits of 252 weights: 5 for all, and a sixth for 126 of them, or 108.
    assert table.tolist() == [[4, 4], [8, 8], [6, 5], [2, 2]]
    assert (used_bits(problem, table) <= budget_bits(problem)).all()


# --- a round ----------------------------------------------------------------


def statistics_of_float_weights(problem, recorded_round):
    """The mean over budgets: of who took part now, else of who did before.

    Every budget of the problem is that of one client.
    """
    state = recorded_round.before.distributor
    budgets = sorted(set(problem.budgets.values()))
    weights = dict(zip(budgets, state["statistics_weights"]))
    rows = [list(rows) for rows in state["statistics"]]
    for name in recorded_round.participants:
        num_examples = len(problem.examples[name][1])
        if num_examples:
            budget = problem.budgets[name]
            weights[budget] = budget * num_examples
            model = model_by_oracle(problem, recorded_round.results[name].message)
            for kind, values in zip(rows, list(model)[-len(rows) :]):
                kind[budgets.index(budget)] = values
    assert sum(weight > 0 for weight in weights.values()) == 3
    return [statistics.mixed(math.inf, kind, weights) for kind in rows]


def test_weights_are_the_mean_of_what_clients_sent(recorded_round, problem):
    """Eq. 15 with p_n = v_n |D_n|, from the messages of clients run one by one."""
    results = [recorded_round.results[name] for name in recorded_round.participants]
    models = [model_by_oracle(problem, result.message) for result in results]
    weights = [
        problem.budgets[name] * len(problem.examples[name][1])
        for name in recorded_round.participants
    ]
    assert weights.count(0) == 1
    expected = [np.average(list(t), axis=0, weights=weights) for t in zip(*models)]
    expected[-2:] = statistics_of_float_weights(problem, recorded_round)
    mine = as_list(problem, recorded_round.after)
    assert len(mine) == len(expected)
    for value, mean in zip(mine, expected):
        np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-6)
    for value, old in zip(mine, as_list(problem, recorded_round.before)):
        assert not np.allclose(value, old, rtol=1e-3)


def test_error_feedback_adds_the_mean_change(runtime, recorded_round, problem):
    """The same models less those that were sent, on top of the float weights."""
    process = problem.build(error_feedback=True)
    names, before = recorded_round.participants, recorded_round.before
    output = process.next(before, names)
    weights = [problem.budgets[n] * len(problem.examples[n][1]) for n in names]

    def mean_model(messages):
        models = [model_by_oracle(problem, messages[name]) for name in names]
        return [np.average(list(t), axis=0, weights=weights) for t in zip(*models)]

    trained = mean_model({n: recorded_round.results[n].message for n in names})
    pairs = zip(as_list(problem, before), trained, mean_model(recorded_round.messages))
    expected = [old + (new - sent) for old, new, sent in pairs]
    # Statistics were sent as they are, and come back as they are.
    expected[-2:] = statistics_of_float_weights(problem, recorded_round)
    for value, wanted in zip(as_list(problem, output.state), expected):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)
    # It neither costs bits nor decides about them.
    for name in ("uplink_bits", "downlink_bits", "bit_widths"):
        assert_equal(output.metrics[name], recorded_round.metrics[name])


def test_the_defaults_learn(runtime, problem):
    config = FedMPQConfig(
        rounds=6, epochs=4, batch_size=4, learning_rate=0.02, float_learning_rate=0.02
    )
    process = build_fedmpq(*problem.setting, config)
    state, losses = process.initialize(), []
    start = problem.split(state.global_model_weights)
    for _ in range(6):
        state, metrics = process.next(state, problem.client_ids)
        losses.append(metrics["client_work"]["train"]["loss"])
    assert losses[-1] < 0.7 * losses[0]
    for old, new in zip(start.kernels, problem.split(state.global_model_weights)[0]):
        assert np.linalg.norm(new - old) > 0.05 * np.linalg.norm(old)


class Stop(Exception):
    """Ends the building of a process at its model, which takes long."""


@pytest.mark.parametrize(
    ("options", "warned"),
    [({}, True), ({"rounds": 9}, False), ({"learning_rate_decay": "none"}, False)],
)
def test_says_that_rates_cannot_fall_without_a_number_of_rounds(
    problem, caplog, options, warned
):
    def stop():
        raise Stop

    with pytest.raises(Stop):
        build_fedmpq(stop, *problem.setting[1:], FedMPQConfig(**options))
    assert ("learning rates stay constant" in caplog.text) == warned


def test_a_rate_of_zero_moves_its_own_weights_only(recorded_round, problem):
    """In its last round that of the kernels is zero, in its first the other one."""
    process = problem.build(
        rounds=1,
        error_feedback=True,
        pruning_threshold=None,
        learning_rate_decay="cosine",
        float_learning_rate_decay=lambda fraction: fraction,
    )

    def weights_around_a_round(round_number):
        before = recorded_round.before._replace(
            distributor=collections.OrderedDict(
                recorded_round.before.distributor, round=np.int32(round_number)
            )
        )
        after = process.next(before, recorded_round.participants).state
        return tuple(problem.split(s.global_model_weights) for s in (before, after))

    old, new = weights_around_a_round(1)
    for value, expected in zip(new.kernels, old.kernels):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8)
    assert not np.allclose(new.float_parameters[0], old.float_parameters[0], rtol=1e-3)

    old, new = weights_around_a_round(0)
    # Moving statistics, at the end, have no learning rate.
    for value, expected in zip(new.float_parameters[:-2], old.float_parameters[:-2]):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8)
    assert not np.allclose(new.kernels[0], old.kernels[0], rtol=1e-3)


def test_rows_are_pruned_and_grown_from_the_mean(process, recorded_round, problem):
    """Those of all clients; what one of them pruned is remembered until its next."""
    before = device_bit_widths(process, recorded_round.before)
    after = device_bit_widths(process, recorded_round.after)
    results = recorded_round.results
    mean = np.average(
        [result.bit_widths for result in results.values()],
        axis=0,
        weights=[result.weight for result in results.values()],
    )
    np.testing.assert_allclose(
        recorded_round.metrics["mean_bit_widths"], mean, rtol=1e-6
    )
    state = recorded_round.after.distributor
    np.testing.assert_array_equal(
        state["mean_bit_widths"], recorded_round.metrics["mean_bit_widths"]
    )
    remembered = recorded_round.before.distributor["bit_reductions"]
    assert remembered[problem.client_ids.index("cléo")].any()  # From the first round.
    for row, name in enumerate(problem.client_ids):
        reductions = remembered[row]
        if name in results:
            reductions = before[row] - results[name].bit_widths
        np.testing.assert_array_equal(state["bit_reductions"][row], reductions)
        arguments = (mean, reductions, problem.spec.layer_sizes, problem.budgets[name])
        np.testing.assert_array_equal(after[row], prune_and_grow(*arguments))
        np.testing.assert_array_equal(
            after[row], allocation_oracle.corrected(*arguments)
        )
    assert (after != before).any()
    np.testing.assert_array_equal(recorded_round.metrics["bit_widths"], after)


def test_a_round_measures_its_participants(recorded_round, problem):
    metrics, results = recorded_round.metrics, recorded_round.results
    took_part = [int(name in results) for name in problem.client_ids]
    assert metrics["participations"].tolist() == took_part
    train = metrics["client_work"]["train"]
    sums = [result.training for result in results.values()]
    count = sum(s.count for s in sums)
    assert train["num_examples"] == count == 2 * (12 + 7)
    np.testing.assert_allclose(
        train["loss"], sum(s.loss for s in sums) / count, rtol=1e-5
    )
    np.testing.assert_allclose(
        train["accuracy"], sum(s.metrics[0][0] for s in sums) / count, rtol=1e-6
    )
    densities = [result.msb_densities for result in results.values()]
    np.testing.assert_allclose(
        metrics["msb_densities"], np.mean(densities, axis=0), rtol=1e-5
    )
    rounds = [
        s.distributor["round"] for s in (recorded_round.before, recorded_round.after)
    ]
    assert rounds == [1, 2]


def test_the_table_stays_within_budgets(runtime, process, problem):
    state = process.initialize()
    everyone = problem.client_ids
    for participants in (everyone, ["dora", "cléo"], everyone, ["bert"], everyone):
        state, metrics = process.next(state, participants)
        table = metrics["bit_widths"]
        np.testing.assert_array_equal(table, device_bit_widths(process, state))
        assert ((table >= 1) & (table <= 8)).all()
        used, budget = used_bits(problem, table), budget_bits(problem)
        assert (used <= budget).all()
        # And no bit is left that a layer could use.
        smallest = np.where(table < 8, problem.spec.layer_sizes, np.inf).min(axis=1)
        assert (budget - used < smallest).all()


def test_the_order_of_participants_changes_nothing_but_rounding(
    runtime, process, recorded_round, problem
):
    output = process.next(recorded_round.before, recorded_round.participants[::-1])
    for a, b in zip(
        as_list(problem, output.state), as_list(problem, recorded_round.after)
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert_equal(output.state.distributor, recorded_round.after.distributor)
    assert_equal(output.metrics["uplink_bits"], recorded_round.metrics["uplink_bits"])


def test_every_round_has_its_own_seed(runtime, process, recorded_round):
    """The same weights and table, one round later, train differently."""
    later = recorded_round.before._replace(
        distributor=collections.OrderedDict(
            recorded_round.before.distributor,
            round=np.int32(recorded_round.before.distributor["round"] + 1),
        )
    )
    output = process.next(later, recorded_round.participants)
    kernels = [
        state.global_model_weights.trainable[0]
        for state in (output.state, recorded_round.after)
    ]
    assert (kernels[0] != kernels[1]).any()


# --- rounds without an average ----------------------------------------------


@pytest.mark.parametrize("participants", [["anna"], []], ids=["no examples", "nobody"])
def test_a_round_without_examples_changes_nothing(
    runtime, process, problem, recorded_round, participants
):
    before = recorded_round.before
    output = process.next(before, participants)
    assert_equal(output.state.global_model_weights, before.global_model_weights)
    np.testing.assert_array_equal(
        output.state.distributor["mean_bit_widths"],
        before.distributor["mean_bit_widths"],
    )
    others = [n for n, name in enumerate(problem.client_ids) if name != "anna"]
    np.testing.assert_array_equal(
        output.metrics["bit_widths"][others],
        device_bit_widths(process, before)[others],
    )
    assert output.state.distributor["round"] == before.distributor["round"] + 1
    train = output.metrics["client_work"]["train"]
    assert list(train.values()) == [0, 0, 0]
    assert output.metrics["participations"].sum() == len(participants)
    # The client without examples has been sent a model all the same.
    assert (output.metrics["downlink_bits"].sum() > 0) == bool(participants)


# --- wrong rounds -----------------------------------------------------------


def test_a_client_twice_is_refused(runtime, process):
    with pytest.raises(Exception, match=r"Clients \['dora'\] were given twice"):
        process.next(process.initialize(), ["dora", "bert", "dora"])


def test_an_unknown_client_is_refused_by_name(runtime, process):
    with pytest.raises(Exception, match=r"No budget was given for client.*zoe"):
        process.next(process.initialize(), ["dora", "zoe"])


def test_a_quantized_model_is_refused(problem):
    """Its codes would be taken for float weights."""
    with pytest.raises(ValueError, match="has to return a float model"):
        build_process(
            lambda: quantize_model(problem.model_fn(), 4),
            problem.budgets,
            problem.client_data,
            problem.config(),
        )


def test_a_refused_round_leaves_the_process_usable(runtime, process, recorded_round):
    with pytest.raises(Exception, match="No budget"):
        process.next(recorded_round.before, ["zoe"])
    output = process.next(recorded_round.before, recorded_round.participants)
    assert_equal(output.state, recorded_round.after)


# --- models of devices ------------------------------------------------------


def test_a_device_model_is_the_model_that_the_client_is_sent(
    process, recorded_round, problem
):
    state = recorded_round.before
    for name, message in recorded_round.messages.items():
        model = process.device_model(state, name)
        kernels, begin = quantized_kernels(model), 0
        assert len(kernels) == 2
        for i, kernel in enumerate(kernels):
            bits = int(message["bit_widths"][i])
            size = int(np.prod(kernel.codes.shape))
            end = begin + -(-size * bits // 8)
            sent = oracle.unpack(message["codes"][begin:end], bits, size)
            np.testing.assert_array_equal(kernel.codes.numpy().ravel(), sent)
            np.testing.assert_allclose(kernel.scale, message["scales"][i], rtol=1e-6)
            assert kernel.bit_width.numpy() == bits
            begin = end
        assert begin == len(message["codes"])
        for variable, value in zip(
            float_parameter_variables(model), message["float_parameters"]
        ):
            np.testing.assert_array_equal(variable, value)


def test_a_device_model_computes_with_its_codes(process, recorded_round, problem):
    """Logits are those of a stock model of the dequantized kernels."""
    name = "dora"
    device = process.device_model(recorded_round.before, name)
    kernels = model_by_oracle(problem, recorded_round.messages[name])
    stock = process.global_model(recorded_round.before)
    for layer, kernel in zip(("conv", "classifier"), kernels):
        stock.get_layer(layer).kernel.assign(kernel)
    statistics = recorded_round.messages[name]["float_parameters"][-2:]
    for variable, value in zip(stock.non_trainable_variables, statistics):
        variable.assign(value)
    images, _ = problem.make_examples(6, 3)
    expected = stock(images, training=False)
    np.testing.assert_allclose(device(images, training=False), expected, atol=1e-4)


def test_weights_of_another_device_replace_all_of_the_first(
    process, recorded_round, problem
):
    state = recorded_round.before
    model = process.device_model(state, "bert")
    process.assign_device_weights(model, state, "dora")
    expected = process.device_model(state, "dora")
    assert_equal(model.get_weights(), expected.get_weights())
    other = process.device_model(state, "bert").get_weights()
    assert any(np.any(a != b) for a, b in zip(other, expected.get_weights()))


@pytest.mark.parametrize("name", ["zoe", "", "Dora"])
def test_the_device_of_an_unknown_client_is_refused(process, recorded_round, name):
    with pytest.raises(ValueError, match=rf"No client '{name}'; clients are \['anna'"):
        process.device_model(recorded_round.before, name)


def test_a_global_model_has_the_states_float_weights(process, recorded_round, problem):
    state = recorded_round.after
    model = process.global_model(state)
    assert not quantized_kernels(model)
    weights = state.global_model_weights
    assert_equal([v.numpy() for v in model.trainable_variables], weights.trainable)
    statistics = float_non_trainable_variables(model)
    assert_equal([v.numpy() for v in statistics], weights.non_trainable)
    relus = [layer for layer in model.layers if isinstance(layer, QuantReLU)]
    assert [relu.activation_bits for relu in relus] == [4]
    # A copy: training it does not touch the state.
    model.trainable_variables[0].assign_add(tf.ones_like(model.trainable_variables[0]))
    again = process.global_model(state).trainable_variables[0]
    np.testing.assert_array_equal(again, weights.trainable[0])


def test_a_process_knows_its_clients(process, problem):
    assert process.client_ids == problem.client_ids
    assert process.budgets.tolist() == [4, 8, 5.5, 2]
    assert process.scheme.name == "fedmpq"
    assert process.spec == problem.spec


# --- weights in and out -----------------------------------------------------


def test_model_weights_go_out_and_in(runtime, process, recorded_round):
    state = recorded_round.after
    weights = process.get_model_weights(state)
    assert_equal(weights, state.global_model_weights)
    doubled = tf.nest.map_structure(lambda value: 2 * value, weights)
    changed = process.set_model_weights(state, doubled)
    assert_equal(process.get_model_weights(changed), doubled)
    # Statistics of a budget belong to weights that are gone.
    assert state.distributor["statistics_weights"].any()
    assert not changed.distributor["statistics_weights"].any()
    for name, value in changed.distributor.items():
        if name != "statistics_weights":
            assert_equal(value, state.distributor[name])


# --- seeds ------------------------------------------------------------------


def run_two_rounds(process):
    state = process.next(process.initialize(), ["bert", "cléo"]).state
    return process.next(state, ["bert", "dora"])


def test_the_same_seed_gives_the_same_run(runtime, process, problem):
    """Also of budgets in kilobytes: they are the bits that fit.

    252 weights; 2 scales, 4 biases and 16 numbers of BatchNorm are 88 bytes.
    """
    first = run_two_rounds(process)
    assert_equal(run_two_rounds(process), first)
    budgets = {**problem.budgets, "bert": "1 kB", "dora": "0.151 kB"}
    again = build_fedmpq(
        problem.model_fn,
        budgets,
        problem.client_data,
        problem.config(),
        seed=problem.seed,
    )
    assert_equal(run_two_rounds(again), first)


@pytest.mark.slow
def test_another_seed_gives_another_run(runtime, process, problem):
    first, other = run_two_rounds(process), run_two_rounds(problem.build(seed=6))
    kernels = [
        output.state.global_model_weights.trainable[0] for output in (first, other)
    ]
    assert (kernels[0] != kernels[1]).any()


# --- with TFF's own evaluation and programs ---------------------------------


def stock_global_model(problem) -> tf.keras.Model:
    """The server's model as a user builds it: float weights, 4-bit activations."""
    return quantize_model(problem.model_fn(), bit_width=None, activation_bits=4)


def evaluation_process(problem) -> tff.learning.templates.LearningProcess:
    def model_fn():
        return tff.learning.models.from_keras_model(
            stock_global_model(problem),
            loss=LOSS,
            input_spec=(
                tf.TensorSpec([None, 8, 8, 3]),
                tf.TensorSpec([None], tf.int32),
            ),
            metrics=[
                tf.keras.metrics.SparseCategoricalCrossentropy(
                    name="crossentropy", from_logits=True
                ),
                tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            ],
        )

    return tff.learning.algorithms.build_fed_eval(model_fn)


def evaluate_by_keras(problem, weights, examples) -> dict[str, float]:
    model = stock_global_model(problem)
    for variable, value in zip(model.trainable_variables, weights.trainable):
        variable.assign(value)
    statistics = float_non_trainable_variables(model)
    for variable, value in zip(statistics, weights.non_trainable):
        variable.assign(value)
    images, labels = (np.concatenate(parts) for parts in zip(*examples))
    logits = model(images, training=False)
    correct = np.argmax(logits, axis=1) == labels
    return {"crossentropy": float(LOSS(labels, logits)), "accuracy": correct.mean()}


def test_federated_evaluation_agrees_with_keras(
    runtime, process, problem, recorded_round
):
    state = recorded_round.after
    for _ in range(3):
        state = process.next(state, ["bert", "dora"]).state
    weights = process.get_model_weights(state)
    # Statistics matter: they have moved.
    start = problem.model_fn().non_trainable_variables
    for value, initial in zip(weights.non_trainable, start):
        assert np.abs(value - initial.numpy()).max() > 0.1
    evaluation = evaluation_process(problem)
    examples = [problem.make_examples(20, 8), problem.make_examples(9, 9)]
    datasets = [tf.data.Dataset.from_tensor_slices(pair).batch(5) for pair in examples]
    present = evaluation.set_model_weights(evaluation.initialize(), weights)
    output = evaluation.next(present, datasets)
    metrics = output.metrics["client_work"]["eval"]["current_round_metrics"]
    expected = evaluate_by_keras(problem, weights, examples)
    np.testing.assert_allclose(
        metrics["crossentropy"], expected["crossentropy"], rtol=1e-4
    )
    np.testing.assert_allclose(metrics["accuracy"], expected["accuracy"], rtol=1e-6)
    moved = tff.learning.models.ModelWeights(
        weights.trainable, [value + 1 for value in weights.non_trainable]
    )
    other = evaluate_by_keras(problem, moved, examples)
    assert abs(other["crossentropy"] - expected["crossentropy"]) > 1e-3


def test_tffs_training_program_runs_it(process, problem, tmp_path):
    """`tff.learning.programs.train_model`, with checkpoints and released metrics."""
    released = tff.program.MemoryReleaseManager()
    models = tff.program.MemoryReleaseManager()
    states = tff.program.FileProgramStateManager(str(tmp_path / "states"))
    arguments = {
        "train_process": process,
        "train_data_source": ClientSampler(problem.client_ids, seed=4),
        "train_per_round_clients": 2,
        "program_state_manager": states,
        "model_output_manager": models,
        "train_metrics_manager": released,
        "evaluation_manager": None,
        "evaluation_periodicity": 1,
    }
    with local_async_runtime():
        asyncio.run(
            tff.learning.programs.train_model(train_total_rounds=1, **arguments)
        )
        # It goes on from the saved state.
        asyncio.run(
            tff.learning.programs.train_model(train_total_rounds=2, **arguments)
        )
    assert asyncio.run(states.get_versions()) == [0, 1, 2]
    values = released.values()
    assert list(values) == [1, 2]
    for number, metrics in values.items():
        # `train_model` puts the metrics of `client_work.train` here.
        train = metrics["model_metrics"]
        clients = ClientSampler(problem.client_ids, seed=4).draw(number, 2)
        images = sum(len(problem.examples[client][1]) for client in clients)
        assert train["num_examples"] == 2 * images
        assert train["loss"] > 0 and 0 <= train["accuracy"] <= 1
    last = models.values()["training_checkpoint_round_2"]
    assert last.distributor["round"] == 2
