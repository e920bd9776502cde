"""Activations of k bits: values, number of levels, straight-through gradient."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.quantization.activations import CLIP_VALUE, quantized_relu

every_k = pytest.mark.parametrize("bits", range(1, 9))
every_dtype = pytest.mark.parametrize(
    "dtype", [tf.float32, tf.bfloat16, tf.float16, tf.float64], ids=lambda d: d.name
)
# Of the result, relative to the clip value: the dtype's precision, and for the 16 bit
# ones that of the step size, whose relative error 2**-9 counts in full at the top.
TOLERANCE = {tf.float64: 1e-9, tf.float32: 1e-6, tf.float16: 2e-3, tf.bfloat16: 1e-2}


def as_float64(tensor):
    return tf.cast(tensor, tf.float64).numpy()


def inputs(dtype, clip_value=CLIP_VALUE):
    """Values below, in and above the range, as the dtype holds them."""
    rng = np.random.default_rng(3)
    edges = [-np.inf, -100.0, -1e-3, 0.0, clip_value, 1.1 * clip_value, 100.0, np.inf]
    spread = rng.uniform(-0.5 * clip_value, 1.5 * clip_value, size=600)
    return tf.cast(tf.constant(np.concatenate([edges, spread])), dtype)


def expected_values(x, bits, clip_value):
    """r * round(clip(x, 0, c) / r) with r = c / (2^k - 1), in float64."""
    step = clip_value / (2**bits - 1)
    return step * np.rint(np.clip(x, 0, clip_value) / step)


def is_near_tie(x, bits, clip_value, distance):
    """Where x is so near the middle of two levels that rounding may go either way."""
    position = np.clip(x, 0, clip_value) / (clip_value / (2**bits - 1))
    return np.abs(position - np.floor(position) - 0.5) < distance


@every_k
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("clip_value", [CLIP_VALUE, 1.0, 2.5])
def test_values(bits, dtype, clip_value):
    x = inputs(dtype, clip_value)
    result = quantized_relu(x, bits, clip_value)
    assert result.dtype == dtype
    assert result.shape == x.shape
    clear = ~is_near_tie(as_float64(x), bits, clip_value, 1e-4)
    assert np.mean(clear) > 0.9
    np.testing.assert_allclose(
        as_float64(result)[clear],
        expected_values(as_float64(x), bits, clip_value)[clear],
        rtol=0,
        atol=TOLERANCE[dtype] * clip_value,
    )


@every_k
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=lambda d: d.name)
def test_values_in_16_bits(bits, dtype):
    """Within a step where the step is finer than the dtype, else the same level."""
    x = inputs(dtype)
    result = quantized_relu(x, bits)
    assert result.dtype == dtype
    error = np.abs(as_float64(result) - expected_values(as_float64(x), bits, 6.0))
    one_step = 6.0 / (2**bits - 1)
    assert np.max(error) <= one_step + TOLERANCE[dtype] * 6.0
    # The position x / r has that many units of the dtype's precision as error.
    clear = ~is_near_tie(as_float64(x), bits, 6.0, 2**bits * TOLERANCE[dtype])
    assert np.all(error[clear] <= TOLERANCE[dtype] * 6.0)


@every_k
@every_dtype
def test_at_most_two_to_the_k_levels_and_zero_is_one(bits, dtype):
    x = tf.cast(tf.linspace(-1.0, 7.0, 5000), dtype)
    levels = np.unique(as_float64(quantized_relu(x, bits)))
    assert len(levels) <= 2**bits
    if dtype in (tf.float32, tf.float64):  # The others skip some of 128 and more.
        assert len(levels) == 2**bits
    assert levels[0] == 0
    np.testing.assert_allclose(levels[-1], 6.0, rtol=TOLERANCE[dtype])


@every_k
@every_dtype
@pytest.mark.parametrize("clip_value", [CLIP_VALUE, 2.5])
def test_gradient_passes_inside_the_range(bits, dtype, clip_value):
    """dq/dx = 1 where 0 < x < c, else 0; at 0 and c as for ReLU6: 0."""
    x = inputs(dtype, clip_value)
    upstream = tf.cast(np.random.default_rng(5).normal(size=x.shape), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        result = quantized_relu(x, bits, clip_value)
    gradient = tape.gradient(result, x, output_gradients=upstream)
    assert gradient.dtype == dtype
    inside = (as_float64(x) > 0) & (as_float64(x) < clip_value)
    assert 0.3 < np.mean(inside) < 0.7
    np.testing.assert_array_equal(as_float64(gradient), as_float64(upstream) * inside)


@every_dtype
def test_without_bits_it_is_relu(dtype):
    x = inputs(dtype)
    result = quantized_relu(x, None)
    assert result.dtype == dtype
    np.testing.assert_array_equal(as_float64(result), np.maximum(as_float64(x), 0))


@pytest.mark.parametrize("bits", [2, 8])
def test_levels_are_fixed_points(bits):
    once = quantized_relu(inputs(tf.float32), bits)
    np.testing.assert_allclose(quantized_relu(once, bits), once, atol=1e-6)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.5])
def test_wrong_bits(bits):
    with pytest.raises(ValueError, match="from 1 to 8"):
        quantized_relu(tf.constant([1.0]), bits)
