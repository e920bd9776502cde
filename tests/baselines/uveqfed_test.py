"""UVeQFed's uplink: bits within the budget, by the real coder, and a common dither.

Range-coded blocks carry a header and a table of frequencies, so a tensor needs some
size before it fits a budget: see `SMALLEST`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

from tff_fedmpq.baselines.update_uplink import LatticeUpdateUplink
from tff_fedmpq.baselines.uveqfed import UVeQFedConfig, build_uveqfed
from tff_fedmpq.federated import messages
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec
from tff_fedmpq.simulation import ledger

SOURCES = {
    "gaussian": lambda rng, size: rng.normal(size=size),
    "laplace": lambda rng, size: rng.laplace(size=size),
    "cauchy": lambda rng, size: rng.standard_cauchy(size=size),
}
UPLINKS = {name: LatticeUpdateUplink(name) for name in ("hexagonal", "integer")}
EAGER = {name: uplink.encode_update for name, uplink in UPLINKS.items()}
# Faster where many updates have the same size, for which they are traced once.
ENCODERS = {name: tf.function(run, autograph=False) for name, run in EAGER.items()}
# Entries from which on a Gaussian update fits the budget, to a factor of two.
SMALLEST = {
    1.0: 8192,
    1.25: 4096,
    1.5: 1024,
    2.0: 512,
    3.0: 256,
    4.0: 256,
    5.5: 128,
    8.0: 64,
}

every_lattice = pytest.mark.parametrize("lattice", sorted(UPLINKS))
every_source = pytest.mark.parametrize("source", sorted(SOURCES))


def draw(source, size, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(SOURCES[source](rng, size), tf.float32)


def encode(lattice, updates, budget, seed=(1, 2), encoders=ENCODERS):
    budget = tf.constant(budget, tf.float32)
    return encoders[lattice](updates, budget, tf.constant(seed))


def measured_bits(lattice, message):
    """Bits of the code that the real coder makes of a message's points."""
    return UPLINKS[lattice].coded_bits(UPLINKS[lattice].symbols(message).numpy())


def relative_error(lattice, message, update):
    (decoded,) = UPLINKS[lattice].decode_update(message, [tuple(update.shape)])
    error = tf.reduce_mean(tf.square(decoded - update))
    return float(error / tf.math.reduce_variance(update))


# --- bits -------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1.0, 1.25, 1.5, 2, 3, 4, 5.5, 7, 8])
@every_source
@every_lattice
def test_measured_bits_are_within_the_budget_and_use_it(lattice, source, budget):
    update = draw(source, 20_001)
    message = encode(lattice, [update], budget)
    rate = measured_bits(lattice, message) / 20_001
    assert 0.97 * budget < rate <= budget
    if budget >= 2:
        # Not far above the ideal for a Gaussian, 4^-R, which is the hardest source.
        assert relative_error(lattice, message, update) < 4 * 4.0**-budget


@pytest.mark.parametrize("budget", [1.5, 3, 8])
def test_heavy_tails_of_a_large_tensor_are_within_the_budget_too(budget):
    update = draw("cauchy", 270_000)
    message = encode("integer", [update], budget)
    assert relative_error("integer", message, update) < 0.01
    assert measured_bits("integer", message) <= budget * 270_000


@every_lattice
@pytest.mark.parametrize("budget", sorted(SMALLEST))
def test_small_tensors_fit_from_some_size_on(lattice, budget):
    """Below, the blocks' overhead alone (16 bytes for each stream) exceeds it."""
    for size in (SMALLEST[budget], 2 * SMALLEST[budget] + 1):
        message = encode(lattice, [draw("gaussian", size)], budget, encoders=EAGER)
        assert measured_bits(lattice, message) <= budget * size
    streams = {"integer": 1, "hexagonal": 2}[lattice]
    tiny = encode(lattice, [draw("gaussian", 6)], budget, encoders=EAGER)
    assert measured_bits(lattice, tiny) >= 128 * streams > budget * 6


