"""The server's sums against a weighted mean in NumPy (Eq. 15)."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle
from oracles import statistics as oracle_of_statistics

from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.messages import ModelUplink
from tff_fedmpq.federated.round_sums import RoundSums, merge
from tff_fedmpq.federated.server import Server
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.quantization.representations import SIGN_MAGNITUDE

KERNEL_SHAPES = ((3, 5), (7,))
FLOAT_SHAPES = ((2,), (1, 3))
SPEC = ModelSpec(
    ("a", "b"), (KERNEL_SHAPES[0], FLOAT_SHAPES[0], KERNEL_SHAPES[1]),
    (True, False, True), (FLOAT_SHAPES[1],),
)  # fmt: skip


class UplinkWithSymbols(ModelUplink):
    """Has two streams of three symbols that are entropy-coded later."""

    def symbols(self, message):
        return tf.fill([2, 3], tf.cast(message["codes"][0], tf.int16))

    def symbols_shape(self, spec):
        return 2, 3


UPLINK = UplinkWithSymbols(SIGN_MAGNITUDE)
NUM_CLIENTS = 6
WEIGHTED = {"aggregation_weight": "budget_and_examples"}
SERVER_SCHEME = dataclasses.replace(
    FedMPQConfig(scale_rule="max", **WEIGHTED).compose(), uplink=UPLINK
)
SERVER = Server(SERVER_SCHEME, SPEC, np.full(NUM_CLIENTS, 4.0), seed=0)
KEYS = (4, 0, 3)
WEIGHTS = (2.0, 30.0, 7.5)
BIT_WIDTHS = ((1, 8), (3, 2), (8, 5))


def make_result(key, weight, bit_widths) -> ClientResult:
    """What a client of this key sends; all of it differs between keys.

    `deliver` adds what depends on the server.
    """
    rng = np.random.default_rng(key)
    packed = [
        oracle.pack(rng.integers(0, 2**bits, size=np.prod(shape)), bits)
        for bits, shape in zip(bit_widths, KERNEL_SHAPES)
    ]
    message = {
        "bit_widths": np.array(bit_widths, np.uint8),
        "codes": np.concatenate(packed),
        "float_parameters": tuple(
            rng.normal(size=shape).astype(np.float32) for shape in FLOAT_SHAPES
        ),
        "scales": rng.random(2).astype(np.float32) + 0.5,
    }
    message = tf.nest.map_structure(tf.constant, message)
    result = ClientResult(
        key=np.int32(key),
        weight=np.float32(weight),
        message=message,
        bit_widths=np.array(bit_widths, np.int32),
        num_examples=np.float32(0),
        fault=np.int32(0),
        checksum=np.int64(0),
        training=TrainingSums(*np.float32([10 + key, 20 + key])),
        msb_densities=np.float32([0.1 * key, 0.5]),
    )
    return tf.nest.map_structure(tf.constant, result)


def model_by_oracle(result: ClientResult) -> list[np.ndarray]:
    """Returns the dequantized kernels and the float parameters of a message."""
    message = tf.nest.map_structure(lambda tensor: tensor.numpy(), result.message)
    kernels, begin = [], 0
    for shape, bits, scale in zip(
        KERNEL_SHAPES, message["bit_widths"].tolist(), message["scales"]
    ):
        size = int(np.prod(shape))
        num_bytes = -(-size * bits // 8)
        part = message["codes"][begin : begin + num_bytes]
        codes = oracle.unpack(part, bits, size).reshape(shape)
        kernels.append(oracle.levels(oracle.SIGN_MAGNITUDE, scale, bits)[codes])
        begin += num_bytes
    assert begin == len(message["codes"])
    return [*kernels, *message["float_parameters"]]


def deliver(server, sums, result, round_number) -> RoundSums:
    """Accumulates a result with the ticket of a model of the same scales."""
    ticket = acceptance.Ticket(
        key=result.key,
        round=tf.constant(round_number),
        seed=tf.constant([1, 2]),
        bit_widths=tf.fill([2], tf.constant(8, tf.uint8)),
        scales=result.message["scales"],
        magnitude=tf.constant(1.0),
        variances=tf.zeros([0]),
        downlink_bits=tf.constant([5, 6, 7, 8], tf.int64) * (int(result.key) + 1),
        model=tf.constant(0, tf.int64),
        tag=(),
    )
    budget = np.float32(server.budgets[int(result.key)])
    result = result._replace(num_examples=result.weight / budget)
    result = result._replace(checksum=acceptance.checksum(result, ticket.seed))
    return server.accumulate(sums, result, acceptance.sign(ticket, server.secret))


def add_up(results, server=SERVER, round_number=0) -> RoundSums:
    sums = server.zero()
    for result in results:
        sums = deliver(server, sums, result, round_number)
    return sums


@pytest.fixture(scope="module")
def results() -> list[ClientResult]:
    return [make_result(*row) for row in zip(KEYS, WEIGHTS, BIT_WIDTHS)]


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def assert_close(a, b):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    tf.nest.map_structure(close, a, b)


def test_mean_is_numpys_weighted_mean(results):
    sums = add_up(results)
    mean, mean_bit_widths = sums.mean_weights(SPEC), sums.mean_bit_widths()
    models = [model_by_oracle(result) for result in results]
    expected = [np.average(list(t), axis=0, weights=WEIGHTS) for t in zip(*models)]
    assert_close([*mean.kernels, *mean.float_parameters], expected)
    expected_bits = np.average(BIT_WIDTHS, axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(mean_bit_widths, expected_bits, rtol=1e-6)


def test_mean_of_one_client_is_its_model(results):
    sums = add_up(results[:1])
    mean, mean_bit_widths = sums.mean_weights(SPEC), sums.mean_bit_widths()
    assert_close([*mean.kernels, *mean.float_parameters], model_by_oracle(results[0]))
    np.testing.assert_allclose(mean_bit_widths, BIT_WIDTHS[0], rtol=1e-6)


def test_rows_land_at_their_keys(results):
    sums = add_up(results)
    assert sums.participations.numpy().tolist() == [1, 0, 0, 1, 1, 0]
    for key in range(NUM_CLIENTS):
        row = KEYS.index(key) if key in KEYS else None
        bits = [0, 0] if row is None else list(BIT_WIDTHS[row])
        assert sums.bit_widths[key].numpy().tolist() == bits
        factor = 0 if row is None else key + 1
        expected = [(5 + i) * factor for i in range(4)]
        assert sums.downlink_bits[key].numpy().tolist() == expected
        if row is None:
            assert not sums.uplink_bits[key].numpy().any()
            assert not sums.symbols[key].numpy().any()
        else:
            message, weight = results[row].message, results[row].weight
            bits = UPLINK.count_bits(message, [weight])
            np.testing.assert_array_equal(sums.uplink_bits[key], bits)
            np.testing.assert_array_equal(sums.symbols[key], UPLINK.symbols(message))
    assert sums.symbols.shape == [NUM_CLIENTS, 2, 3]


def test_sums_are_over_all_clients(results):
    sums = add_up(results)
    assert float(sums.total_weight) == sum(WEIGHTS)
    keys = np.array(KEYS)
    assert_close(list(sums.training)[:2], [np.sum(n + keys) for n in (10, 20)])
    np.testing.assert_allclose(
        sums.msb_densities, [0.1 * keys.sum(), 0.5 * len(KEYS)], rtol=1e-6
    )


# --- statistics of each budget ----------------------------------------------

BUDGETS = np.array([2, 4, 2, 6, 4, 8.0])  # The results are of rows 4, 0, 3.


def server_of_budgets(**settings) -> Server:
    scheme = dataclasses.replace(
        FedMPQConfig(scale_rule="max", **WEIGHTED, **settings).compose(), uplink=UPLINK
    )
    return Server(scheme, SPEC, BUDGETS, seed=0)


def start(server):
    shapes = SPEC.trainable_shapes, SPEC.non_trainable_shapes
    return server.initial_state(
        *([np.ones(shape, np.float32) for shape in part] for part in shapes)
    )


def sent_statistics(server, state, key):
    return server.model_for(state, key).float_parameters[-1].numpy()


def test_clients_are_sent_statistics_that_are_fitted_over_budgets(results):
    server = server_of_budgets()
    values = [result.message["float_parameters"][-1] for result in results]
    sums = add_up(results, server)
    state, _ = server.update(start(server), sums)
    # Nobody of 8 bits took part.
    weights = {BUDGETS[key]: weight for key, weight in zip(KEYS, WEIGHTS)}
    for key, budget in enumerate(BUDGETS):
        np.testing.assert_allclose(
            sent_statistics(server, state, key),
            oracle_of_statistics.mixed(budget, values, weights),
            rtol=1e-5,
            atol=1e-6,
        )
    # The global model, whose weights are float, has those of precise clients.
    np.testing.assert_allclose(
        state.global_model_weights.non_trainable[0],
        oracle_of_statistics.mixed(math.inf, values, weights),
        rtol=1e-5,
        atol=1e-6,
    )


def test_what_a_scheme_cannot_use_of_a_budget_has_no_statistics_of_its_own():
    """Uniform bit-widths of a budget of 2.9 are 2."""
    budgets = np.array([2.9, 3.2, 2.0])
    for allocation, of_clients in (
        ("uniform", [2, 3, 2]),
        ("pruning_growing", [2.9, 3.2, 2]),
    ):
        scheme = FedMPQConfig(allocation=allocation).compose()
        server = Server(scheme, SPEC, budgets, seed=0)
        levels = server.levels
        assert levels.tolist() == sorted(set(of_clients))
        found = [levels[int(server._level_of(key))] for key in range(3)]
        assert found == of_clients


def test_clients_of_one_budget_are_averaged_and_others_keep_theirs(results):
    server = server_of_budgets()
    first = add_up(results, server)
    state, _ = server.update(start(server), first)
    again = [make_result(2, 3.0, (1, 8)), make_result(0, 5.0, (3, 2))]
    second = add_up(again, server, round_number=1)
    following, _ = server.update(state, second)
    values = [result.message["float_parameters"][-1] for result in again]
    before, after = (s.distributor["statistics"][0] for s in (state, following))
    levels = server.levels.tolist()
    of_two, others = levels.index(2), [levels.index(b) for b in (4, 6, 8)]
    np.testing.assert_allclose(
        after[of_two], np.average(values, axis=0, weights=[3, 5]), rtol=1e-5, atol=1e-6
    )
    assert_equal(tf.gather(after, others), tf.gather(before, others))
    weights = following.distributor["statistics_weights"].numpy()
    np.testing.assert_allclose(weights[of_two], 3 + 5, rtol=1e-6)
    assert weights[others].tolist() == [2.0, 7.5, 0.0]


def test_before_anyone_took_part_all_get_the_initial_statistics():
    server = server_of_budgets()
    state = start(server)
    assert all((sent_statistics(server, state, key) == 1).all() for key in range(6))


def test_common_statistics_are_an_option(results):
    server = server_of_budgets(statistics_per_budget=False)
    sums = add_up(results, server)
    state, _ = server.update(start(server), sums)
    common = state.global_model_weights.non_trainable[0]
    for key in range(NUM_CLIENTS):
        assert_close(sent_statistics(server, state, key), common)


def test_a_client_that_comes_twice_is_counted_twice(results):
    """By which the process refuses it."""
    sums = add_up([results[0], results[0]])
    assert sums.participations.numpy().tolist() == [0, 0, 0, 0, 2, 0]


def test_merge_is_addition(results):
    whole = add_up(results)
    parts = [add_up([result]) for result in results]
    left = merge(merge(parts[0], parts[1]), parts[2])
    right = merge(parts[0], merge(parts[1], parts[2]))
    assert_close(left, whole)
    assert_close(right, whole)
    assert_close(add_up(results[::-1]), whole)


def test_merge_is_commutative_and_zero_is_neutral(results):
    a, b = add_up(results[:1]), add_up(results[1:])
    assert_equal(merge(a, b), merge(b, a))
    zero = SERVER.zero()
    assert_equal(merge(a, zero), a)
    assert_equal(merge(zero, a), a)


def test_sums_keep_their_types(results):
    """As a TFF aggregation needs it."""
    zero, sums = SERVER.zero(), add_up(results)
    tf.nest.map_structure(
        lambda a, b: (
            (a.dtype, a.shape) == (b.dtype, b.shape) or pytest.fail(f"{a} {b}")
        ),
        zero,
        sums,
    )


@pytest.mark.parametrize("count", [0, 3])
def test_no_weight_is_no_average(results, count):
    weightless = [result._replace(weight=tf.constant(0.0)) for result in results]
    sums = add_up(weightless[:count])
    assert sums.is_empty
    mean, mean_bit_widths = sums.mean_weights(SPEC), sums.mean_bit_widths()
    for tensor in [*mean.kernels, *mean.float_parameters, mean_bit_widths]:
        np.testing.assert_array_equal(tensor, np.zeros(tensor.shape))


def test_any_weight_is_an_average(results):
    weights = (0.0, 1e-3, 0.0)
    few = [r._replace(weight=tf.constant(w)) for r, w in zip(results, weights)]
    sums = add_up(few)
    assert not sums.is_empty
    mean = sums.mean_weights(SPEC)
    assert_close([*mean.kernels, *mean.float_parameters], model_by_oracle(results[1]))


def test_decoding_follows_the_uplinks_own_message(results):
    weights = messages.QuantizedWeights(
        tuple(tf.zeros(shape, tf.uint8) for shape in KERNEL_SHAPES),
        tf.constant([1.0, 7.0]),
        tf.constant([1, 3]),
        tuple(tf.ones(shape) for shape in FLOAT_SHAPES),
    )
    message = UPLINK.encode(weights, weights, tf.constant(2.0), tf.constant([0, 0]))
    result = results[0]._replace(message=message, bit_widths=weights.bit_widths)
    mean = add_up([result]).mean_weights(SPEC)
    # Code 0 stands for -s/2.
    assert_close(mean.kernels, tuple(map(np.full, KERNEL_SHAPES, (-0.5, -3.5))))


def test_every_client_round_and_run_has_a_training_seed_of_its_own():
    """And the same ones again from the same server."""

    def training_seeds(seed):
        server = Server(SERVER_SCHEME, SPEC, np.full(NUM_CLIENTS, 4.0), seed)
        trainable = [np.ones(shape, np.float32) for shape in SPEC.trainable_shapes]
        statistics = [np.ones(shape, np.float32) for shape in FLOAT_SHAPES[1:]]
        state = server.initial_state(trainable, statistics)
        found = []
        for number in range(3):
            state.distributor["round"] = tf.constant(number)
            for key in range(NUM_CLIENTS):
                message = server.message_for(state, tf.constant(key))
                found.append(tuple(message["seed"].numpy()))
        return found

    first, other = training_seeds(0), training_seeds(1)
    assert training_seeds(0) == first
    assert len({*first, *other}) == 2 * 3 * NUM_CLIENTS
