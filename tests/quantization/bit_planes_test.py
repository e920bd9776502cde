"""Densities of the bit planes and MSB pruning (Eq. 13)."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import quantization as oracle
from oracles import strategies
from oracles.strategies import BIT_WIDTHS, SETTINGS

from tff_fedmpq.quantization.bit_planes import (
    msb_density,
    plane_densities,
    prune_msb,
)
from tff_fedmpq.quantization.representations import (
    OFFSET_BINARY,
    SIGN_MAGNITUDE,
    step_size,
)
from tff_fedmpq.quantization.scales import max_scale

PAIRS = [
    pytest.param(OFFSET_BINARY, oracle.OFFSET_BINARY, id="offset_binary"),
    pytest.param(SIGN_MAGNITUDE, oracle.SIGN_MAGNITUDE, id="sign_magnitude"),
]
both = pytest.mark.parametrize("representation, expected", PAIRS)
every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)
saturating_or_not = pytest.mark.parametrize(
    "saturate", [True, False], ids=["saturate", "literal"]
)


def width(bit_width):
    return tf.constant(bit_width, tf.int32)


def skewed_codes(rng, bit_width, size):
    """Codes whose magnitudes are mostly small, so that pruning has work."""
    middle = 2.0 ** (bit_width - 1) - 0.5
    values = np.rint(middle + 2.0 ** (bit_width - 4) * rng.standard_t(3, size=size))
    return np.clip(values, 0, 2**bit_width - 1).astype(np.uint8)


@both
@SETTINGS
@given(case=strategies.codes())
def test_densities(representation, expected, case):
    codes, bit_width = case
    densities = plane_densities(representation, tf.constant(codes), width(bit_width))
    assert densities.dtype == tf.float32
    assert densities.shape == (8,)
    np.testing.assert_allclose(
        densities, oracle.plane_densities(expected, codes, bit_width), rtol=1e-6
    )
    top = msb_density(representation, tf.constant(codes), width(bit_width))
    assert top.dtype == tf.float32
    assert top.shape == ()
    np.testing.assert_allclose(
        float(top), oracle.msb_density(expected, codes, bit_width), rtol=1e-6
    )
    # The planes hold the magnitudes: their weighted densities are the mean.
    mean = np.mean(oracle.magnitudes(expected, codes, bit_width))
    np.testing.assert_allclose(
        np.sum(densities.numpy() * 2.0 ** np.arange(8)), mean, rtol=1e-5
    )


def test_one_bit_sign_magnitude_has_no_plane():
    codes = tf.constant([0, 1, 1], tf.uint8)
    densities = plane_densities(SIGN_MAGNITUDE, codes, width(1))
    np.testing.assert_array_equal(densities.numpy(), np.zeros(8))
    assert float(msb_density(SIGN_MAGNITUDE, codes, width(1))) == 1.0


@both
@saturating_or_not
@SETTINGS
@given(
    case=strategies.codes(),
    scale=strategies.magnitudes,
    position=st.floats(min_value=-0.1, max_value=1.0),
)
def test_pruning(representation, expected, saturate, case, scale, position):
    codes, bit_width = case
    scale = np.float32(scale)
    # Between two possible densities: no comparison hangs on a rounding.
    threshold = (np.floor(position * codes.size) + 0.5) / codes.size
    new_codes, new_scale, new_width = prune_msb(
        representation,
        tf.constant(codes),
        tf.constant(scale),
        width(bit_width),
        threshold,
        saturate=saturate,
    )
    want_codes, want_scale, want_width = oracle.prune_msb(
        expected, codes, scale, bit_width, threshold, saturate
    )
    assert new_codes.dtype == tf.uint8
    assert new_codes.shape == codes.shape
    assert new_scale.dtype == tf.float32
    assert new_width.dtype == tf.int32
    assert int(new_width) == want_width
    np.testing.assert_array_equal(new_codes.numpy(), want_codes)
    np.testing.assert_allclose(float(new_scale), want_scale, rtol=1e-5)


@both
@saturating_or_not
@pytest.mark.parametrize("bit_width", BIT_WIDTHS[1:])
def test_pruning_happens_and_repeats(representation, expected, saturate, bit_width):
    """All weights next to zero: down to the bits that they need."""
    smallest = [2 ** (bit_width - 1) - 1, 2 ** (bit_width - 1)] * 20
    if representation is OFFSET_BINARY:
        # Codes 0 and 1 have all planes but the lowest empty.
        smallest = [0, 1] * 20
    _, _, new_width = prune_msb(
        representation,
        tf.constant(smallest, tf.uint8),
        tf.constant(1.0),
        width(bit_width),
        0.03,
        saturate=saturate,
    )
    want = oracle.prune_msb(expected, smallest, 1.0, bit_width, 0.03, saturate)[2]
    assert int(new_width) == want
    if representation is SIGN_MAGNITUDE or not saturate:
        assert want == 1


@both
@SETTINGS
@given(seed=strategies.seeds, threshold=st.sampled_from([0.01, 0.033, 0.1, 0.6]))
@every_bit_width
def test_pruning_keeps_delta_and_the_weights_in_range(
    representation, expected, bit_width, seed, threshold
):
    codes = skewed_codes(np.random.default_rng(seed), bit_width, 99)
    scale, bits = tf.constant(0.37), width(bit_width)
    new_codes, new_scale, new_bits = prune_msb(
        representation, tf.constant(codes), scale, bits, threshold
    )
    delta = float(step_size(scale, bits))
    np.testing.assert_allclose(float(step_size(new_scale, new_bits)), delta, rtol=1e-5)
    before = representation.dequantize(tf.constant(codes), scale, bits).numpy()
    after = representation.dequantize(new_codes, new_scale, new_bits).numpy()
    levels = oracle.levels(expected, float(new_scale), int(new_bits))
    slack = 1e-3 * delta
    inside = (before >= levels[0] - slack) & (before <= levels[-1] + slack)
    np.testing.assert_allclose(after[inside], before[inside], rtol=1e-5, atol=0)
    # The others stop at the nearest end of the range.
    ends = np.clip(before, levels[0], levels[-1])
    np.testing.assert_allclose(after, ends, rtol=1e-5, atol=0)


@both
@saturating_or_not
@SETTINGS
@given(case=strategies.codes(), threshold=st.sampled_from([0.015, 0.133, 0.61]))
def test_what_is_pruned_needs_no_more_pruning(
    representation, expected, saturate, case, threshold
):
    del expected
    codes, bit_width = case
    once = prune_msb(
        representation,
        tf.constant(codes),
        tf.constant(1.0),
        width(bit_width),
        threshold,
        saturate=saturate,
    )
    assume(int(once[2]) < bit_width)
    twice = prune_msb(representation, *once, threshold, saturate=saturate)
    for left, right in zip(once, twice):
        np.testing.assert_array_equal(left.numpy(), right.numpy())


@pytest.mark.parametrize("ones, want", [(15, 2), (16, 2), (17, 3)])
def test_threshold_is_inclusive(ones, want):
    """16 of 64 is 0.25 exactly; the plane below the top one is full."""
    codes = np.full(64, 4 + 1, np.uint8)
    codes[:ones] = 4 + 3
    _, _, bit_width = prune_msb(
        SIGN_MAGNITUDE, tf.constant(codes), tf.constant(1.0), width(3), 0.25
    )
    assert int(bit_width) == want


@both
@every_bit_width
def test_extreme_thresholds(representation, expected, bit_width):
    del expected
    codes = tf.constant(
        np.random.default_rng(1).integers(0, 2**bit_width, 50), tf.uint8
    )
    scale, bits = tf.constant(2.0), width(bit_width)
    assert int(prune_msb(representation, codes, scale, bits, 1.0)[2]) == 1
    same_codes, same_scale, same_bits = prune_msb(
        representation, codes, scale, bits, -1.0
    )
    np.testing.assert_array_equal(same_codes.numpy(), codes.numpy())
    assert float(same_scale) == 2.0
    assert int(same_bits) == bit_width


def test_the_top_plane_is_empty_only_under_sign_magnitude():
    """Offset binary's top plane is the sign: half full, whatever the weights."""
    weights = tf.constant(np.random.default_rng(2).normal(size=20_000), tf.float32)
    bits = width(8)
    densities = []
    for representation in (OFFSET_BINARY, SIGN_MAGNITUDE):
        scale = max_scale(weights, bits, representation)
        codes = representation.quantize(weights, scale, bits)
        densities.append(float(msb_density(representation, codes, bits)))
    assert 0.44 < densities[0] < 0.56
    assert densities[1] < 0.15