def test_the_budget_is_of_all_tensors_together():
    sizes = [(3, 3, 16, 32), (3, 3, 3, 16), (64, 10), (1, 3)]
    updates = [
        tf.reshape(draw("laplace", int(np.prod(s)), i), s) for i, s in enumerate(sizes)
    ]
    num_entries = sum(int(np.prod(s)) for s in sizes)
    message = encode("hexagonal", updates, 2.0)
    assert 0.95 * 2 < measured_bits("hexagonal", message) / num_entries <= 2


def test_points_travel_as_int16_until_they_are_coded():
    update = draw("gaussian", 1001)
    message = encode("hexagonal", [update], 4.0)
    assert message["codes"].dtype == tf.int16
    items = (
        UPLINKS["hexagonal"]
        .count_bits({**message, "float_parameters": ()}, [tf.constant(1.0)])
        .numpy()
    )
    # The dither's seed is a header.
    np.testing.assert_array_equal(items[1:], [32, 64 + 32, 0])
    real = measured_bits("hexagonal", message)
    assert real <= items[0] < real + 2 * 192  # A bound on two blocks' overhead.
    symbols = UPLINKS["hexagonal"].symbols(message)
    spec = ModelSpec((), ((7, 11, 13), (5,)), (False, False), ())
    assert tuple(symbols.shape) == UPLINKS["hexagonal"].symbols_shape(spec) == (2, 501)


# --- distortion -------------------------------------------------------------


@every_lattice
@every_source
@pytest.mark.parametrize("budget", [2, 4.5])
def test_errors_are_uniform_over_the_cell(lattice, source, budget):
    """What the server restores is off by a point of the cell: same dither, no bias."""
    update = draw(source, 20_000)
    message = encode(lattice, [update], budget)
    (decoded,) = UPLINKS[lattice].decode_update(message, [(20_000,)])
    step = float(message["scales"][0])
    error = (decoded - update).numpy().astype(np.float64) / step
    radius = {"integer": 0.5, "hexagonal": 2 / math.sqrt(3)}[lattice]
    dimension = {"integer": 1, "hexagonal": 2}[lattice]
    norms = np.linalg.norm(error.reshape(-1, dimension), axis=1)
    # Far entries have a float32 that is no finer.
    slack = 1e-6 * float(tf.reduce_max(tf.abs(update))) / step
    assert np.max(norms) < radius * 1.001 + slack
    variance = {"integer": 1 / 12, "hexagonal": 10 / 36}[lattice]
    squared = norms**2 / dimension
    deviation = np.std(squared) / math.sqrt(len(squared))
    assert abs(np.mean(squared) - variance) < 5 * deviation
    assert abs(np.mean(error)) < 5 * math.sqrt(variance / len(error))


@every_lattice
def test_the_servers_dither_is_the_clients(lattice):
    """Drawn from the seed that travels; from another one nothing is restored."""
    update = draw("gaussian", 5_000)
    message = encode(lattice, [update], 4.0, seed=(11, 12))
    np.testing.assert_array_equal(message["dither_seed"], [11, 12])
    other = {**message, "dither_seed": tf.constant([11, 13])}
    right = relative_error(lattice, message, update)
    assert relative_error(lattice, other, update) > 2 * right
    again = encode(lattice, [update], 4.0, seed=(11, 12))
    np.testing.assert_array_equal(message["codes"], again["codes"])
    fresh = encode(lattice, [update], 4.0, seed=(11, 13))
    assert np.any(message["codes"] != fresh["codes"])


def test_tensors_are_scaled_apart():
    """Of deviations from 1e-4 to 1e4, each is restored to the same relative error."""
    scales = (1e-4, 1.0, 1e4)
    updates = [s * draw("gaussian", 5_001, i) for i, s in enumerate(scales)]
    message = encode("hexagonal", updates, 4.0)
    decoded = UPLINKS["hexagonal"].decode_update(message, 3 * [(5_001,)])
    errors = [
        float(tf.math.reduce_std(d - u) / s)
        for d, u, s in zip(decoded, updates, scales)
    ]
    np.testing.assert_allclose(errors, np.mean(errors), rtol=0.05)
    assert np.mean(errors) < 0.1


