"""The integer update of Eq. 6-10 in its closed form.

Elements whose log2(eta |g|) is within 1e-4 of a half are left out: there the
exponent may go either way in float32.  Elsewhere the step t is exact, since a
power of two times K(b) < 2^15 has no rounding, and U - t is so to 2^-16 of a unit;
elements nearer to an integer than that are left out too.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import quantization as oracle
from oracles import strategies
from oracles.strategies import BIT_WIDTHS, SETTINGS

from tff_fedmpq.quantization.code_updates import (
    integer_update,
    power_of_two_above,
    step_gain,
)

every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)


def width(bit_width):
    return tf.constant(bit_width, tf.int32)


def update(codes, gradients, bit_width, learning_rate, uniform):
    """The update under test on NumPy arrays: uint8 array."""
    result = integer_update(
        tf.constant(codes),
        tf.constant(gradients, tf.float32),
        width(bit_width),
        tf.constant(learning_rate, tf.float32),
        tf.constant(uniform, tf.float32),
    )
    assert result.dtype == tf.uint8
    assert result.shape == np.shape(codes)
    return result.numpy()


def gradients_around(rng, shape, bit_width, learning_rate):
    """Gradients whose steps run from 2^-12 units to past the whole range."""
    logs = rng.uniform(-12, bit_width + 2, size=shape) - np.log2(
        float(oracle.step_gain(bit_width))
    )
    sizes = 2.0**logs / float(learning_rate)
    return (rng.choice([-1.0, 1.0], size=shape) * sizes).astype(np.float32)


@every_bit_width
def test_step_gain(bit_width):
    gain = step_gain(width(bit_width))
    assert gain.dtype == tf.float32
    assert float(gain) == oracle.step_gain(bit_width) == (4**bit_width - 1) // 3


@SETTINGS
@given(
    seed=strategies.seeds,
    learning_rate=st.sampled_from([1e-6, 0.003, 0.1, 1.0, 3.7, 1e4]),
    bit_width=strategies.bit_widths,
)
def test_closed_form_is_the_sum_over_the_planes(seed, learning_rate, bit_width):
    """The two readings of the equations against each other, exactly."""
    rng = np.random.default_rng(seed)
    gradients = gradients_around(rng, 300, bit_width, learning_rate)
    gradients[:5] = 0
    safe = ~oracle.is_near_half(gradients, learning_rate)
    assert np.mean(safe) > 0.9
    for gradient in gradients[safe]:
        step = oracle.closed_form_step(gradient, learning_rate, bit_width)
        whole, chance = oracle.per_plane_step(gradient, learning_rate, bit_width)
        assert whole == math.floor(step)
        assert chance == step - math.floor(step)
        assert 0 <= chance < Fraction(2, 3)


@SETTINGS
@given(
    seed=strategies.seeds,
    shape=strategies.shapes,
    learning_rate=st.sampled_from([1e-6, 0.003, 0.1, 1.0, 3.7, 1e4]),
    bit_width=strategies.bit_widths,
)
def test_update(seed, shape, learning_rate, bit_width):
    rng = np.random.default_rng(seed)
    learning_rate = np.float32(learning_rate)
    codes = rng.integers(0, 2**bit_width, size=shape).astype(np.uint8)
    gradients = gradients_around(rng, shape, bit_width, learning_rate)
    gradients = np.where(rng.random(shape) < 0.1, 0, gradients).astype(np.float32)
    uniform = rng.random(shape, np.float32)
    codes, gradients = np.asarray(codes), np.asarray(gradients)
    uniform = np.asarray(uniform)
    result = update(codes, gradients, bit_width, learning_rate, uniform)
    want = oracle.integer_update(codes, gradients, bit_width, learning_rate, uniform)
    safe = ~oracle.is_near_half(gradients, learning_rate)
    safe &= ~oracle.is_near_whole_step(gradients, bit_width, learning_rate, uniform)
    np.testing.assert_array_equal(result[safe], want[safe])
    assert np.all(result <= 2**bit_width - 1)


@every_bit_width
@pytest.mark.parametrize("exponent", range(-14, 9))
def test_powers_of_two_are_exact(bit_width, exponent):
    """S(x) = x here: the step is 2^exponent K(b) units, to 2^-16 of a unit.

    A step that comes out a hair below an integer would lose a whole unit.
    """
    size = Fraction(2) ** exponent * oracle.step_gain(bit_width)
    chance = float(size - math.floor(size))
    margin = oracle.ROUNDING_ERROR
    for sign, start, tie in ((1, 2**bit_width - 1, chance), (-1, 0, 1 - chance)):
        # Straddling the place where one more unit is due.
        uniform = np.array([margin, tie - margin, tie + margin, 1 - margin])
        uniform = np.clip(uniform, 0, 1 - margin).astype(np.float32)
        codes = np.full(4, start, np.uint8)
        gradients = np.full(4, sign * 2.0**exponent, np.float32)
        want = oracle.integer_update(codes, gradients, bit_width, 1.0, uniform)
        np.testing.assert_array_equal(
            update(codes, gradients, bit_width, 1.0, uniform), want
        )


@every_bit_width
def test_no_gradient_no_step(bit_width):
    """Not even for the smallest uniform number there is."""
    codes = np.arange(2**bit_width, dtype=np.uint8)
    for zero in (0.0, -0.0):
        gradients = np.full(codes.shape, zero, np.float32)
        uniform = np.zeros(codes.shape, np.float32)
        np.testing.assert_array_equal(
            update(codes, gradients, bit_width, 0.1, uniform), codes
        )


@every_bit_width
@pytest.mark.parametrize("size", [1e3, 1e20, 1e37, 3e38])
def test_huge_gradients_saturate(bit_width, size):
    codes = np.arange(2**bit_width, dtype=np.uint8)
    gradients = np.full(codes.shape, size, np.float32)
    uniform = np.full(codes.shape, 0.5, np.float32)
    down = update(codes, gradients, bit_width, 10.0, uniform)
    up = update(codes, -gradients, bit_width, 10.0, uniform)
    np.testing.assert_array_equal(down, np.zeros_like(codes))
    np.testing.assert_array_equal(up, np.full_like(codes, 2**bit_width - 1))


@every_bit_width
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-30, 1e-15])
def test_tiny_gradients_hardly_ever_step(bit_width, size):
    codes = np.arange(2**bit_width, dtype=np.uint8)
    gradients = np.full(codes.shape, size, np.float32)
    uniform = np.full(codes.shape, 1e-6, np.float32)
    for sign in (-1, 1):
        np.testing.assert_array_equal(
            update(codes, sign * gradients, bit_width, 0.1, uniform), codes
        )


@SETTINGS
@given(
    seed=strategies.seeds,
    learning_rate=st.sampled_from([0.003, 0.1, 1.0, 3.7]),
    bit_width=st.sampled_from(BIT_WIDTHS[1:]),
    down=st.booleans(),
)
def test_expected_step_is_that_of_the_planes(seed, learning_rate, bit_width, down):
    """Over uniform numbers one per stratum of 1/2048 the mean is exact."""
    rng = np.random.default_rng(seed)
    strata = 2048
    log = rng.uniform(-9, bit_width - 1) - math.log2(oracle.step_gain(bit_width))
    gradient = np.float32(2.0**log / learning_rate)
    assume(not oracle.is_near_half(gradient, learning_rate))
    whole, chance = oracle.per_plane_step(gradient, learning_rate, bit_width)
    # Beyond the range the step is clipped, which is tested above.
    assume(whole + chance <= 2**bit_width - 1)
    start = 2**bit_width - 1 if down else 0
    codes = np.full(strata, start, np.uint8)
    gradients = np.full(strata, gradient if down else -gradient, np.float32)
    uniform = (np.arange(strata) + 0.5) / strata
    result = update(codes, gradients, bit_width, learning_rate, uniform)
    moved = np.abs(result.astype(np.int64) - start)
    assert abs(np.mean(moved) - float(whole + chance)) <= 0.5 / strata


@pytest.mark.parametrize("bit_width, size", [(2, 0.06), (4, 0.011), (8, 3e-5)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_mean_of_random_steps(bit_width, size, sign):
    """Over 100,000 draws (seeds fixed), within five standard errors."""
    draws = 100_000
    start = 2 ** (bit_width - 1)
    step = oracle.closed_form_step(size, 1.0, bit_width)
    chance = float(step - math.floor(step))
    assert 0.1 < chance < 0.9
    uniform = tf.random.stateless_uniform([draws], seed=[bit_width, 7])
    result = update(
        np.full(draws, start, np.uint8),
        np.full(draws, sign * size, np.float32),
        bit_width,
        1.0,
        uniform.numpy(),
    )
    moved = -sign * (result.astype(np.int64) - start)
    assert set(np.unique(moved)) == {math.floor(step), math.floor(step) + 1}
    standard_error = math.sqrt(chance * (1 - chance) / draws)
    assert abs(np.mean(moved) - float(step)) < 5 * standard_error


def test_one_trace_serves_every_bit_width():
    traces = []

    @tf.function
    def updated(codes, gradients, bit_width, learning_rate, uniform):
        traces.append(bit_width)
        return integer_update(codes, gradients, bit_width, learning_rate, uniform)

    for bit_width in BIT_WIDTHS:
        rng = np.random.default_rng(bit_width)
        codes = rng.integers(0, 2**bit_width, size=200).astype(np.uint8)
        gradients = gradients_around(rng, 200, bit_width, 0.1)
        uniform = rng.random(200, np.float32)
        result = updated(
            tf.constant(codes),
            tf.constant(gradients),
            width(bit_width),
            tf.constant(0.1),
            tf.constant(uniform),
        )
        rate = np.float32(0.1)
        want = oracle.integer_update(codes, gradients, bit_width, rate, uniform)
        safe = ~oracle.is_near_half(gradients, rate)
        safe &= ~oracle.is_near_whole_step(gradients, bit_width, rate, uniform)
        np.testing.assert_array_equal(result.numpy()[safe], want[safe])
    assert len(traces) == 1


@SETTINGS
@given(
    mantissa=st.floats(1, 2, exclude_max=True, width=32),
    exponent=st.integers(-126, 126),
)
def test_the_ceiling_of_equation_6(mantissa, exponent):
    """2^ceil(log2 x): x itself if it is a power of two, else the next one above."""
    x = np.float32(mantissa) * np.float32(2.0) ** np.float32(exponent)
    want = 2.0 ** (exponent if mantissa == 1 else exponent + 1)
    found = power_of_two_above(tf.constant([x, -x]))
    np.testing.assert_array_equal(found, [want, -want])


def test_the_ceiling_of_what_is_no_number():
    found = power_of_two_above(
        tf.constant([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan])
    )
    np.testing.assert_array_equal(found, [0, 0, np.inf, -np.inf, np.inf, np.inf])


@every_bit_width
def test_steps_rounded_up(bit_width):
    """A gradient just above a power of two takes twice the step of that power."""
    power = 2.0 ** -(2 * bit_width)
    codes = np.full(4, 2**bit_width - 1, np.uint8)
    uniform = np.float32([0.0, 0.3, 0.6, 0.9])
    found = integer_update(
        tf.constant(codes),
        tf.constant(np.full(4, 1.01 * power, np.float32)),
        width(bit_width),
        1.0,
        tf.constant(uniform),
        "up",
    )
    moved = np.floor(uniform - 2 * power * float(oracle.step_gain(bit_width)))
    np.testing.assert_array_equal(found, codes + moved)


@pytest.mark.parametrize(
    "codes, gradients, uniform",
    [
        pytest.param([1.0, 2.0], [0.1, 0.1], [0.5, 0.5], id="float codes"),
        pytest.param(np.uint8([1, 2]), [0.1, 0.1, 0.1], [0.5, 0.5], id="gradients"),
        pytest.param(np.uint8([1, 2]), [0.1, 0.1], [0.5, 0.5, 0.5], id="uniform"),
    ],
)
def test_wrong_dtypes_and_shapes_are_refused(codes, gradients, uniform):
    with pytest.raises((TypeError, ValueError)):
        integer_update(
            tf.constant(codes),
            tf.constant(gradients),
            width(2),
            tf.constant(0.1),
            tf.constant(uniform),
        )
