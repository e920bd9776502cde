"""The range coder: every block is restored, and is as short as the entropy says."""

from __future__ import annotations

import binascii
import struct
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
    """n uint32, smallest int16, size uint16, frequencies uint16[size], words, CRC."""
    symbols = np.array([4, 4, 4, -1, 4, 7], np.int16)
    block = entropy_coding.encode(symbols)
    assert np.frombuffer(block, "<u4", 1) == [6]
    assert np.frombuffer(block, "<i2", 1, 4) == [-1]
    assert np.frombuffer(block, "<u2", 1, 6) == [9]
    frequencies = np.frombuffer(block, "<u2", 9, 8)
    np.testing.assert_array_equal(np.flatnonzero(frequencies), [0, 5, 8])
    assert frequencies[5] == pytest.approx(4 * frequencies[0], abs=3)
    assert (len(block) - 8 - 2 * 9) % 4 == 0
    assert np.frombuffer(block[-4:], "<u4") == [binascii.crc32(block[:-4])]


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


def test_streams_are_coded_one_by_one():
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.normal(scale=2, size=(2, 500))).astype(np.int16)
    blocks = [entropy_coding.encode(stream) for stream in symbols]
    assert entropy_coding.coded_bits(symbols) == 8 * sum(map(len, blocks)) < 16 * 1000


def test_a_code_that_does_not_restore_its_symbols_is_an_error(monkeypatch):
    monkeypatch.setattr(entropy_coding, "decode", lambda *_: np.zeros(4, np.int32))
    entropy_coding.coded_bits(np.zeros([1, 4], np.int16))
    with pytest.raises(RuntimeError, match="did not restore"):
        entropy_coding.coded_bits(np.array([[0, 0, 1, 0]], np.int16))


# --- damaged and hostile blocks -----------------------------------------------

BLOCK = entropy_coding.encode(np.random.default_rng(0).integers(-9, 9, 200))


def signed(content: bytes) -> bytes:
    """Returns a block with a checksum that fits."""
    return content + struct.pack("<I", binascii.crc32(content))


def assert_refused(block, match=None, **expected):
    with pytest.raises(entropy_coding.EntropyCodingError, match=match):
        entropy_coding.decode(block, **expected)


@pytest.mark.faults
def test_a_block_that_is_cut_is_refused():
    for size in range(len(BLOCK)):
        assert_refused(BLOCK[:size])
    assert_refused(BLOCK + b"\0")


@pytest.mark.faults
def test_every_flipped_bit_of_a_block_is_noticed():
    for bit in range(8 * len(BLOCK)):
        damaged = bytearray(BLOCK)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert_refused(bytes(damaged), "checksum does not fit")


@pytest.mark.faults
@pytest.mark.parametrize("count", [0, 10**8, 2**32 - 1])
def test_a_blocks_count_is_bounded(count):
    """Twelve bytes cannot ask for gigabytes, even with a checksum that fits."""
    frequencies = struct.pack("<HH", 1, 1)
    block = signed(struct.pack("<IhH", count, 0, 2) + frequencies)
    assert_refused(block, f"Expected 1 to 16777216 symbols, found {count}")


@pytest.mark.faults
def test_a_block_holds_no_more_symbols_than_expected():
    assert len(entropy_coding.decode(BLOCK, 200)) == 200
    assert_refused(BLOCK, "Expected 1 to 199 symbols, found 200", num_symbols=199)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("smallest", "frequencies"),
    [(0, ()), (0, (1,)), (0, (0, 0)), (32767, (1, 1)), (32760, (1,) * 40)],
    ids=["empty", "one", "zeros", "past int16", "far past int16"],
)
def test_a_block_of_an_impossible_alphabet_is_refused(smallest, frequencies):
    size = len(frequencies)
    header = struct.pack("<IhH", 5, smallest, size)
    words = struct.pack("<II", 123, 456)
    assert_refused(signed(header + np.array(frequencies, "<u2").tobytes() + words))
    assert_refused(signed(struct.pack("<IhH", 5, smallest, 200) + words))


@pytest.mark.faults
@settings(deadline=None, max_examples=200)
@given(
    count=st.integers(0, 1000),
    smallest=st.integers(LOWEST, HIGHEST),
    size=st.integers(0, 300),
    rest=st.binary(max_size=400),
)
def test_any_bytes_give_symbols_or_the_typed_error(count, smallest, size, rest):
    block = signed(struct.pack("<IhH", count, smallest, size) + rest)
    try:
        symbols = entropy_coding.decode(block)
    except entropy_coding.EntropyCodingError:
        return
    assert symbols.shape == (count,)
    assert symbols.min() >= smallest and symbols.max() < smallest + size
