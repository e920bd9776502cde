"""Research optimizers of `studies`, against NumPy in float64.

* StochasticRoundingSGD: plain SGD on codes, rounded with the fraction's probability.
* CompensatedSGD: codes that stay near the path of SGD without rounding, in code units:
  position -= eta K velocity.
* StraightThroughSGD: quantization-aware training with a float master per weight, in the
  unit of the weights; codes are its nearest levels, gradients at the quantized weights
  move it.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle
from oracles.strategies import BIT_WIDTHS

from studies.optimizers import (
    CompensatedSGD,
    StochasticRoundingSGD,
    StraightThroughSGD,
)
from tff_fedmpq.keras import IntegerSGD, QuantDense, quantized_kernels

every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)

# Eq. 6-10 as printed: eta is a rate of codes.
stochastic_sgd = functools.partial(StochasticRoundingSGD, learning_rate_unit="code")


# --- all three --------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [StochasticRoundingSGD, CompensatedSGD, StraightThroughSGD]
)
def test_an_optimizer_goes_by_its_own_name(optimizer):
    assert optimizer().name == optimizer.__name__
    assert optimizer(0.5, name="mine").get_config()["name"] == "mine"
    with pytest.raises(ValueError, match=f"{optimizer.__name__}: clipnorm"):
        optimizer(clipnorm=1.0).build([make_kernel(4).codes])


@pytest.mark.parametrize(
    "optimizer", [StochasticRoundingSGD, CompensatedSGD, StraightThroughSGD]
)
def test_config_round_trip(optimizer):
    original = optimizer(0.7, float_learning_rate=0.25, momentum=0.8, seed=3)
    copy = tf.keras.optimizers.deserialize(tf.keras.optimizers.serialize(original))
    assert isinstance(copy, optimizer)
    assert copy.get_config() == original.get_config()


# --- StochasticRoundingSGD --------------------------------------------------


def make_spread_kernel(bit_width, shape=(20, 15), seed=0):
    """A quantized kernel whose codes are spread over their range."""
    kernel = make_kernel(bit_width, shape)
    codes = np.random.default_rng(seed).integers(0, 2**bit_width, size=shape)
    kernel.codes.assign(codes.astype(np.uint8))
    return kernel


def gradients_for(bit_width, shape, num_steps, seed=1):
    """Gradients whose steps are from far below one unit to past the whole range."""
    rng = np.random.default_rng(seed)
    gain = float(oracle.step_gain(bit_width))
    sizes = 2.0 ** rng.uniform(-6, bit_width + 1, size=[num_steps, *shape]) / gain
    return (rng.choice([-1, 1], size=sizes.shape) * sizes).astype(np.float32)


@every_bit_width
def test_stochastic_rounding_is_plain_sgd(monkeypatch, bit_width):
    """u <- u - eta K v, rounded up with the probability of the fraction."""
    kernel = make_spread_kernel(bit_width)
    shape = tuple(kernel.codes.shape)
    (gradient,) = gradients_for(bit_width, shape, num_steps=1)
    uniform = np.random.default_rng(2).random(size=shape).astype(np.float32)
    monkeypatch.setattr(
        tf.random, "stateless_uniform", lambda shape, seed, **_: tf.constant(uniform)
    )
    position = uniform - 0.5 * oracle.step_gain(bit_width) * gradient.astype(np.float64)
    clear = np.abs(position - np.round(position)) > 1e-3
    largest = 2**bit_width - 1
    expected = np.clip(kernel.codes.numpy() + np.floor(position), 0, largest)
    stochastic_sgd(0.5).apply_gradients([(tf.constant(gradient), kernel.codes)])
    assert np.mean(clear) > 0.9
    np.testing.assert_array_equal(kernel.codes.numpy()[clear], expected[clear])


def test_stochastic_rounding_is_unbiased():
    """A step of 21/64 units is done by 21/64 of the codes, to five sigma."""
    kernel = make_kernel(3)
    stochastic_sgd(1.0).apply_gradients([(tf.fill(SHAPE, 1 / 64), kernel.codes)])
    values, counts = np.unique(kernel.codes.numpy(), return_counts=True)
    np.testing.assert_array_equal(values, [3, 4])
    p = 21 / 64
    assert abs(counts[0] / 1e4 - p) < 5 * np.sqrt(p * (1 - p) / 1e4)


@every_bit_width
def test_stochastic_rounding_stays_in_range(bit_width):
    kernel = make_spread_kernel(bit_width)
    shape = tuple(kernel.codes.shape)
    optimizer = stochastic_sgd(1.0, momentum=0.5)
    for gradient in 100 * gradients_for(bit_width, shape, num_steps=2):
        optimizer.apply_gradients([(tf.constant(gradient), kernel.codes)])
        assert kernel.codes.dtype == tf.uint8
        assert np.max(kernel.codes) <= 2**bit_width - 1
    for size in (3e38, -3e38):
        optimizer.apply_gradients([(tf.fill(shape, size), kernel.codes)])
        assert np.max(kernel.codes) <= 2**bit_width - 1
    # Nowhere but at the ends, and not around the other way.
    optimizer = stochastic_sgd(1.0, momentum=0.0)
    optimizer.apply_gradients([(tf.fill(shape, 1e6), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.zeros(shape))
    optimizer.apply_gradients([(tf.fill(shape, -1e6), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.full(shape, 2**bit_width - 1))


def test_stochastic_rounding_without_gradient_takes_no_step():
    kernel = make_spread_kernel(8)
    before = kernel.codes.numpy()
    stochastic_sgd(1.0).apply_gradients([(tf.zeros(before.shape), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, before)


@pytest.mark.parametrize("scale", [0.1, 0.5])
@every_bit_width
def test_stochastic_rounding_at_a_rate_of_weights(bit_width, scale):
    """Weights move by eta times their gradient, on average, whatever delta is."""
    kernel = make_kernel(bit_width, shape=(200, 100))
    kernel.scale.assign(scale)
    delta = scale / (2**bit_width - 1)
    gradient = 0.4 * delta  # Of weights, at eta 1: 0.4 units.
    before = kernel.value().numpy()
    on_codes = tf.fill(kernel.codes.shape, np.float32(gradient * delta))
    optimizer = StochasticRoundingSGD(1.0, momentum=0.0)
    optimizer.apply_gradients([(on_codes, kernel.codes)])
    moved = before - kernel.value().numpy()
    # Five standard errors of a mean of units that are moved with probability 0.4.
    error = 5 * delta * np.sqrt(0.4 * 0.6 / moved.size)
    assert abs(moved.mean() - gradient) < error


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_model_learns_by_stochastic_rounding(bits):
    history = fit(stochastic_sgd(1.0, float_learning_rate=0.05, momentum=0.5), bits)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


# --- CompensatedSGD ---------------------------------------------------------

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


@every_bit_width
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


def test_compensated_codes_stay_in_range_and_lose_what_was_clipped():
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


def test_compensated_rounding_without_gradient_takes_no_step():
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


def test_compensation_needs_momentum():
    with pytest.raises(ValueError, match="momentum"):
        CompensatedSGD(momentum=0.0)


# --- StraightThroughSGD -----------------------------------------------------

ORACLES = {
    "offset_binary": oracle.OFFSET_BINARY,
    "sign_magnitude": oracle.SIGN_MAGNITUDE,
}
every_representation = pytest.mark.parametrize("name", sorted(ORACLES))


def make_layer(bit_width, name="sign_magnitude", use_bias=True, shape=(12, 5)):
    tf.keras.utils.set_random_seed(3)
    layer = QuantDense(
        shape[1], bit_width=bit_width, representation=name, use_bias=use_bias
    )
    layer.build([None, shape[0]])
    return layer


def make_regression(seed=0, shape=(12, 5)):
    """Inputs and targets of a linear model with weights beyond the first scale."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, shape[0])).astype(np.float32)
    targets = x @ rng.normal(scale=0.5, size=shape) + rng.normal(size=shape[1])
    return x, targets.astype(np.float32)


