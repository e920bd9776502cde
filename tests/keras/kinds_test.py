"""Every kind of layer with a quantized form, in a model: converted, trained, saved."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

from tests.keras.conversion_test import warnings_of_absl
from tff_fedmpq.keras import (
    IntegerSGD,
    QuantDense,
    load_float_weights,
    quantize_model,
    quantized_kernels,
    register_quantized_layer,
    summary,
)

layers = tf.keras.layers


class Factors(layers.Layer):
    """A layer of users with a kernel of its own, and a layer in it."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.inner = units, layers.Dense(units)

    def build(self, input_shape):
        self.mixer = self.add_weight("mixer", [input_shape[-1], self.units])
        super().build(input_shape)

    def call(self, inputs):
        return self.inner(tf.nn.relu(inputs @ self.mixer))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Block(layers.Layer):
    """A layer of users that is made of layers, some in a list, some when built."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.steps = [layers.Dense(4), layers.LSTM(4, return_sequences=True)]

    def build(self, input_shape):
        self.last = layers.MultiHeadAttention(2, 3)
        super().build(input_shape)

    def call(self, inputs):
        for step in self.steps:
            inputs = step(inputs)
        return self.last(inputs, inputs)


register_quantized_layer(tf.keras.utils.register_keras_serializable()(Factors), "mixer")
register_quantized_layer(tf.keras.utils.register_keras_serializable()(Block))


def attention(x):
    return layers.MultiHeadAttention(2, 4)(x, x)


def transformer(x):
    x = layers.Embedding(9, 6)(x)
    x = layers.LayerNormalization()(x + attention(x))
    y = layers.EinsumDense("abc,cd->abd", (None, 8), "relu", bias_axes="d")(x)
    return x + layers.Dense(6)(y)


def nested(x):
    inner = tf.keras.Sequential(
        [tf.keras.Input([6, 3]), layers.GRU(3, return_sequences=True)]
    )
    outer = tf.keras.Sequential(
        [tf.keras.Input([6, 3]), inner, layers.Conv1D(3, 1), layers.Dense(3)]
    )
    return outer(outer(x))  # Shared: one layer in two places.


def per_step(x):
    """Of a model in a wrapper, with one in it."""
    inner = tf.keras.Sequential([layers.Conv1D(3, 3), layers.BatchNormalization()])
    model = tf.keras.Sequential([tf.keras.Input([6, 2]), inner, layers.GRU(3)])
    return layers.TimeDistributed(model)(x)


# Input shape, layers, and number of kernels without the head's.
KINDS = {
    "Conv1DTranspose": ((6, 3), layers.Conv1DTranspose(4, 3), 1),
    "Conv3DTranspose": ((3, 3, 3, 2), layers.Conv3DTranspose(3, 2), 1),
    "DepthwiseConv1D": ((6, 3), layers.DepthwiseConv1D(3, depth_multiplier=2), 1),
    "SeparableConv1D": ((6, 3), layers.SeparableConv1D(4, 3), 2),
    "SeparableConv2D": ((6, 6, 3), layers.SeparableConv2D(4, 3), 2),
    "Embedding": ((6,), layers.Embedding(9, 5), 1),
    "SimpleRNN": ((6, 3), layers.SimpleRNN(4), 2),
    "LSTM": ((6, 3), layers.LSTM(4, return_sequences=True), 2),
    "GRU": ((6, 3), layers.GRU(4, reset_after=False), 2),
    "ConvLSTM1D": ((3, 6, 2), layers.ConvLSTM1D(2, 3), 2),
    "ConvLSTM2D": ((3, 4, 4, 2), layers.ConvLSTM2D(2, 3, activation="relu"), 2),
    "ConvLSTM3D": ((2, 3, 3, 3, 1), layers.ConvLSTM3D(2, 2), 2),
    "RNN of cells": ((6, 3), layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)]), 4),
    "Bidirectional": ((6, 3), layers.Bidirectional(layers.LSTM(4)), 4),
    "TimeDistributed": ((6, 3), layers.TimeDistributed(layers.Dense(4, "relu")), 1),
    "wrapped twice": (
        (4, 5, 3),
        layers.TimeDistributed(layers.Bidirectional(layers.GRU(2))),
        4,
    ),
    "TimeDistributed model": ((3, 6, 2), per_step, 3),
    "MultiHeadAttention": ((6, 8), attention, 4),
    "transformer": ((6,), transformer, 7),
    "nested": ((6, 3), nested, 4),
    "custom kernel": ((6, 3), Factors(5), 2),
    "custom of layers": ((6, 3), Block(), 7),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# Others are trained op by op, which is quicker than tracing.
IN_A_GRAPH = ("SeparableConv1D", "LSTM", "ConvLSTM1D", "RNN of cells", "transformer")


def make(kind):
    set_random_seed(5)
    shape, part, num_kernels = KINDS[kind]
    if isinstance(part, layers.Layer):
        part = type(part).from_config(part.get_config())
    inputs = tf.keras.Input(shape)
    outputs = layers.Dense(2, name="head")(layers.Flatten()(part(inputs)))
    model = tf.keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    is_token = kind in ("Embedding", "transformer")
    x = rng.integers(0, 9, [6, *shape]) if is_token else rng.normal(size=[6, *shape])
    return model, x.astype(np.float32), num_kernels + 1


@every_kind
def test_eight_bits_are_nearly_float_and_none_is_float(kind):
    model, x, num_kernels = make(kind)
    with warnings_of_absl() as messages:
        quantized = quantize_model(model, 8)
        same = quantize_model(model, None)
    assert messages == []
    assert len(quantized_kernels(quantized)) == num_kernels
    assert quantized.quantization_report.float_share < 0.1
    expected = model(x).numpy()
    np.testing.assert_allclose(same(x), expected, rtol=1e-5, atol=1e-6)
    error = np.abs(quantized(x) - expected)
    assert 0 < error.max() < 0.06 * np.abs(expected).max()
    for ours, theirs in zip(quantized.trainable_variables, model.trainable_variables):
        assert ours.shape == theirs.shape
        if not hasattr(ours, "quantized_kernel"):
            np.testing.assert_array_equal(ours, theirs)
    again = quantize_model(quantized, 2)
    widths = [int(kernel.bit_width) for kernel in quantized_kernels(again)]
    assert widths == [2] * num_kernels
    assert np.isfinite(again(x)).all()


@every_kind
def test_gradients_are_those_of_the_dequantized_model(kind):
    """dL/du = delta dL/dW, with dL/dW of the stock model at the same weights."""
    model, x, _ = make(kind)
    quantized = quantize_model(model, 6)
    found = []
    for ours, theirs in zip(quantized.trainable_variables, model.trainable_variables):
        kernel = getattr(ours, "quantized_kernel", None)
        theirs.assign(ours if kernel is None else kernel.value())
    for each in (quantized, model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(each(x, training=True)))
        found.append(tape.gradient(loss, each.trainable_variables))
    for variable, ours, theirs in zip(quantized.trainable_variables, *found):
        theirs = tf.convert_to_tensor(theirs).numpy()
        if hasattr(variable, "quantized_kernel"):
            theirs = theirs * variable.quantized_kernel.scale.numpy() / (2**6 - 1)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@every_kind
def test_training_saving_and_going_on(kind, tmp_path):
    model, x, _ = make(kind)
    quantized = quantize_model(model, 4, 8, activation_range=6.0, lasso=1e-3)
    owners = [x for x in quantized.submodules if getattr(x, "quantized_kernels", {})]
    total = sum(x._lasso_of(k) for x in owners for k in x.quantized_kernels.values())
    assert total == pytest.approx(1e-3)
    eager = kind not in IN_A_GRAPH
    quantized.compile(IntegerSGD(0.3, 0.1), "mse", run_eagerly=eager)
    y = np.random.default_rng(2).normal(size=[6, 2])
    before = [v.numpy() for v in quantized.trainable_variables]
    quantized.fit(x, y, batch_size=2, epochs=2, verbose=0)
    for variable, old in zip(quantized.trainable_variables, before):
        if "key/bias" not in variable.name:  # Softmax does not depend on it.
            assert np.any(variable.numpy() != old), variable.name
    quantized.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), quantized(x))
    loaded.run_eagerly = quantized.run_eagerly = True
    quantized.make_train_function(force=True)
    rows = [(row.num_weights, row.bit_width) for row in summary(loaded).layers]
    assert rows == [(k.size, 4) for k in quantized_kernels(quantized)]
    losses = [m.train_on_batch(x, y) for m in (loaded, quantized)]
    assert losses[0] == pytest.approx(losses[1])
    clone = tf.keras.models.clone_model(quantized)
    clone.set_weights(quantized.get_weights())
    np.testing.assert_array_equal(clone(x), quantized(x))


def test_float_weights_of_another_training_are_loaded():
    model, x, _ = make("transformer")
    quantized = quantize_model(model, 8, representation="sign_magnitude")
    model.set_weights([w + 0.1 for w in model.get_weights()])
    load_float_weights(quantized, model)
    expected = quantize_model(model, 8, representation="sign_magnitude")
    np.testing.assert_array_equal(quantized(x), expected(x))


def test_bit_widths_that_were_changed_are_saved_and_cloned(tmp_path):
    model, x, _ = make("SeparableConv1D")
    quantized = quantize_model(model, 8)
    quantized.get_layer("head").quantized_kernel.set_bit_width(3)
    quantized.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    clone = tf.keras.models.clone_model(quantized)
    for each in (loaded, clone):
        assert each.get_layer("head").bit_width == 3
    np.testing.assert_array_equal(loaded(x), quantized(x))


def test_a_layer_made_in_a_graph_of_tensorflow_1_changes_no_other():
    """There, as in TFF's, Keras exchanges the bases of a layer's class."""
    with tf.Graph().as_default():
        QuantDense(2)
    x = tf.keras.Input([6, 3])  # Of a layer with a `from_config` of its own.
    quantize_model(tf.keras.Model(x, attention(x)))
