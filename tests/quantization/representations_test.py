"""Levels and nearest-level quantization of both representations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from oracles import quantization as oracle
from oracles import strategies
from oracles.strategies import BIT_WIDTHS, SETTINGS

from tff_fedmpq.quantization.representations import (
    OFFSET_BINARY,
    SIGN_MAGNITUDE,
    scale_of,
    step_size,
)
from tff_fedmpq.quantization.scales import max_scale

PAIRS = [
    pytest.param(OFFSET_BINARY, oracle.OFFSET_BINARY, id="offset_binary"),
    pytest.param(SIGN_MAGNITUDE, oracle.SIGN_MAGNITUDE, id="sign_magnitude"),
]
both = pytest.mark.parametrize("representation, expected", PAIRS)
every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)


def width(bit_width):
    return tf.constant(bit_width, tf.int32)


def all_codes(bit_width):
    return np.arange(2**bit_width, dtype=np.uint8)


@both
@every_bit_width
def test_zero_point_and_number_of_planes(representation, expected, bit_width):
    zero_point = representation.zero_point(width(bit_width))
    assert zero_point.dtype == tf.float32
    assert zero_point.shape == ()
    assert float(zero_point) == float(expected.zero_point(bit_width))
    num_planes = representation.num_planes(width(bit_width))
    assert num_planes.dtype == tf.int32
    assert int(num_planes) == expected.num_planes(bit_width)


@every_bit_width
@pytest.mark.parametrize("scale", [1e-8, 0.3, 1.0, 77.7, 1e4])
def test_step_size_and_its_inverse(bit_width, scale):
    scale = np.float32(scale)
    delta = step_size(tf.constant(scale), width(bit_width))
    assert delta.dtype == tf.float32
    np.testing.assert_allclose(
        float(delta), float(scale) / (2**bit_width - 1), rtol=1e-6
    )
    np.testing.assert_allclose(
        float(scale_of(delta, width(bit_width))), float(scale), rtol=1e-6
    )


@both
@every_bit_width
@pytest.mark.parametrize("scale", [1e-8, 0.3, 1.0, 77.7, 1e4])
def test_dequantize_gives_the_levels(representation, expected, bit_width, scale):
    scale = np.float32(scale)
    values = representation.dequantize(
        tf.constant(all_codes(bit_width)), tf.constant(scale), width(bit_width)
    )
    assert values.dtype == tf.float32
    np.testing.assert_allclose(
        values.numpy(), oracle.levels(expected, scale, bit_width), rtol=1e-6, atol=0
    )


@both
@every_bit_width
@pytest.mark.parametrize("scale", [1e-8, 0.3, 1.0, 77.7, 1e4])
def test_quantizing_a_level_gives_its_code(representation, expected, bit_width, scale):
    del expected
    scale, bits = tf.constant(scale, tf.float32), width(bit_width)
    codes = tf.constant(all_codes(bit_width))
    again = representation.quantize(
        representation.dequantize(codes, scale, bits), scale, bits
    )
    assert again.dtype == tf.uint8
    np.testing.assert_array_equal(again.numpy(), codes.numpy())


@both
@SETTINGS
@given(
    weights=strategies.weights(),
    bit_width=strategies.bit_widths,
    fraction=st.sampled_from([0.01, 0.2, 0.77, 1.0, 3.0]),
)
def test_quantize_takes_the_nearest_level(
    representation, expected, weights, bit_width, fraction
):
    """Exactly, except within a thousandth of delta of a tie: either neighbour."""
    scale = np.float32(fraction * (2 * np.max(np.abs(weights)) or 1.0))
    codes = representation.quantize(
        tf.constant(weights), tf.constant(scale), width(bit_width)
    )
    assert codes.dtype == tf.uint8
    assert codes.shape == weights.shape
    codes = codes.numpy()
    assert np.all(codes <= 2**bit_width - 1)
    table = oracle.levels(expected, scale, bit_width)
    best = oracle.nearest_codes(expected, weights, scale, bit_width)
    clear = ~oracle.is_near_tie(expected, weights, scale, bit_width)
    np.testing.assert_array_equal(codes[clear], best[clear])
    excess = np.abs(weights - table[codes]) - np.abs(weights - table[best])
    assert np.all(excess <= 2e-3 * float(scale) / (2**bit_width - 1))


@both
@every_bit_width
def test_quantize_saturates(representation, expected, bit_width):
    del expected
    weights = tf.constant([-1e30, -50.0, 50.0, 1e30])
    codes = representation.quantize(weights, tf.constant(2.0), width(bit_width))
    top = 2**bit_width - 1
    np.testing.assert_array_equal(codes.numpy(), [0, 0, top, top])


@both
@every_bit_width
def test_magnitudes_and_signs_of_every_code(representation, expected, bit_width):
    codes = all_codes(bit_width)
    magnitudes = representation.magnitudes(tf.constant(codes), width(bit_width))
    signs = representation.signs(tf.constant(codes), width(bit_width))
    assert magnitudes.dtype == tf.int32
    assert signs.dtype == tf.float32
    np.testing.assert_array_equal(
        magnitudes.numpy(), oracle.magnitudes(expected, codes, bit_width)
    )
    np.testing.assert_array_equal(
        signs.numpy(), oracle.signs(expected, codes, bit_width)
    )


@every_bit_width
def test_sign_magnitude_is_sign_times_magnitude_and_a_half(bit_width):
    codes, bits = tf.constant(all_codes(bit_width)), width(bit_width)
    levels = SIGN_MAGNITUDE.dequantize(codes, scale_of(tf.constant(1.0), bits), bits)
    magnitudes = tf.cast(SIGN_MAGNITUDE.magnitudes(codes, bits), tf.float32)
    signs = SIGN_MAGNITUDE.signs(codes, bits)
    np.testing.assert_allclose(
        levels.numpy(), (signs * (magnitudes + 0.5)).numpy(), rtol=1e-6
    )
    assert np.max(magnitudes) == 2 ** (bit_width - 1) - 1


@every_bit_width
def test_sign_magnitude_levels_are_symmetric(bit_width):
    codes = tf.constant(all_codes(bit_width))
    levels = SIGN_MAGNITUDE.dequantize(codes, tf.constant(0.7), width(bit_width))
    np.testing.assert_array_equal(levels.numpy(), -levels.numpy()[::-1])
    assert np.all(levels.numpy() != 0)


@every_bit_width
def test_offset_binary_has_an_exact_zero(bit_width):
    zeros, scale, bits = tf.zeros([3, 2]), tf.constant(0.7), width(bit_width)
    codes = OFFSET_BINARY.quantize(zeros, scale, bits)
    np.testing.assert_array_equal(codes.numpy(), np.full([3, 2], 2 ** (bit_width - 1)))
    np.testing.assert_array_equal(
        OFFSET_BINARY.dequantize(codes, scale, bits).numpy(), zeros.numpy()
    )


@SETTINGS
@given(weights=strategies.weights())
def test_one_bit_sign_magnitude_is_plus_or_minus_the_maximum(weights):
    scale = max_scale(tf.constant(weights), width(1), SIGN_MAGNITUDE)
    codes = SIGN_MAGNITUDE.quantize(tf.constant(weights), scale, width(1))
    values = SIGN_MAGNITUDE.dequantize(codes, scale, width(1)).numpy()
    largest = np.max(np.abs(weights))
    if largest == 0:
        # Both levels are as near: the scale of the guard is all that is asked.
        np.testing.assert_allclose(np.abs(values), 0.5, rtol=1e-6)
    else:
        np.testing.assert_allclose(np.abs(values), largest, rtol=1e-6)
        # Zero is a tie; so nearly is a weight far below the largest.
        large = np.abs(weights) > 1e-5 * largest
        np.testing.assert_array_equal(np.sign(values)[large], np.sign(weights)[large])


@SETTINGS
@given(weights=strategies.weights())
def test_one_bit_offset_binary_is_dead(weights):
    """Levels -2 max|W| and 0: only a weight of -max|W| itself (a tie) may live."""
    scale = max_scale(tf.constant(weights), width(1), OFFSET_BINARY)
    codes = OFFSET_BINARY.quantize(tf.constant(weights), scale, width(1))
    values = OFFSET_BINARY.dequantize(codes, scale, width(1)).numpy()
    assert np.all(values <= 0)
    inside = weights > -0.999 * np.max(np.abs(weights))
    assert np.all(values[inside] == 0)


@both
def test_one_trace_serves_every_bit_width(representation, expected):
    traces = []

    @tf.function
    def everything(weights, scale, bit_width):
        traces.append(bit_width)
        codes = representation.quantize(weights, scale, bit_width)
        return (
            codes,
            representation.dequantize(codes, scale, bit_width),
            representation.magnitudes(codes, bit_width),
            representation.signs(codes, bit_width),
            representation.num_planes(bit_width),
        )

    weights = np.linspace(-1.1, 1.2, 301, dtype=np.float32)
    for bit_width in BIT_WIDTHS:
        codes, values, magnitudes, signs, num_planes = everything(
            tf.constant(weights), tf.constant(1.9), width(bit_width)
        )
        codes = codes.numpy()
        scale = np.float32(1.9)
        best = oracle.nearest_codes(expected, weights, scale, bit_width)
        clear = ~oracle.is_near_tie(expected, weights, scale, bit_width)
        assert np.mean(clear) > 0.9
        np.testing.assert_array_equal(codes[clear], best[clear])
        np.testing.assert_allclose(
            values, oracle.levels(expected, scale, bit_width)[codes], rtol=1e-6
        )
        np.testing.assert_array_equal(
            magnitudes, oracle.magnitudes(expected, codes, bit_width)
        )
        np.testing.assert_array_equal(signs, oracle.signs(expected, codes, bit_width))
        assert int(num_planes) == expected.num_planes(bit_width)
    assert len(traces) == 1
