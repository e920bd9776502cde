"""Group Lasso over the bit planes (Eq. 11-12) and its gradient on codes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from oracles import quantization as oracle
from oracles import strategies
from oracles.strategies import BIT_WIDTHS, SETTINGS

from tff_fedmpq.quantization.group_lasso import code_gradient, penalty
from tff_fedmpq.quantization.representations import OFFSET_BINARY, SIGN_MAGNITUDE

PAIRS = [
    pytest.param(OFFSET_BINARY, oracle.OFFSET_BINARY, id="offset_binary"),
    pytest.param(SIGN_MAGNITUDE, oracle.SIGN_MAGNITUDE, id="sign_magnitude"),
]
both = pytest.mark.parametrize("representation, expected", PAIRS)
every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)


def width(bit_width):
    return tf.constant(bit_width, tf.int32)


@both
@SETTINGS
@given(
    case=strategies.codes(), strength=st.sampled_from([0.0, 1e-8, 1e-3, 0.01, 1.0, 1e4])
)
def test_penalty_and_gradient(representation, expected, case, strength):
    codes, bit_width = case
    value = penalty(representation, tf.constant(codes), width(bit_width))
    assert value.dtype == tf.float32
    assert value.shape == ()
    np.testing.assert_allclose(
        float(value), oracle.penalty(expected, codes, bit_width), rtol=1e-5
    )
    gradient = code_gradient(
        representation, tf.constant(codes), width(bit_width), tf.constant(strength)
    )
    assert gradient.dtype == tf.float32
    assert gradient.shape == codes.shape
    np.testing.assert_allclose(
        gradient.numpy(),
        oracle.code_gradient(expected, codes, bit_width, strength),
        rtol=1e-5,
        atol=0,
    )


@both
@every_bit_width
def test_gradient_moves_as_much_as_the_planes_would(
    representation, expected, bit_width
):
    """To first order: K(b) times the gradient is sum_i 2^i d penalty/dB_i.

    A plane's gradient of h moves the code by eta 2^i h units, a code's
    gradient of g by eta K(b) g units.
    """
    rng = np.random.default_rng(bit_width)
    codes = rng.integers(0, 2**bit_width, size=[6, 5]).astype(np.uint8)
    strength = 0.3
    planes = oracle.plane_penalty_gradients(expected, codes, bit_width)
    per_plane = sum(2.0**i * strength * plane for i, plane in enumerate(planes))
    gradient = code_gradient(
        representation, tf.constant(codes), width(bit_width), tf.constant(strength)
    )
    signs = oracle.signs(expected, codes, bit_width)
    np.testing.assert_allclose(
        oracle.step_gain(bit_width) * gradient.numpy() * signs,
        per_plane + np.zeros(codes.shape),
        rtol=1e-4,
        atol=1e-9,
    )


@both
@every_bit_width
def test_empty_planes_contribute_nothing(representation, expected, bit_width):
    """The smallest magnitude has no ones: no penalty, and no 0/0 gradient."""
    code = expected.code_of(1, 0, bit_width)
    codes = tf.constant(np.full([3, 4], code), tf.uint8)
    assert float(penalty(representation, codes, width(bit_width))) == 0
    gradient = code_gradient(representation, codes, width(bit_width), tf.constant(1.0))
    np.testing.assert_array_equal(gradient.numpy(), np.zeros([3, 4]))


def test_one_bit_sign_magnitude_is_free():
    codes = tf.constant([0, 1, 1, 0], tf.uint8)
    assert float(penalty(SIGN_MAGNITUDE, codes, width(1))) == 0
    gradient = code_gradient(SIGN_MAGNITUDE, codes, width(1), tf.constant(1.0))
    np.testing.assert_array_equal(gradient.numpy(), np.zeros(4))


@pytest.mark.parametrize("bit_width", BIT_WIDTHS[1:])
def test_descent_shrinks_the_magnitude(bit_width):
    """Its sign is the sign of the weight wherever a plane holds a one."""
    codes = np.arange(2**bit_width, dtype=np.uint8)
    gradient = code_gradient(
        SIGN_MAGNITUDE, tf.constant(codes), width(bit_width), tf.constant(0.1)
    ).numpy()
    magnitudes = oracle.magnitudes(oracle.SIGN_MAGNITUDE, codes, bit_width)
    signs = oracle.signs(oracle.SIGN_MAGNITUDE, codes, bit_width)
    np.testing.assert_array_equal(np.sign(gradient), signs * (magnitudes > 0))


@both
def test_one_trace_serves_every_bit_width(representation, expected):
    traces = []

    @tf.function
    def everything(codes, bit_width, strength):
        traces.append(bit_width)
        return (
            penalty(representation, codes, bit_width),
            code_gradient(representation, codes, bit_width, strength),
        )

    for bit_width in BIT_WIDTHS:
        rng = np.random.default_rng(bit_width)
        codes = rng.integers(0, 2**bit_width, size=40).astype(np.uint8)
        value, gradient = everything(
            tf.constant(codes), width(bit_width), tf.constant(0.01)
        )
        np.testing.assert_allclose(
            float(value), oracle.penalty(expected, codes, bit_width), rtol=1e-5
        )
        np.testing.assert_allclose(
            gradient.numpy(),
            oracle.code_gradient(expected, codes, bit_width, 0.01),
            rtol=1e-5,
        )
    assert len(traces) == 1
