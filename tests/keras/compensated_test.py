"""CompensatedSGD: codes that stay near the path of SGD without rounding.

The oracle is SGD with momentum in float64, in code units: position -= eta K velocity.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle
from oracles.strategies import BIT_WIDTHS

from tff_fedmpq.keras import IntegerSGD, QuantDense
from tff_fedmpq.keras.optimizer import CompensatedSGD

BIT_WIDTH = 8  # So that a path of many steps stays within the codes' range.
SHAPE = (100, 100)


def make_kernel(bit_width, shape=SHAPE):
    layer = QuantDense(shape[1], use_bias=False, bit_width=bit_width)
    layer.build([None, shape[0]])
    kernel = layer.quantized_kernel
    kernel.codes.assign(tf.fill(shape, tf.constant(2 ** (bit_width - 1), tf.uint8)))
    return kernel


def distance_from_sgd(optimizer_class, momentum, num_steps):
    """Codes after noisy steps minus where unrounded SGD is, in units."""
    kernel = make_kernel(BIT_WIDTH)
    optimizer = optimizer_class(0.3, momentum=momentum, learning_rate_unit="code")
    optimizer.build([kernel.codes])
    step = tf.function(lambda g: optimizer.apply_gradients([(g, kernel.codes)]))
    gain = float(optimizer.learning_rate) * oracle.step_gain(BIT_WIDTH)
    start = kernel.codes.numpy().astype(np.float64)
    position, velocity = start.copy(), np.zeros(SHAPE)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        units = rng.normal(scale=0.1 * (1 - momentum), size=SHAPE)
        gradient = (units / gain).astype(np.float32)
        step(tf.constant(gradient))
        velocity = momentum * velocity + gradient
        position -= gain * velocity
    assert np.all(np.abs(position - start) < 120)  # Nothing was clipped.
    return kernel.codes.numpy() - position


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_codes_stay_within_two_units_of_sgd(momentum):
    """Where uncompensated rounding walks away, and goes on doing so."""
    after = [distance_from_sgd(CompensatedSGD, momentum, steps) for steps in (50, 200)]
    walked = distance_from_sgd(IntegerSGD, momentum, 200)
    for distance in after:
        assert np.var(distance) < 1
        assert np.mean(np.abs(distance) < 2) > 0.95
        # Five standard errors of a mean of 10,000 distances below a unit.
        assert abs(np.mean(distance)) < 5 * np.std(distance) / 100
    assert np.var(walked) > 4 * np.var(after[1])


@pytest.mark.parametrize("bit_width", BIT_WIDTHS)
def test_what_rounding_added_is_what_the_momentum_takes_back(bit_width):
    """The buffer's coming steps, eta K v (mu + mu^2 + ...), undo the error."""
    kernel = make_kernel(bit_width, (30, 20))
    optimizer = CompensatedSGD(0.3, momentum=0.8, learning_rate_unit="code")
    optimizer.build([kernel.codes])
    gain = 0.3 * float(oracle.step_gain(bit_width))
    gradient = np.full([30, 20], 0.3 / gain, np.float32)  # 0.3 units: nothing clips.
    before = kernel.codes.numpy().astype(np.float64)
    optimizer.apply_gradients([(tf.constant(gradient), kernel.codes)])
    moved = kernel.codes.numpy() - before
    assert set(np.unique(moved)) == {-1.0, 0.0}
    to_come = -gain * optimizer.velocities[0].numpy() * 0.8 / (1 - 0.8)
    # Moved and to come are what SGD would move in all: 0.3 / (1 - 0.8) units.
    np.testing.assert_allclose(moved + to_come, -0.3 / (1 - 0.8), rtol=1e-5)


def test_codes_stay_in_range_and_forget_what_was_clipped():
    kernel = make_kernel(2, (30, 20))
    optimizer = CompensatedSGD(0.3, momentum=0.8, learning_rate_unit="code")
    optimizer.build([kernel.codes])
    shape = tuple(kernel.codes.shape)
    for gradient in (np.full(shape, 100.0), np.full(shape, -100.0)):
        for velocity in optimizer.velocities:
            velocity.assign(tf.zeros_like(velocity))
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), kernel.codes)])
        expected = 0 if gradient[0, 0] > 0 else 3
        np.testing.assert_array_equal(kernel.codes, np.full(shape, expected))
        # The step is a power of two near the 150 units that were asked for;
        # the buffer keeps that difference, not what lay beyond the range.
        gain = 0.3 * float(oracle.step_gain(2))
        kept = optimizer.velocities[0].numpy() / gradient
        power = 2.0 ** np.round(np.log2(0.3 * 100.0)) / (0.3 * 100.0)
        assert gain * 100 > 3
        np.testing.assert_allclose(kept, 1 + (1 - power) * 0.2 / 0.8, atol=0.01)


def test_no_gradient_no_step():
    kernel = make_kernel(4)
    optimizer = CompensatedSGD(1.0, learning_rate_unit="code")
    optimizer.apply_gradients([(tf.zeros(SHAPE), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.full(SHAPE, 8))
    np.testing.assert_array_equal(optimizer.velocities[0], np.zeros(SHAPE))


def test_a_rate_of_zero_moves_nothing():
    """As in the last round of a rate that falls to zero."""
    kernel = make_kernel(4)
    optimizer = CompensatedSGD(0.0, learning_rate_unit="code")
    optimizer.apply_gradients([(tf.ones(SHAPE), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.full(SHAPE, 8))
    assert np.all(np.isfinite(optimizer.velocities[0]))


def test_needs_momentum():
    with pytest.raises(ValueError, match="momentum"):
        CompensatedSGD(momentum=0.0)


def test_config_round_trip():
    optimizer = CompensatedSGD(0.7, momentum=0.8, seed=3)
    copy = tf.keras.optimizers.deserialize(tf.keras.optimizers.serialize(optimizer))
    assert isinstance(copy, CompensatedSGD)
    assert copy.get_config() == optimizer.get_config()
