"""The range coder: every block is restored, and is as short as the entropy says."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tff_fedmpq.baselines import entropy_coding

LOWEST, HIGHEST = -(2**15), 2**15 - 1


def entropy_bits(symbols):
    """Bits of all symbols at their empirical entropy."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-np.sum(counts * np.log2(counts / symbols.size)))


def check_restored(symbols):
    block = entropy_coding.encode(symbols)
    assert isinstance(block, bytes)
    np.testing.assert_array_equal(entropy_coding.decode(block), symbols)
    return block


@settings(deadline=None, max_examples=150)
@given(
    symbols=hnp.arrays(
        np.int16,
        st.integers(1, 200),
        elements=st.integers(LOWEST, HIGHEST - 1),
        fill=st.integers(-3, 3),
    )
)
def test_symbols_are_restored(symbols):
    check_restored(symbols)


@pytest.mark.parametrize("value", [LOWEST, -1, 0, 5, HIGHEST])
@pytest.mark.parametrize("count", [1, 2, 10_000])
def test_one_symbol_again_and_again(value, count):
    block = check_restored(np.full(count, value, np.int16))
    assert len(block) <= 24  # It says nothing but what, and how often.


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_any_integers_are_taken(dtype):
    check_restored(np.array([3, -2, 0, 3], dtype))


def test_a_rare_symbol_among_many_is_not_lost():
    symbols = np.zeros(300_000, np.int16)
    symbols[1234], symbols[-1] = 7, -9
    check_restored(symbols)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("source", ["normal", "laplace"])
def test_code_is_within_one_percent_of_the_entropy(source, deviation):
    """Beside the table of frequencies, 16 bits per value between the extremes."""
    rng = np.random.default_rng(0)
    draw = getattr(rng, source)
    symbols = np.rint(draw(scale=deviation, size=200_000)).astype(np.int16)
    bits = 8 * len(check_restored(symbols))
    table = 16 * (int(symbols.max()) - int(symbols.min()) + 1)
    assert entropy_bits(symbols) <= bits - table <= 1.01 * entropy_bits(symbols)
    assert bits <= 1.02 * entropy_bits(symbols)


def test_a_code_is_below_its_plain_size_in_bits():
    """Four equally likely symbols take two bits each, not sixteen."""
    symbols = np.random.default_rng(0).integers(-2, 2, 100_000).astype(np.int16)
    bits = 8 * len(entropy_coding.encode(symbols))
    assert bits == pytest.approx(2 * symbols.size, rel=0.002)


def test_the_block_is_the_documented_one():
    """n uint32, smallest int16, size uint16, frequencies uint16[size], words uint32."""
    symbols = np.array([4, 4, 4, -1, 4, 7], np.int16)
    block = entropy_coding.encode(symbols)
    assert np.frombuffer(block, "<u4", 1) == [6]
    assert np.frombuffer(block, "<i2", 1, 4) == [-1]
    assert np.frombuffer(block, "<u2", 1, 6) == [9]
    frequencies = np.frombuffer(block, "<u2", 9, 8)
    np.testing.assert_array_equal(np.flatnonzero(frequencies), [0, 5, 8])
    assert frequencies[5] == pytest.approx(4 * frequencies[0], abs=3)
    assert (len(block) - 8 - 2 * 9) % 4 == 0


def test_the_same_symbols_give_the_same_bytes():
    symbols = np.random.default_rng(0).integers(-9, 9, 1000)
    assert entropy_coding.encode(symbols) == entropy_coding.encode(symbols.copy())


def test_nothing_cannot_be_coded():
    with pytest.raises(ValueError, match="at least one symbol"):
        entropy_coding.encode(np.zeros(0, np.int16))


@pytest.mark.parametrize("symbols", [[40_000], [-40_000], [-32_768, 32_767]])
def test_symbols_out_of_range_are_refused(symbols):
    with pytest.raises(ValueError, match="from -2\\*\\*15 to 2\\*\\*15 - 1"):
        entropy_coding.encode(np.array(symbols))


def test_without_the_library_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match="pip install constriction"):
        entropy_coding.encode(np.array([1, 2]))


