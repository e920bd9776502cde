"""Packs codes of b bits into bytes and back, in TensorFlow and in NumPy.

Bit order is little-endian: bit ``j`` of code ``i`` is bit ``i*b + j`` of the stream,
and bit ``k`` of the stream is bit ``k % 8`` of byte ``k // 8``; the last byte is padded
with zeros. Eight codes of ``b`` bits are shifted into one 64-bit word, whose low ``b``
bytes are the result. Both implementations give the same bytes.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.representations import check_bit_width
from tff_fedmpq.quantization.tracing import traced

_GROUP = 8  # Codes per word, and bits per byte.
_BYTES = tf.TensorSpec([None], tf.uint8)
_INT32 = tf.TensorSpec([], tf.int32)


def packed_size(num_codes, bit_width):
    """Returns the size of packed codes in bytes, for integers or int64 of tensors."""
    if tf.is_tensor(num_codes) or tf.is_tensor(bit_width):
        num_codes, bit_width = (
            tf.cast(num_codes, tf.int64),
            tf.cast(bit_width, tf.int64),
        )
    return (num_codes * bit_width + 7) // 8


def has_packed_size(
    packed: tf.Tensor, num_codes: np.ndarray, bit_widths: tf.Tensor
) -> tf.Tensor:
    """Returns whether bytes uint8[n] are as many as those of L layers' codes, bool[].

    `num_codes` are int[L], `bit_widths` int32[L] or int32[]. Bytes of another rank are
    not.
    """
    if packed.shape.rank != 1:
        return tf.constant(False)
    sizes = packed_size(tf.constant(num_codes, tf.int64), bit_widths)
    return tf.equal(tf.size(packed, tf.int64), tf.reduce_sum(sizes))


def pack(codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
    """Packs codes uint8[n] of b bits, int32[], into bytes, uint8[ceil(n * b / 8)].

    Of larger codes the low b bits are kept; other dtypes raise TypeError.
    """
    if codes.dtype != tf.uint8:
        raise TypeError(f"Expected codes of dtype uint8, found {codes.dtype.name}.")
    return _pack(codes, tf.cast(bit_width, tf.int32))


# Traced once, for all layers of all models: a network's graph is built much sooner.
@traced([_BYTES, _INT32])
def _pack(codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
    num_codes = tf.size(codes)
    largest = tf.bitwise.left_shift(1, bit_width) - 1
    codes = tf.bitwise.bitwise_and(codes, tf.cast(largest, tf.uint8))
    codes = tf.pad(codes, [[0, -num_codes % _GROUP]])
    words = _join(tf.reshape(codes, [-1, _GROUP]), bit_width)
    packed = tf.reshape(_split(words, bit_width, 8), [-1])
    return packed[: packed_size(num_codes, bit_width)]


def unpack(packed: tf.Tensor, bit_width: tf.Tensor, num_codes: int) -> tf.Tensor:
    """Restores the codes, uint8[num_codes], that `pack` packed.

    `tf.errors.InvalidArgumentError` for another number of bytes.
    """
    codes = _unpack(packed, tf.cast(bit_width, tf.int32), num_codes)
    return tf.ensure_shape(codes, [num_codes])


@traced([_BYTES, _INT32, _INT32])
def _unpack(packed: tf.Tensor, bit_width: tf.Tensor, num_codes: tf.Tensor) -> tf.Tensor:
    size = packed_size(num_codes, bit_width)
    tf.debugging.assert_equal(
        tf.size(packed, tf.int64), size, "The codes have another number of bytes."
    )
    packed = tf.pad(packed, [[0, -tf.size(packed) % bit_width]])
    words = _join(tf.reshape(packed, [-1, bit_width]), 8)
    return tf.reshape(_split(words, _GROUP, bit_width), [-1])[:num_codes]


def _join(parts: tf.Tensor, part_bits: tf.Tensor | int) -> tf.Tensor:
    """Joins uint8[n, k] into int64[n]: part ``j`` begins at bit ``j * part_bits``."""
    shifts = tf.cast(tf.range(tf.shape(parts)[1]) * part_bits, tf.int64)
    shifted = tf.bitwise.left_shift(tf.cast(parts, tf.int64), shifts[tf.newaxis])
    return tf.reduce_sum(shifted, axis=1)  # No two parts share a bit.


def _split(
    words: tf.Tensor, num_parts: tf.Tensor | int, part_bits: tf.Tensor | int
) -> tf.Tensor:
    """Splits int64[n] into uint8[n, num_parts] of `part_bits` bits each."""
    shifts = tf.cast(tf.range(num_parts) * part_bits, tf.int64)
    mask = tf.cast(tf.bitwise.left_shift(1, part_bits) - 1, tf.int64)
    # The mask removes the sign bits that the shift of an int64 inserts.
    parts = tf.bitwise.right_shift(words[:, tf.newaxis], shifts[tf.newaxis])
    return tf.cast(tf.bitwise.bitwise_and(parts, mask), tf.uint8)


def pack_numpy(codes: np.ndarray, bit_width: int) -> np.ndarray:
    """Packs codes into bytes: `pack` in NumPy.

    Codes of another dtype raise TypeError, those of more bits ValueError.
    """
    check_bit_width(bit_width)
    if codes.dtype != np.uint8:
        raise TypeError(f"Expected codes of dtype uint8, found {codes.dtype}.")
    if codes.size and codes.max() >= 2**bit_width:
        raise ValueError(
            f"Codes of {bit_width} bits are below {2**bit_width}; found {codes.max()}."
        )
    size = packed_size(codes.size, bit_width)
    codes = np.pad(codes, [0, -codes.size % _GROUP]).reshape(-1, _GROUP)
    shifts = np.arange(_GROUP, dtype=np.uint64) * np.uint64(bit_width)
    words = np.bitwise_or.reduce(codes.astype("<u8") << shifts, axis=1)
    return words.view(np.uint8).reshape(-1, 8)[:, :bit_width].reshape(-1)[:size]


def unpack_numpy(packed: np.ndarray, bit_width: int, num_codes: int) -> np.ndarray:
    """Restores packed codes: `unpack` in NumPy; ValueError for another size."""
    check_bit_width(bit_width)
    size = packed_size(num_codes, bit_width)
    if packed.size != size:
        expected = f"{num_codes} codes of {bit_width} bits fill {size} bytes"
        raise ValueError(f"{expected}; found {packed.size}.")
    packed = np.pad(packed, [0, -packed.size % bit_width]).reshape(-1, bit_width)
    words = np.pad(packed, [[0, 0], [0, 8 - bit_width]]).view("<u8")
    shifts = np.arange(_GROUP, dtype=np.uint64) * np.uint64(bit_width)
    codes = (words >> shifts) & np.uint64(2**bit_width - 1)
    return codes.astype(np.uint8).reshape(-1)[:num_codes]
