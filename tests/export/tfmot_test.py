"""tfmot's training on our levels, and conversion to codes and back."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
from oracles.seeds import set_random_seed

from tff_fedmpq.export import tfmot as bridge
from tff_fedmpq.keras import QuantReLU, quantize_model, quantized_kernels

layers = tf.keras.layers
annotate = tfmot.quantization.keras.quantize_annotate_layer
annotate_model = tfmot.quantization.keras.quantize_annotate_model
apply = tfmot.quantization.keras.quantize_apply


def float_model():
    set_random_seed(2)
    return tf.keras.Sequential(
        [
            tf.keras.Input([6, 6, 2]),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(2, name="depthwise", activation="tanh"),
            layers.Flatten(),
            layers.Dense(3, name="last"),
        ]
    )


def examples(count=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6, 6, 2)).astype(np.float32)
    return x, rng.integers(0, 3, count)


def train(model, **options):
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    return model.fit(*examples(), verbose=0, **options).history["loss"]


def assert_equal_outputs(one, other):
    """Equal but for sums that the two graphs order differently."""
    shape = [16, *one.input_shape[1:]]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(one.predict(x), other.predict(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_trains_on_our_levels_and_converts_with_equal_outputs(bits):
    scheme = bridge.BitsQuantizeScheme(bit_width=bits, activation_bits=4)
    model = apply(annotate_model(float_model()), scheme)
    before = [v.numpy() for v in model.trainable_variables]
    losses = train(model, epochs=8)
    assert losses[-1] < losses[0]
    moved = [np.any(v != b) for v, b in zip(model.trainable_variables, before)]
    assert all(moved)
    quantized = bridge.from_tfmot(model)
    assert_equal_outputs(quantized, model)
    for kernel in quantized_kernels(quantized):
        assert int(kernel.bit_width) == bits
        assert len(np.unique(kernel.value())) <= 2**bits
    assert any(isinstance(layer, QuantReLU) for layer in quantized.layers)


@pytest.mark.parametrize("representation", ["sign_magnitude", "offset_binary"])
def test_back_to_tfmot_with_equal_outputs_and_trains_there(representation):
    bits = {"conv": 2, "last": 8, "*": 3}
    quantized = quantize_model(
        float_model(), bits, 4, representation=representation, per_channel=False
    )
    model = bridge.to_tfmot(quantized)
    assert_equal_outputs(quantized, model)
    again = bridge.from_tfmot(model)
    for one, other in zip(quantized_kernels(quantized), quantized_kernels(again)):
        np.testing.assert_array_equal(one.codes, other.codes)
        assert int(one.bit_width) == int(other.bit_width)
    losses = train(model, epochs=12)  # Of one step each, at few levels.
    assert losses[-1] < losses[0]


def test_a_configuration_per_layer():
    config = bridge.BitsQuantizeConfig(bit_width=2)
    set_random_seed(2)
    annotated = tf.keras.Sequential(
        [
            tf.keras.Input([4]),
            annotate(layers.Dense(5, "relu", name="first"), config),
            layers.Dense(2, name="float"),
        ]
    )
    model = apply(annotated, bridge.BitsQuantizeScheme())
    quantized = bridge.from_tfmot(model)
    (kernel,) = quantized_kernels(quantized)
    assert kernel.name == "first/kernel" and int(kernel.bit_width) == 2
    assert_equal_outputs(quantized, model)


def test_gradient_passes_through_the_levels():
    quantizer = bridge.LevelQuantizer(2, "sign_magnitude", "max")
    weights = tf.Variable([0.9, -0.3, 0.1])
    scale = {"scale": tf.Variable(0.0)}
    with tf.GradientTape() as tape:
        quantized = quantizer(weights, True, scale)
        loss = tf.reduce_sum(quantized * [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(tape.gradient(loss, weights), [1.0, 2.0, 3.0])
    # s = 2 max|W| = 1.8, delta = 0.6: levels are +-0.3 and +-0.9.
    np.testing.assert_allclose(quantized, [0.9, -0.3, 0.3], rtol=1e-6)
    assert scale["scale"].numpy() == pytest.approx(1.8)


def test_what_tfmot_cannot_hold_is_refused():
    quantized = quantize_model(float_model(), 4)  # Depthwise: a scale per channel.
    with pytest.raises(ValueError, match="one scale each"):
        bridge.to_tfmot(quantized)
    model = tfmot.quantization.keras.quantize_model(
        tf.keras.Sequential([tf.keras.Input([3]), layers.Dense(2)])
    )
    with pytest.raises(ValueError, match="no BitsQuantizeConfig"):
        bridge.from_tfmot(model)