def train(layer, optimizer, x, targets, steps):
    """Losses of steps of the whole batch."""
    losses = []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(layer(x) - targets))
        gradients = tape.gradient(loss, layer.trainable_variables)
        optimizer.apply_gradients(zip(gradients, layer.trainable_variables))
        losses.append(float(loss))
    return losses


def levels_of(name, kernel):
    bits = int(kernel.bit_width)
    return oracle.levels(ORACLES[name], float(kernel.scale), bits)


def nearest(levels, weights):
    """Codes of the nearest levels, and where another is as near."""
    distance = np.sort(np.abs(weights[..., np.newaxis] - levels), axis=-1)
    codes = np.argmin(np.abs(weights[..., np.newaxis] - levels), axis=-1)
    return codes, distance[..., 1] - distance[..., 0] < 1e-4 * (levels[1] - levels[0])


@every_representation
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_masters_are_those_of_quantization_aware_training(name, bits, momentum, decay):
    """Step by step: v <- mu v + dL/dW + decay Q(W), W <- W - eta v, u = nearest(W)."""
    layer = make_layer(bits, name)
    kernel = layer.quantized_kernel
    x, targets = make_regression()
    optimizer = StraightThroughSGD(
        learning_rate=123.0,  # Not used.
        float_learning_rate=0.05,
        momentum=momentum,
        weight_decay=decay,
    )
    levels = levels_of(name, kernel)
    delta = levels[1] - levels[0]
    codes = kernel.codes.numpy()
    master, bias = levels[codes], np.zeros(5)
    velocities = [np.zeros_like(master), np.zeros_like(bias)]
    moved = 0
    for _ in range(12):
        train(layer, optimizer, x, targets, 1)
        error = 2 * (x @ levels[codes] + bias - targets) / targets.size
        gradients = (x.T @ error + decay * levels[codes], error.sum(0) + decay * bias)
        for velocity, gradient in zip(velocities, gradients):
            velocity[...] = momentum * velocity + gradient
        master = master - 0.05 * velocities[0]
        bias = bias - 0.05 * velocities[1]
        expected, tie = nearest(levels, master)
        found = optimizer.masters[0].numpy() * delta
        np.testing.assert_allclose(found, master, rtol=1e-4, atol=1e-4 * delta)
        np.testing.assert_array_equal(kernel.codes.numpy()[~tie], expected[~tie])
        np.testing.assert_allclose(layer.bias, bias, rtol=1e-4, atol=1e-5)
        moved += np.count_nonzero(kernel.codes.numpy() != codes)
        # Go on from the same codes where two levels are as near.
        codes = kernel.codes.numpy().astype(int)
    assert moved > 0