@both
@saturating_or_not
def test_one_trace_serves_every_bit_width(representation, expected, saturate):
    traces = []

    @tf.function
    def everything(codes, scale, bit_width):
        traces.append(bit_width)
        pruned = prune_msb(
            representation, codes, scale, bit_width, 0.105, saturate=saturate
        )
        return (*pruned, plane_densities(representation, codes, bit_width))

    widths = []
    for bit_width in BIT_WIDTHS:
        codes = skewed_codes(np.random.default_rng(bit_width), bit_width, 100)
        new_codes, _, new_width, densities = everything(
            tf.constant(codes), tf.constant(1.0), width(bit_width)
        )
        want_codes, _, want_width = oracle.prune_msb(
            expected, codes, 1.0, bit_width, 0.105, saturate
        )
        np.testing.assert_array_equal(new_codes.numpy(), want_codes)
        assert int(new_width) == want_width
        np.testing.assert_allclose(
            densities, oracle.plane_densities(expected, codes, bit_width), rtol=1e-6
        )
        widths.append(want_width)
    assert len(traces) == 1
    if representation is SIGN_MAGNITUDE:
        assert widths != list(BIT_WIDTHS), "no example was pruned"


@pytest.mark.faults
def test_densities_of_more_codes_than_a_float32_counts():
    codes = tf.ones([2**24 + 2**20], tf.uint8)
    densities = plane_densities(OFFSET_BINARY, codes, width(1))
    np.testing.assert_allclose(densities, [1, 0, 0, 0, 0, 0, 0, 0], rtol=1e-6)
