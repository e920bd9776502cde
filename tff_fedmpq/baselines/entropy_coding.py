"""Range coding of small integers, by the library `constriction`.

A block of bytes stands for n symbols of one alphabet::

    n uint32 | smallest int16 | size of the alphabet uint16 | frequencies uint16[size]
    | range-coded words uint32[...] | CRC-32 of all before uint32

so that it can be decoded without anything else. Frequencies are the symbols' own,
brought to 16 bits; a symbol that occurs keeps a frequency above zero.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
import tensorflow as tf

_HEADER = struct.Struct("<IhH")
_CHECKSUM = struct.Struct("<I")
_MAX_SYMBOLS = 2**24  # Of a block whose number of symbols is not known beforehand.
_MAX_FREQUENCY = 2**16 - 1
_PROBABILITY_BITS = 24  # Of constriction's coder.


class EntropyCodingError(ValueError):
    """A block is not one that `encode` makes."""


def encode(symbols: np.ndarray) -> bytes:
    """Encodes symbols int[n], from -2**15 to 2**15 - 1, as a block.

    ValueError if there is no symbol, or they spread over 2**16 values or more.
    """
    if not symbols.size:
        raise ValueError("Expected at least one symbol to encode, found none.")
    smallest, largest = int(symbols.min()), int(symbols.max())
    in_range = -(2**15) <= smallest and largest < 2**15
    if not in_range or largest - smallest + 1 > _MAX_FREQUENCY:
        raise ValueError(
            "Expected symbols from -2**15 to 2**15 - 1 that are spread over less than "
            f"2**16 values, found {smallest} to {largest}."
        )
    offsets = symbols.astype(np.int64) - smallest
    # At least two symbols: the coder has no model of a certain one.
    frequencies = _to_16_bits(np.bincount(offsets, minlength=2))
    header = _HEADER.pack(symbols.size, smallest, len(frequencies))
    coder = _stream().queue.RangeEncoder()
    coder.encode(offsets.astype(np.int32), _model(frequencies))
    words = coder.get_compressed().astype("<u4")
    block = header + frequencies.astype("<u2").tobytes() + words.tobytes()
    return block + _CHECKSUM.pack(zlib.crc32(block))


def decode(block: bytes, num_symbols: int | None = None) -> np.ndarray:
    """Restores the symbols, int32[n], of a block of `encode`.

    `EntropyCodingError` for a damaged block, or one of more symbols than `num_symbols`,
    by default 2**24; nothing of their number is allocated before.
    """
    if len(block) < _HEADER.size + _CHECKSUM.size:
        raise EntropyCodingError(f"A block of {len(block)} bytes is cut short.")
    content, (checksum,) = block[:-4], _CHECKSUM.unpack(block[-4:])
    if zlib.crc32(content) != checksum:
        raise EntropyCodingError("A block's checksum does not fit: it is damaged.")
    count, smallest, size = _HEADER.unpack_from(content)
    at_most = _MAX_SYMBOLS if num_symbols is None else num_symbols
    if not 1 <= count <= at_most:
        raise EntropyCodingError(f"Expected 1 to {at_most} symbols, found {count}.")
    num_bytes = len(content) - _HEADER.size - 2 * size
    if size < 2 or num_bytes < 0 or num_bytes % 4:
        raise EntropyCodingError(
            f"{len(block)} bytes hold no block of {size} symbols from {smallest}."
        )
    frequencies = np.frombuffer(content, "<u2", size, _HEADER.size)
    words = np.frombuffer(content, "<u4", offset=_HEADER.size + 2 * size)
    used = np.flatnonzero(frequencies)
    if not used.size or smallest + used[-1] >= 2**15:
        raise EntropyCodingError("A block's frequencies are of no int16 symbols.")
    try:
        decoder = _stream().queue.RangeDecoder(words.astype(np.uint32))
        symbols = decoder.decode(_model(frequencies), count)
    except (AssertionError, ValueError) as error:
        raise EntropyCodingError(
            f"A block's words are not its code: {error}"
        ) from error
    return symbols + np.int32(smallest)


def coded_bits(symbols: np.ndarray) -> int:
    """Returns the bits of symbols, int16[streams, n], each stream coded separately.

    Raises RuntimeError if decoding does not give the symbols back.
    """
    bits = 0
    for stream in symbols:
        block = encode(stream)
        if not np.array_equal(decode(block, stream.size), stream):
            raise RuntimeError("Entropy coding did not restore its symbols.")
        bits += 8 * len(block)
    return bits


def symbol_bits(symbols: tf.Tensor) -> tf.Tensor:
    """Returns a close bound on the range-coded bits of symbols, without the header.

    It serves graphs, where the coder itself cannot run: the cross-entropy, float32[],
    of the symbols, float32[n] of whole numbers, under the 16-bit frequencies that
    `encode` would use. The coder keeps a probability of ``2**-24`` for absent values.
    """
    _, _, counts = tf.unique_with_counts(symbols)
    counts = tf.cast(counts, tf.float32)
    scale = _MAX_FREQUENCY / tf.reduce_max(counts)
    frequencies = tf.maximum(tf.round(counts * scale), 1.0)
    spread = tf.reduce_max(symbols) - tf.reduce_min(symbols) + 1.0
    total = tf.reduce_sum(frequencies) * (1.0 + spread * 2.0**-_PROBABILITY_BITS)
    return tf.reduce_sum(counts * tf.math.log(total / frequencies)) / math.log(2.0)


def _to_16_bits(counts: np.ndarray) -> np.ndarray:
    """Scales counts to at most 16 bits each, those above zero to at least one."""
    scaled = np.rint(counts * (_MAX_FREQUENCY / counts.max()))
    return np.where(counts > 0, np.maximum(scaled, 1), 0).astype(np.uint16)


def _model(frequencies: np.ndarray):
    """Returns constriction's model of symbols 0, 1, ... of these frequencies."""
    probabilities = frequencies / frequencies.sum()
    return _stream().model.Categorical(probabilities, perfect=False)


def _stream():
    """Returns constriction's stream coders, imported when first needed."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "Entropy coding needs the library constriction: install it with "
            "`pip install constriction`, or this package with its extra 'federated'."
        ) from error
    return constriction.stream