@pytest.mark.parametrize("spread", [0.3, 3.0, 300.0])
@pytest.mark.parametrize("tail", ["gaussian", "cauchy"])
def test_symbol_bits_bound_the_coded_size(spread, tail):
    """The block is its header, 16 bits a value of the alphabet, and the symbols."""
    rng = np.random.default_rng(7)
    draws = (
        rng.normal(size=50_000) if tail == "gaussian" else rng.standard_cauchy(50_000)
    )
    symbols = np.rint(np.clip(spread * draws, -30_000, 30_000)).astype(np.int16)
    alphabet = int(symbols.max()) - int(symbols.min()) + 1
    payload = 8 * len(entropy_coding.encode(symbols)) - 64 - 16 * max(alphabet, 2)
    bound = float(entropy_coding.symbol_bits(tf.constant(symbols, tf.float32)))
    # Two words of 32 bits at the end, and the rounding of 24-bit probabilities.
    assert entropy_bits(symbols) * 0.9999 <= bound
    assert payload <= 1.001 * bound + 96
    assert bound <= 1.001 * payload + 96


def histogram_bits(codes, bit_width):
    """Bits of codes and of 16-bit frequencies, at the best width of the bins."""
    sizes = []
    for bin_bits in range(bit_width + 1):
        in_bin = bin_bits * codes.size
        table = 16 * 2 ** (bit_width - bin_bits)
        sizes.append(entropy_bits(codes >> bin_bits) + in_bin + table)
    return min(sizes)


def check_codes_restored(codes, bit_width):
    block = entropy_coding.encode_codes(codes, bit_width)
    restored = entropy_coding.decode_codes(block, bit_width, codes.size)
    assert isinstance(block, bytes) and restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, codes)
    return block


@settings(deadline=None, max_examples=150)
@given(data=st.data(), bit_width=st.integers(1, 8), count=st.integers(1, 3000))
def test_codes_are_restored_and_about_as_short_as_their_entropy(data, bit_width, count):
    top = 2**bit_width - 1
    codes = data.draw(
        hnp.arrays(
            np.uint8,
            count,
            elements=st.integers(0, top),
            fill=st.integers(0, top),
        )
    )
    block = check_codes_restored(codes, bit_width)
    # k, and the coder's last words; 16 bits of a frequency are exact to 2**-17.
    assert 8 * len(block) <= 1.001 * histogram_bits(codes, bit_width) + 8 + 64
    packed_bytes = -(-codes.size * bit_width // 8)
    assert len(block) <= packed_bytes + 8 + 1e-5 * codes.size


@pytest.mark.parametrize("bit_width", [2, 4, 6, 8])
@pytest.mark.parametrize("count", [500, 2304, 36_864])
def test_gaussian_codes_are_shorter_than_packed(bit_width, count):
    """Also where a histogram of every value would cost more than it saves."""
    draws = np.random.default_rng(0).normal(0.5, 0.15, count)
    top = 2**bit_width - 1
    codes = np.rint(np.clip(draws, 0, 1) * top).astype(np.uint8)
    block = check_codes_restored(codes, bit_width)
    assert len(block) < 0.97 * codes.size * bit_width / 8


def test_the_block_of_codes_is_the_documented_one():
    """k uint8, frequencies uint16, words uint32."""
    codes = np.repeat(np.array([0, 1, 6, 7], np.uint8), [100, 100, 400, 400])
    block = check_codes_restored(codes, 3)
    assert block[0] == 1  # Each is as likely as its neighbour: bins of two suffice.
    frequencies = np.frombuffer(block, "<u2", 4, 1)
    assert frequencies[[1, 2]].tolist() == [0, 0]
    assert frequencies[3] == pytest.approx(4 * frequencies[0], abs=3)
    assert (len(block) - 1 - 2 * 4) % 4 == 0


def test_codes_are_checked():
    with pytest.raises(TypeError, match="uint8"):
        entropy_coding.encode_codes(np.zeros(3, np.int32), 4)
    with pytest.raises(ValueError, match="below 4; found 4"):
        entropy_coding.encode_codes(np.array([4], np.uint8), 2)
    with pytest.raises(ValueError, match="at least one code"):
        entropy_coding.encode_codes(np.zeros(0, np.uint8), 2)
    with pytest.raises(ValueError):
        entropy_coding.encode_codes(np.zeros(1, np.uint8), 9)
