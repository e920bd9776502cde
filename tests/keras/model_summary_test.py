"""The summary of a model against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import tensorflow as tf

from tff_fedmpq.keras import QuantConv2D, QuantDense, quantize_model, summary


def make_model():
    """Kernels of 2*2*3*5 = 60 weights (3 bits) and 5*7 = 35 weights (8 bits).

    Float parameters: biases 5 and 7, and four times 5 numbers of the BatchNorm: 32.
    """
    return tf.keras.Sequential(
        [
            tf.keras.Input([2, 2, 3]),
            QuantConv2D(5, 2, bit_width=3, name="first"),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.Flatten(),
            QuantDense(7, name="second"),
        ]
    )


def test_numbers():
    result = summary(make_model())
    first, second = result.layers
    assert [first.num_weights, first.bit_width] == [60, 3]
    assert first.num_bytes == 23 + 4  # 180 bits are 22.5 bytes; and a scale.
    assert [second.num_weights, second.bit_width] == [35, 8]
    assert second.num_bytes == 35 + 4
    floats = result.float_parameters
    assert [floats.num_weights, floats.bit_width, floats.num_bytes] == [32, 32, 128]
    assert result.num_bytes == 27 + 39 + 128
    assert result.mean_bit_width == pytest.approx((60 * 3 + 35 * 8) / 95)
    assert first.compression == pytest.approx(240 / 27)
    assert floats.compression == 1
    assert result.compression == pytest.approx(4 * (60 + 35 + 32) / 194)


def test_follows_the_bit_width():
    model = make_model()
    model.get_layer("second").quantized_kernel.set_bit_width(1)
    second = summary(model).layers[1]
    assert [second.bit_width, second.num_bytes] == [1, 5 + 4]


def test_text_has_a_row_per_layer_and_a_total():
    result = summary(make_model())
    lines = str(result).splitlines()
    rows = [line for line in lines[1:] if line.strip("-")]
    assert len(rows) == 2 + 1 + 1
    for row, layer in zip(rows, (*result.layers, result.float_parameters)):
        assert row.startswith(layer.name)
        numbers = row[len(layer.name) :].split()
        assert numbers[:3] == [
            str(layer.num_weights),
            str(layer.bit_width),
            str(layer.num_bytes),
        ]
    assert "first" in rows[0] and "second" in rows[1]
    assert rows[-1].split()[:-1] == ["total", "127", "4.84", "194", "2.6x", "95"]
    assert len({len(line) for line in lines}) <= 2  # Columns are aligned.


def test_a_float_model_is_all_rest():
    model = tf.keras.Sequential([tf.keras.Input([3]), tf.keras.layers.Dense(2)])
    result = summary(model)
    assert result.layers == ()
    assert result.num_bytes == result.float_parameters.num_bytes == 8 * 4
    assert result.compression == 1
    assert math.isnan(result.mean_bit_width)
    assert "nan" in str(result).splitlines()[-1]


def test_float_kernels_of_quantized_layers_are_rest():
    layer = QuantDense(2, bit_width=None)
    result = summary(tf.keras.Sequential([tf.keras.Input([3]), layer]))
    assert result.layers == ()
    assert result.float_parameters.num_weights == 8


def test_frozen_layers_are_counted_as_stored():
    model = make_model()
    before = summary(model)
    model.get_layer("first").trainable = False
    assert summary(model) == before


def _macs(model):
    return {row.name.split("/")[0]: row.macs for row in summary(model).layers}


def test_multiply_accumulates_of_a_cnn_by_hand():
    layers = tf.keras.layers
    model = quantize_model(
        tf.keras.Sequential(
            [
                tf.keras.Input([9, 8, 3]),
                layers.Conv2D(4, 3, strides=2, name="conv"),  # -> 4, 3
                layers.DepthwiseConv2D(2, name="depthwise"),  # -> 3, 2
                layers.Conv2DTranspose(5, 3, name="transposed"),  # -> 5, 4
                layers.Reshape([20, 5]),
                layers.Dense(6, name="dense"),
                layers.EinsumDense("btc,cde->btde", [None, 2, 3], name="einsum"),
                layers.Reshape([20, 6]),
                layers.TimeDistributed(layers.Dense(2, name="distributed")),
            ]
        )
    )
    assert _macs(model) == {
        "conv": 12 * (3 * 3 * 3 * 4),
        "depthwise": 6 * (2 * 2 * 4),
        "transposed": 6 * (3 * 3 * 5 * 4),
        "dense": 20 * (5 * 6),
        "einsum": 20 * (6 * 2 * 3),
        "distributed": 20 * (6 * 2),
    }


def test_multiply_accumulates_of_sequences_by_hand():
    layers = tf.keras.layers
    model = quantize_model(
        tf.keras.Sequential(
            [
                tf.keras.Input([7], dtype="int32"),
                layers.Embedding(11, 4, name="words"),
                layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
                layers.GRU(2, name="gru"),
            ]
        )
    )
    words, *others = summary(model).layers
    assert words.macs == 0
    assert sum(row.macs for row in others) == 7 * (
        2 * 4 * (4 + 3) * 3 + 3 * (6 + 2) * 2
    )


def test_multiply_accumulates_of_a_model_per_step_by_hand():
    layers = tf.keras.layers
    conv, dense = layers.Conv1D(3, 3, name="conv"), layers.Dense(5, name="dense")
    frame = tf.keras.Sequential([tf.keras.Input([6, 2]), conv, layers.Flatten(), dense])
    model = tf.keras.Sequential(
        [tf.keras.Input([7, 6, 2]), layers.TimeDistributed(frame)]
    )
    expected = {"conv": 7 * 4 * (3 * 2 * 3), "dense": 7 * (12 * 5)}
    assert _macs(quantize_model(model)) == expected


def test_energy_by_the_published_numbers():
    """At 8 bits, Horowitz: 0.2 pJ, 0.1 pJ for the sum, and 5 pJ for 32 bits read."""
    row = summary(make_model()).layers[1]
    expected = 35 * (0.2 + 0.1) + 35 * 8 / 32 * 5
    assert row.nanojoules == pytest.approx(1e-3 * expected, rel=0.02)
    model = make_model()
    model.get_layer("second").quantized_kernel.set_bit_width(2)
    fewer = summary(model).layers[1]
    expected = 35 * (0.2 * 2 / 8 + 0.1) + 35 * 2 / 32 * 5
    assert fewer.nanojoules == pytest.approx(1e-3 * expected, rel=0.02)
