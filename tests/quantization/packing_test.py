"""Packing of b-bit codes, bit by bit, in TensorFlow and in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from oracles import quantization as oracle
from oracles import strategies
from oracles.strategies import BIT_WIDTHS, SETTINGS

from tff_fedmpq.quantization.packing import (
    pack,
    pack_numpy,
    packed_size,
    unpack,
    unpack_numpy,
)

every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)


def width(bit_width):
    return tf.constant(bit_width, tf.int32)


def random_codes(seed, bit_width, num_codes):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bit_width, size=num_codes).astype(np.uint8)


@every_bit_width
@pytest.mark.parametrize("num_codes", [0, 1, 2, 7, 8, 9, 1000, 270_001])
def test_packed_size(num_codes, bit_width):
    want = -(-num_codes * bit_width // 8)
    assert packed_size(num_codes, bit_width) == want
    size = packed_size(tf.constant(num_codes), width(bit_width))
    assert int(size) == want


@SETTINGS
@given(
    seed=strategies.seeds,
    bit_width=strategies.bit_widths,
    num_codes=st.integers(min_value=1, max_value=120),
)
def test_packing(seed, bit_width, num_codes):
    codes = random_codes(seed, bit_width, num_codes)
    stream = oracle.pack(codes, bit_width)
    assert stream.size == packed_size(num_codes, bit_width)

    in_numpy = pack_numpy(codes, bit_width)
    assert in_numpy.dtype == np.uint8
    np.testing.assert_array_equal(in_numpy, stream)
    in_graph = pack(tf.constant(codes), width(bit_width))
    assert in_graph.dtype == tf.uint8
    np.testing.assert_array_equal(in_graph.numpy(), stream)

    back = unpack_numpy(stream, bit_width, num_codes)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, codes)
    back = unpack(tf.constant(stream), width(bit_width), num_codes)
    assert back.dtype == tf.uint8
    assert back.shape == (num_codes,)
    np.testing.assert_array_equal(back.numpy(), codes)


@SETTINGS
@given(
    seed=strategies.seeds,
    bit_width=strategies.bit_widths,
    num_codes=st.integers(min_value=1, max_value=120),
)
def test_unpacking_any_bytes(seed, bit_width, num_codes):
    """Whatever the padding bits hold."""
    size = -(-num_codes * bit_width // 8)
    stream = np.random.default_rng(seed).integers(0, 256, size=size).astype(np.uint8)
    want = oracle.unpack(stream, bit_width, num_codes)
    np.testing.assert_array_equal(unpack_numpy(stream, bit_width, num_codes), want)
    np.testing.assert_array_equal(
        unpack(tf.constant(stream), width(bit_width), num_codes).numpy(), want
    )


def test_a_stream_written_by_hand():
    """Codes 1, 6, 3 of 3 bits: 100 011 110, least significant bit first."""
    codes = np.array([1, 6, 3], np.uint8)
    stream = [0b11110001, 0b00000000]
    np.testing.assert_array_equal(pack_numpy(codes, 3), stream)
    np.testing.assert_array_equal(pack(tf.constant(codes), width(3)).numpy(), stream)


@every_bit_width
def test_padding_is_zero(bit_width):
    """Codes of all ones: the stream is num_codes * bit_width ones, then zeros."""
    for num_codes in range(1, 18):
        codes = np.full(num_codes, 2**bit_width - 1, np.uint8)
        for stream in (
            pack_numpy(codes, bit_width),
            pack(tf.constant(codes), width(bit_width)).numpy(),
        ):
            bits = np.unpackbits(stream, bitorder="little")
            assert np.all(bits[: num_codes * bit_width] == 1)
            assert np.all(bits[num_codes * bit_width :] == 0)


@every_bit_width
def test_nothing_packs_to_nothing(bit_width):
    empty = np.zeros(0, np.uint8)
    assert pack_numpy(empty, bit_width).shape == (0,)
    assert pack(tf.constant(empty), width(bit_width)).shape == (0,)
    assert unpack_numpy(empty, bit_width, 0).shape == (0,)
    assert unpack(tf.constant(empty), width(bit_width), 0).shape == (0,)


@every_bit_width
def test_a_large_layer(bit_width):
    """The two versions and `np.packbits` agree on 300,001 codes."""
    codes = random_codes(bit_width, bit_width, 300_001)
    bits = np.unpackbits(codes[:, np.newaxis], axis=1, bitorder="little")
    stream = np.packbits(bits[:, :bit_width].ravel(), bitorder="little")
    np.testing.assert_array_equal(pack_numpy(codes, bit_width), stream)
    packed = pack(tf.constant(codes), width(bit_width))
    np.testing.assert_array_equal(packed.numpy(), stream)
    np.testing.assert_array_equal(unpack_numpy(stream, bit_width, codes.size), codes)
    np.testing.assert_array_equal(
        unpack(packed, width(bit_width), codes.size).numpy(), codes
    )


def test_one_trace_serves_every_bit_width():
    """And every length of a stream of unknown length."""
    traces = []
    num_codes = 77

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.uint8),
            tf.TensorSpec([None], tf.uint8),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def there_and_back(codes, stream, bit_width):
        traces.append(bit_width)
        return pack(codes, bit_width), unpack(stream, bit_width, num_codes)

    for bit_width in BIT_WIDTHS:
        codes = random_codes(bit_width, bit_width, num_codes)
        stream = oracle.pack(codes, bit_width)
        packed, back = there_and_back(
            tf.constant(codes), tf.constant(stream), width(bit_width)
        )
        np.testing.assert_array_equal(packed.numpy(), stream)
        np.testing.assert_array_equal(back.numpy(), codes)
    assert len(traces) == 1


@pytest.mark.parametrize("bit_width", [-1, 0, 9])
def test_bit_widths_out_of_range_are_refused(bit_width):
    with pytest.raises(ValueError):
        pack_numpy(np.zeros(3, np.uint8), bit_width)
    with pytest.raises(ValueError):
        unpack_numpy(np.zeros(3, np.uint8), bit_width, 3)


@pytest.mark.parametrize("bit_width", BIT_WIDTHS[:-1])
def test_codes_too_large_for_their_bits_are_refused(bit_width):
    """They would spill into the neighbouring codes."""
    with pytest.raises(ValueError):
        pack_numpy(np.array([0, 2**bit_width], np.uint8), bit_width)


def test_other_dtypes_are_refused():
    with pytest.raises((TypeError, ValueError)):
        pack_numpy(np.array([0.5, 1.0]), 3)
    with pytest.raises((TypeError, ValueError)):
        pack(tf.constant([0.5, 1.0]), width(3))


@every_bit_width
def test_a_stream_too_short_is_refused(bit_width):
    with pytest.raises(ValueError):
        unpack_numpy(np.zeros(bit_width, np.uint8), bit_width, 9)


@pytest.mark.faults
@every_bit_width
def test_in_a_graph_too_large_codes_leave_their_neighbours_alone(bit_width):
    codes = np.array([255, 0, 255, 0, 0, 0, 0, 0, 255], np.uint8)
    packed = pack(tf.constant(codes), width(bit_width))
    back = oracle.unpack(packed.numpy(), bit_width, len(codes))
    np.testing.assert_array_equal(back, codes & (2**bit_width - 1))


@pytest.mark.faults
@every_bit_width
@pytest.mark.parametrize("extra", [-1, 1, 100])
def test_another_number_of_bytes_is_refused(bit_width, extra):
    packed = tf.zeros([2 * bit_width + extra], tf.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="number of bytes"):
        unpack(packed, width(bit_width), 16)


@pytest.mark.faults
def test_sizes_beyond_an_int32():
    sizes = tf.constant([2**28, 3], tf.int32)
    assert packed_size(sizes, width(8)).numpy().tolist() == [2**28, 3]
    assert packed_size(2**28, 8) == 2**28
