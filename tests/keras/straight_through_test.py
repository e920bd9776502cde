"""StraightThroughSGD: quantization-aware training as NumPy does it, with masters.

The oracle keeps a float64 master of each weight in the weights' own unit; codes are its
nearest levels, gradients of the loss at the quantized weights move the master.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle

from tff_fedmpq.keras import IntegerSGD, QuantDense, quantized_kernels
from tff_fedmpq.keras.optimizer import StraightThroughSGD

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
def test_a_model_learns_by_it_with_plain_keras(bits):
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
        StraightThroughSGD(float_learning_rate=0.1),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(x, labels, epochs=25, batch_size=10, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    for kernel in quantized_kernels(model):
        assert np.max(kernel.codes) < 2**bits


def test_a_master_of_floats_is_four_bytes_a_weight():
    layer = make_layer(4)
    optimizer = StraightThroughSGD()
    optimizer.build(layer.trainable_variables)
    kernel_master, bias_master = optimizer.masters
    assert kernel_master.dtype == tf.float32
    assert kernel_master.shape == layer.quantized_kernel.codes.shape
    assert bias_master is None


def test_its_config_restores_it():
    optimizer = StraightThroughSGD(float_learning_rate=0.25, momentum=0.5, seed=4)
    restored = StraightThroughSGD.from_config(optimizer.get_config())
    assert restored.get_config() == optimizer.get_config()
