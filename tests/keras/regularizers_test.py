"""Group Lasso as a Keras loss: its value, and its gradient on the codes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle
from oracles.strategies import BIT_WIDTHS

from tff_fedmpq.keras import QuantDense
from tff_fedmpq.keras.regularizers import bit_plane_lasso

PAIRS = [
    pytest.param("offset_binary", oracle.OFFSET_BINARY, id="offset_binary"),
    pytest.param("sign_magnitude", oracle.SIGN_MAGNITUDE, id="sign_magnitude"),
]
both = pytest.mark.parametrize("name, expected", PAIRS)


def make_layer(name, bit_width, **kwargs):
    """A layer of [6, 5] codes, most of them in the middle of their range."""
    layer = QuantDense(
        5, use_bias=False, bit_width=bit_width, representation=name, **kwargs
    )
    layer.build([None, 6])
    rng = np.random.default_rng(bit_width)
    middle = (2**bit_width - 1) / 2
    codes = np.rint(middle + 2.0 ** (bit_width - 2) * rng.normal(size=[6, 5]))
    codes = np.clip(codes, 0, 2**bit_width - 1).astype(np.uint8)
    layer.quantized_kernel.codes.assign(codes)
    return layer, codes


@both
@pytest.mark.parametrize("bit_width", BIT_WIDTHS)
def test_value_and_gradient(name, expected, bit_width):
    layer, codes = make_layer(name, bit_width)
    kernel = layer.quantized_kernel
    with tf.GradientTape() as tape:
        loss = bit_plane_lasso(kernel, 0.3)
    assert loss.dtype == tf.float32
    assert loss.shape == ()
    np.testing.assert_allclose(
        float(loss), 0.3 * oracle.penalty(expected, codes, bit_width), rtol=1e-5
    )
    gradient = tape.gradient(loss, kernel.codes)
    assert gradient.dtype == tf.float32
    np.testing.assert_allclose(
        gradient, oracle.code_gradient(expected, codes, bit_width, 0.3), rtol=1e-5
    )


@both
def test_gradient_is_scaled_by_what_comes_from_above(name, expected):
    layer, codes = make_layer(name, 5)
    with tf.GradientTape() as tape:
        loss = -7.0 * bit_plane_lasso(layer.quantized_kernel, 0.3)
    np.testing.assert_allclose(
        tape.gradient(loss, layer.quantized_kernel.codes),
        -7.0 * oracle.code_gradient(expected, codes, 5, 0.3),
        rtol=1e-5,
    )


@both
def test_adds_to_the_loss_of_the_layer(name, expected):
    """One gradient from the output by Eq. 5, one from the Lasso; both arrive."""
    layer, codes = make_layer(name, 4, lasso_strength=0.02)
    kernel = layer.quantized_kernel
    x = np.random.default_rng(0).normal(size=[3, 6]).astype(np.float32)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x)) + tf.add_n(layer.losses)
        return tape.gradient(loss, kernel.codes)

    task = float(kernel.scale) / 15 * np.sum(x, axis=0)[:, np.newaxis]
    lasso = oracle.code_gradient(expected, codes, 4, 0.02)
    np.testing.assert_allclose(gradients(), task + lasso, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        float(tf.add_n(layer.losses)),
        0.02 * oracle.penalty(expected, codes, 4),
        rtol=1e-5,
    )


def test_follows_the_bit_width_in_one_trace():
    layer, _ = make_layer("sign_magnitude", 8)
    kernel = layer.quantized_kernel
    penalty = tf.function(lambda: bit_plane_lasso(kernel, 1.0))
    for bit_width in (8, 3, 1):
        kernel.set_bit_width(bit_width)
        np.testing.assert_allclose(
            float(penalty()),
            oracle.penalty(oracle.SIGN_MAGNITUDE, kernel.codes.numpy(), bit_width),
            rtol=1e-5,
        )
    assert penalty.experimental_get_tracing_count() == 1


def test_without_strength_there_is_no_loss():
    layer, _ = make_layer("sign_magnitude", 4, lasso_strength=0.0)
    assert layer.losses == []
