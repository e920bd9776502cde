"""FedPAQ's uplink: unbiased updates, packed; and a round against FP32 FedAvg's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.baselines.fedavg import FedAvgConfig, build_fedavg
from tff_fedmpq.baselines.fedpaq import FedPAQConfig, build_fedpaq
from tff_fedmpq.baselines.update_uplink import ScalarUpdateUplink
from tff_fedmpq.federated import messages
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec

SHAPES = ((3, 3, 2, 5), (7,), (10, 4), (4,))  # Of all weights; two are tensors.
SIGMAS = 5.0
UPLINK = ScalarUpdateUplink()
SPEC = ModelSpec((), SHAPES[:3], (False,) * 3, SHAPES[3:])


def make_updates(seed=0):
    rng = np.random.default_rng(seed)
    return [
        (10.0 ** (i - 3) * rng.normal(size=shape)).astype(np.float32)
        for i, shape in enumerate(SHAPES)
    ]


def encode(updates, budget, seed=(1, 2), uplink=UPLINK):
    """Returns the message of updates of a model whose weights were one."""
    values = [tf.ones(shape) for shape in SHAPES]
    received = messages.QuantizedWeights((), tf.zeros([0]), [], values)
    trained = received._replace(
        float_parameters=[value + update for value, update in zip(values, updates)]
    )
    budget = tf.constant(budget, tf.float32)
    return uplink.encode(trained, received, budget, tf.constant(seed))


@pytest.mark.parametrize("budget", [2, 2.9, 3, 4.5, 7, 8])
def test_an_entry_takes_the_whole_bits_of_the_budget(budget):
    message = encode(make_updates(), budget)
    items = UPLINK.count_bits(message, [tf.constant(1.0)]).numpy()
    bits = int(budget)
    packed = [-(-size * bits // 8) * 8 for size in (90, 40)]
    expected = {
        "codes": sum(packed),
        "scales": 2 * 32,
        "headers": 8 + 32,
        "float_parameters": 32 * (7 + 4),
    }
    assert dict(zip(messages.BIT_ITEMS, items.tolist())) == expected


@pytest.mark.parametrize("norm", ["max", "l2"])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_an_entry_is_restored_to_less_than_a_unit(norm, bits):
    uplink = ScalarUpdateUplink(norm)
    updates = make_updates()
    decoded = uplink.decode(encode(updates, bits, uplink=uplink), SPEC)
    assert decoded.kernels == ()
    order = {"max": np.inf, "l2": 2}[norm]
    for found, update in zip(decoded.float_parameters, updates):
        assert found.shape == update.shape
        error = np.max(np.abs(found - update))
        if update.ndim == 1:  # Vectors go up as they are, but for 1 + u - 1.
            assert error < 1e-6
        else:
            unit = np.linalg.norm(update.ravel(), order) / (2 ** (bits - 1) - 1)
            assert 0 < error < unit * 1.001 + 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_the_server_decodes_is_unbiased(bits):
    """To five standard errors, over seeds."""
    updates, num_draws = make_updates(), 400
    draw = tf.function(
        lambda seed: UPLINK.decode_update(
            UPLINK.encode_update(
                [updates[0], updates[2]], tf.constant(float(bits)), seed
            ),
            [SHAPES[0], SHAPES[2]],
        )
    )
    draws = [draw(tf.constant([7, i])) for i in range(num_draws)]
    for values, update in zip(zip(*draws), (updates[0], updates[2])):
        unit = np.max(np.abs(update)) / (2 ** (bits - 1) - 1)
        scaled = np.abs(update) / unit
        f = scaled - np.floor(scaled)
        standard_error = unit * np.sqrt(np.maximum(f * (1 - f), 0.01) / num_draws)
        bias = np.mean(values, axis=0) - update
        assert np.all(np.abs(bias) < SIGMAS * standard_error)


def test_the_seed_decides_the_rounding():
    updates = make_updates()
    codes = [encode(updates, 4, seed)["codes"] for seed in ((1, 2), (1, 2), (1, 3))]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert np.any(codes[0] != codes[2])


def test_two_tensors_are_rounded_apart():
    """Equal tensors do not share their randomness."""
    update = make_updates()[2]
    message = UPLINK.encode_update(
        [update, update], tf.constant(4.0), tf.constant([1, 2])
    )
    first, second = UPLINK.decode_update(message, [update.shape, update.shape])
    assert np.any(first != second)


def test_no_update_is_restored_as_none():
    decoded = UPLINK.decode(encode([np.zeros(s, np.float32) for s in SHAPES], 3), SPEC)
    assert all(np.all(update == 0) for update in decoded.float_parameters)


def test_the_mean_update_is_added():
    present = FloatWeights((), (tf.constant([1.0, 2.0]),))
    mean = FloatWeights((), (tf.constant([0.5, -1.0]),))
    applied = UPLINK.apply(present, mean)
    np.testing.assert_array_equal(applied.float_parameters[0], [1.5, 1.0])


def test_the_norm_is_the_largest_magnitude_by_default():
    by_default, by_name = (
        FedPAQConfig(**options).compose().uplink for options in ({}, {"norm": "max"})
    )
    a, b = (
        encode(make_updates(), 4, uplink=u)["scales"] for u in (by_default, by_name)
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(
        a, [np.max(np.abs(make_updates()[i])) for i in (0, 2)], rtol=1e-3
    )


@pytest.mark.parametrize("budget", [1, 1.99])
def test_budgets_below_two_bits_are_refused(problem, budget):
    budgets = {**problem.budgets, "cléo": budget}
    with pytest.raises(ValueError, match=f"fedpaq.*at least 2 bits.*{budget}"):
        build_fedpaq(problem.model_fn, budgets, problem.client_data)


def test_a_round_is_fedavgs_but_for_the_quantization(runtime, problem):
    """Clients train alike; of a single one the server gets its quantized update."""
    options = {"epochs": 2, "batch_size": 4, "learning_rate_decay": "none"}
    after = {}
    for name, build, config in (
        ("fedavg", build_fedavg, FedAvgConfig(**options)),
        ("fedpaq", build_fedpaq, FedPAQConfig(**options)),
    ):
        process = build(*problem.setting, config)
        before = process.initialize()
        output = process.next(before, ["cléo"])
        after[name] = process.get_model_weights(output.state)
    start = process.get_model_weights(before)
    row = problem.client_ids.index("cléo")
    sizes, bits = [4 * 27, 4 * 36], 5  # The budget is 5.5.
    codes = output.metrics["uplink_bits"][row][0]
    assert codes == sum(-(-size * bits // 8) * 8 for size in sizes)
    for old, exact, found in zip(
        start.trainable, after["fedavg"].trainable, after["fedpaq"].trainable
    ):
        error = np.max(np.abs(found - exact))
        if old.ndim < 2:
            np.testing.assert_allclose(found, exact, atol=1e-6)
        else:
            unit = np.max(np.abs(exact - old)) / (2 ** (bits - 1) - 1)
            assert 0.1 * unit < error < 1.001 * unit
    for exact, found in zip(
        after["fedavg"].non_trainable, after["fedpaq"].non_trainable
    ):
        np.testing.assert_allclose(found, exact, atol=1e-6)