@every_representation
@pytest.mark.parametrize("bits", range(1, 9))
def test_without_a_gradient_nothing_moves(name, bits):
    """Masters begin as what the codes stand for, so their nearest levels are these."""
    layer = make_layer(bits, name)
    codes = layer.quantized_kernel.codes
    spread = np.random.default_rng(0).integers(0, 2**bits, codes.shape)
    codes.assign(spread.astype(np.uint8))
    optimizer = StraightThroughSGD(float_learning_rate=1.0)
    for _ in range(2):
        optimizer.apply_gradients([(tf.zeros(codes.shape), codes)])
    np.testing.assert_array_equal(codes, spread)


def test_small_gradients_add_up():
    """Steps of a tenth of a level are lost on nobody: what masters are for."""
    layer = make_layer(4, use_bias=False)
    kernel = layer.quantized_kernel
    kernel.codes.assign(tf.fill(kernel.codes.shape, tf.constant(8, tf.uint8)))
    optimizer = StraightThroughSGD(float_learning_rate=1.0, momentum=0.0)
    delta = float(kernel.step_size())
    gradient = tf.fill(kernel.codes.shape, 0.1 * delta**2)  # dL/du: a tenth of a unit.
    seen = []
    for _ in range(20):
        optimizer.apply_gradients([(gradient, kernel.codes)])
        assert len(np.unique(kernel.codes)) == 1
        seen.append(int(kernel.codes[0, 0]))
    assert seen[:4] == [8, 8, 8, 8] and seen[6:14] == 8 * [7]
    assert seen[16:] == 4 * [6]


def test_codes_stay_in_range_and_scales_and_bits_as_they_are():
    layer = make_layer(3, use_bias=False)
    kernel = layer.quantized_kernel
    scale = float(kernel.scale)
    optimizer = StraightThroughSGD(float_learning_rate=1.0)
    for size, expected in ((1e6, 0), (-1e8, 7)):
        optimizer.apply_gradients([(tf.fill(kernel.codes.shape, size), kernel.codes)])
        np.testing.assert_array_equal(
            kernel.codes, np.full(kernel.codes.shape, expected)
        )
    assert kernel.codes.dtype == tf.uint8
    assert float(kernel.scale) == scale and int(kernel.bit_width) == 3


def test_float_variables_take_the_steps_of_plain_sgd():
    variables = [tf.Variable([1.0, -2.0, 3.0]) for _ in range(2)]
    ours = StraightThroughSGD(float_learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    other = IntegerSGD(float_learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        gradient = tf.constant([0.5, -step, 1.0 + step])
        for optimizer, variable in zip((ours, other), variables):
            optimizer.apply_gradients([(gradient, variable)])
    np.testing.assert_array_equal(variables[0], variables[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_model_learns_by_masters_with_plain_keras(bits):
    history = fit(StraightThroughSGD(float_learning_rate=0.1), bits)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def fit(optimizer, bits):
    """History of a small classifier under plain Keras."""
    tf.keras.utils.set_random_seed(0)
    x, _ = make_regression()
    labels = (x[:, 0] + x[:, 1] > 0).astype(np.int32)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((12,)),
            QuantDense(16, activation="relu", bit_width=bits),
            QuantDense(2, bit_width=bits),
        ]
    )
    model.compile(
        optimizer, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = model.fit(x, labels, epochs=25, batch_size=10, verbose=0).history
    for kernel in quantized_kernels(model):
        assert np.max(kernel.codes) < 2**bits
    return history


def test_a_master_of_floats_is_four_bytes_a_weight():
    layer = make_layer(4)
    optimizer = StraightThroughSGD()
    optimizer.build(layer.trainable_variables)
    kernel_master, bias_master = optimizer.masters
    assert kernel_master.dtype == tf.float32
    assert kernel_master.shape == layer.quantized_kernel.codes.shape
    assert bias_master is None