def test_a_tensor_of_equal_entries_is_restored():
    """A deviation of zero says nothing of their size."""
    size = 1e-3
    updates = [draw("gaussian", 5_000), tf.fill([10, 10], size)]
    message = encode("hexagonal", updates, 4.0)
    decoded = UPLINKS["hexagonal"].decode_update(message, [(5_000,), (10, 10)])
    assert float(tf.reduce_max(tf.abs(decoded[1] - size))) < size


@every_lattice
def test_a_tensor_that_did_not_change_stays(lattice):
    """Though dithered: a frozen layer gets no noise beside one that moved."""
    updates = [tf.zeros([20_000]), draw("gaussian", 20_000)]
    message = encode(lattice, updates, 4.0)
    frozen, moved = UPLINKS[lattice].decode_update(message, 2 * [(20_000,)])
    np.testing.assert_array_equal(frozen, np.zeros(20_000))
    assert float(tf.math.reduce_std(moved - updates[1])) < 0.2


def test_no_update_costs_next_to_nothing():
    update = tf.zeros([20_000])
    message = encode("hexagonal", [update], 4.0)
    (decoded,) = UPLINKS["hexagonal"].decode_update(message, [(20_000,)])
    np.testing.assert_array_equal(decoded, update)
    assert measured_bits("hexagonal", message) <= 1_000


@every_lattice
def test_shapes_and_vectors_are_kept(lattice):
    """Odd sizes are padded; biases and statistics go up in float."""
    shapes = ((3, 3, 3, 5), (7,), (43, 9), (4,))
    spec = ModelSpec((), shapes[:3], (False,) * 3, shapes[3:])
    values = [tf.ones(shape) for shape in shapes]
    updates = [
        tf.reshape(draw("gaussian", value.shape.num_elements()), value.shape)
        for value in values
    ]
    received = messages.QuantizedWeights((), tf.zeros([0]), [], values)
    trained = received._replace(
        float_parameters=[value + update for value, update in zip(values, updates)]
    )
    uplink = UPLINKS[lattice]
    message = tf.function(uplink.encode)(
        trained, received, tf.constant(8.0), tf.constant([1, 2])
    )
    decoded = uplink.decode(message, spec)
    assert decoded.kernels == ()
    for found, update in zip(decoded.float_parameters, updates):
        assert found.shape == update.shape
        exact = update.shape.rank == 1
        np.testing.assert_allclose(found, update, atol=1e-6 if exact else 0.3)


def test_the_mean_update_is_added():
    present = FloatWeights((), (tf.constant([1.0, 2.0]),))
    mean = FloatWeights((), (tf.constant([0.5, -1.0]),))
    applied = UPLINKS["hexagonal"].apply(present, mean)
    np.testing.assert_array_equal(applied.float_parameters[0], [1.5, 1.0])


# --- in a process -----------------------------------------------------------


def test_a_rounds_measured_bits_are_within_every_budget(runtime, problem):
    def model_fn():
        layers = tf.keras.layers
        zeros = tf.keras.initializers.Zeros()
        return tf.keras.Sequential(
            [
                layers.Input((8, 8, 3)),
                layers.Flatten(),
                layers.Dense(20, activation="relu", kernel_initializer="he_normal"),
                layers.Dense(3, kernel_initializer=zeros),
            ]
        )

    set_random_seed(1)
    config = UVeQFedConfig(epochs=2, batch_size=4)
    process = build_uveqfed(model_fn, problem.budgets, problem.client_data, config)
    before = process.initialize()
    output = process.next(before, problem.client_ids)
    records = ledger.client_records(output.metrics, problem.client_ids)
    assert [record["client"] for record in records] == problem.client_ids
    num_entries = 192 * 20 + 20 * 3
    for record in records:
        items, budget = record["uplink_bits"], problem.budgets[record["client"]]
        assert 0 < items["codes"] <= budget * num_entries
        assert items["float_parameters"] == 32 * 23
        assert items["scales"] == 64 and items["headers"] == 64 + 32
        if record["client"] != "anna":  # She has no examples, and learns nothing.
            assert items["codes"] > 0.85 * budget * num_entries
    weights = process.get_model_weights(output.state).trainable
    for old, new in zip(process.get_model_weights(before).trainable, weights):
        assert np.all(np.isfinite(new)) and np.any(new != old)
