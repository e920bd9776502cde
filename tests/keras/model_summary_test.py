"""The summary of a model against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import tensorflow as tf

from tff_fedmpq.keras import QuantConv2D, QuantDense, summary


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
    assert rows[-1].split() == ["total", "127", "4.84", "194", "2.6x"]
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
