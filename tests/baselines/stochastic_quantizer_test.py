"""FedPAQ's quantizer: unbiased, and its variance that of the closed form.

With u = levels |x| / ||x|| and f its fraction, an entry's error is a unit of
||x|| / levels times -f or 1 - f, so its variance is f (1 - f) units squared.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.baselines import stochastic_quantizer

SIGMAS = 5.0
SOURCES = {
    "gaussian": lambda rng, size: rng.normal(size=size),
    "laplace": lambda rng, size: rng.laplace(size=size),
}
NORMS = {"max": lambda x: np.max(np.abs(x)), "l2": np.linalg.norm}

every_bits = pytest.mark.parametrize("bits", range(2, 9))
every_norm = pytest.mark.parametrize("norm", sorted(NORMS))


def draw(source, size, seed=0):
    rng = np.random.default_rng(seed)
    return SOURCES[source](rng, size).astype(np.float32)


def restore(x, norm, bits, uniform):
    """Values after the way there and back, and their codes."""
    value = stochastic_quantizer.NORMS[norm](tf.constant(x))
    bits = tf.constant(bits)
    codes = stochastic_quantizer.quantize(tf.constant(x), value, bits, uniform)
    restored = stochastic_quantizer.dequantize(codes, value, bits)
    return restored.numpy().astype(np.float64), codes.numpy()


def fractions(x, norm, bits):
    """(f, ||x|| / levels): of each entry, and the unit. float64."""
    x = x.astype(np.float64)
    unit = NORMS[norm](x) / (2 ** (bits - 1) - 1)
    scaled = np.abs(x) / unit
    return scaled - np.floor(scaled), unit


@every_norm
def test_norms_are_numpys(norm):
    x = draw("gaussian", 1000).reshape(10, 100)
    found = stochastic_quantizer.NORMS[norm](tf.constant(x))
    np.testing.assert_allclose(found, NORMS[norm](x.ravel()), rtol=1e-5)


@every_norm
@every_bits
@pytest.mark.parametrize("source", sorted(SOURCES))
def test_variance_is_the_closed_form(source, norm, bits):
    """||x||^2 / levels^2 mean(f (1 - f)), to five standard errors."""
    x = draw(source, 50_000)
    uniform = np.random.default_rng(1).random(x.shape, np.float32)
    restored, _ = restore(x, norm, bits, uniform)
    f, unit = fractions(x, norm, bits)
    variance = f * (1 - f)
    fourth_moment = f**4 * (1 - f) + (1 - f) ** 4 * f
    standard_error = np.sqrt(np.mean(fourth_moment - variance**2) / len(x))
    error = (restored - x) / unit
    assert abs(np.mean(error**2) - np.mean(variance)) < SIGMAS * standard_error
    assert abs(np.mean(error)) < SIGMAS * math.sqrt(np.mean(variance) / len(x))


@every_norm
@every_bits
def test_every_entry_is_unbiased(norm, bits):
    """Its mean over draws, to five standard errors."""
    num_draws = 2_000
    x = draw("gaussian", 64)
    uniform = np.random.default_rng(2).random((num_draws, 64), np.float32)
    norm_value = stochastic_quantizer.NORMS[norm](tf.constant(x))
    repeated = tf.tile(x[np.newaxis], [num_draws, 1])
    codes = stochastic_quantizer.quantize(
        repeated, norm_value, tf.constant(bits), uniform
    )
    restored = stochastic_quantizer.dequantize(codes, norm_value, tf.constant(bits))
    f, unit = fractions(x, norm, bits)
    standard_error = unit * np.sqrt(np.maximum(f * (1 - f), 1e-3) / num_draws)
    bias = np.mean(restored.numpy().astype(np.float64), axis=0) - x
    assert np.all(np.abs(bias) < SIGMAS * standard_error)


@settings(deadline=None, max_examples=80)
@given(
    bits=st.integers(2, 8),
    exponent=st.integers(-30, 30),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    norm=st.sampled_from(sorted(NORMS)),
)
def test_an_entry_goes_to_one_of_its_two_neighbours(bits, exponent, size, seed, norm):
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.normal(size=size), exponent).astype(np.float32)
    restored, codes = restore(x, norm, bits, rng.random(size, np.float32))
    assert codes.dtype == np.uint8
    levels = 2 ** (bits - 1) - 1
    assert np.max(codes) <= 2 * levels < 2**bits
    _, unit = fractions(x, norm, bits)
    assert np.all(np.abs(restored - x) < unit * (1 + 1e-5))
    assert np.all(restored * x >= 0)  # Signs are kept, or the value is zero.


@every_bits
def test_the_largest_magnitude_and_zero_are_exact(bits):
    x = np.array([-3.0, 0.0, 1.0, 3.0, 0.0], np.float32)
    for number in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        uniform = np.full(5, number, np.float32)
        restored, _ = restore(x, "max", bits, uniform)
        np.testing.assert_array_equal(restored[[0, 1, 3, 4]], [-3, 0, 3, 0])


@every_norm
def test_a_tensor_of_zeros_is_restored(norm):
    restored, _ = restore(np.zeros(7, np.float32), norm, 4, np.zeros(7, np.float32))
    np.testing.assert_array_equal(restored, np.zeros(7))


def test_the_l2_norm_of_a_whole_tensor_drowns_it():
    """Why it is not the default: relative error 410 at 2 bits and ResNet-20's size."""
    x = draw("gaussian", 270_000)
    uniform = np.random.default_rng(3).random(x.shape, np.float32)
    relative = {}
    for norm in NORMS:
        restored, _ = restore(x, norm, 2, uniform)
        relative[norm] = np.mean((restored - x) ** 2) / np.mean(x.astype(float) ** 2)
    # sqrt(n) E|x| - 1 for a Gaussian: E|x| = sqrt(2 / pi).
    expected = math.sqrt(2 / math.pi * len(x)) - 1
    assert relative["l2"] == pytest.approx(expected, rel=0.05)
    assert relative["max"] < 3.5
