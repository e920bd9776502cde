"""Range coding of small integers, by the library `constriction`.

A block of bytes stands for n symbols of one alphabet::

    n uint32 | smallest int16 | size of the alphabet uint16 | frequencies uint16[size]
    | range-coded words uint32[...]

so that it can be decoded without anything else. Frequencies are the symbols' own,
brought to 16 bits; a symbol that occurs keeps a frequency above zero.

Codes of a layer, of which the receiver knows how many there are and their bit-width b,
have a shorter block (`encode_codes`)::

    k uint8 | frequencies uint16[2 ** (b - k)] | range-coded words uint32[...]

A frequency is that of ``2**k`` neighbouring codes together, which count as equally
likely: a histogram of 256 values would cost a small layer more than it saves. The
encoder chooses k such that frequencies and code together are shortest.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.representations import check_bit_width

_HEADER = struct.Struct("<IhH")
_MAX_FREQUENCY = 2**16 - 1
_PROBABILITY_BITS = 24  # Of constriction's coder.


def encode(symbols: np.ndarray) -> bytes:
    """Encodes symbols.

    Args:
      symbols: int[n], from -2**15 to 2**15 - 1, spread over less than 2**16 values.

    Returns:
      The bytes that `decode` restores them from.

    Raises:
      ValueError: if there is no symbol, or they are spread too far.
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
    offsets = (symbols.astype(np.int64) - smallest).astype(np.int32)
    # At least two symbols: the coder has no model of a certain one.
    frequencies = _to_16_bits(np.bincount(offsets, minlength=2))
    coder = _stream().queue.RangeEncoder()
    coder.encode(offsets, _model(frequencies))
    header = _HEADER.pack(symbols.size, smallest, len(frequencies))
    words = coder.get_compressed().astype("<u4")
    return header + frequencies.astype("<u2").tobytes() + words.tobytes()


def decode(block: bytes) -> np.ndarray:
    """Decodes what `encode` encoded.

    Returns:
      int32[n].
    """
    count, smallest, size = _HEADER.unpack_from(block)
    begin = _HEADER.size + 2 * size
    frequencies = np.frombuffer(block, "<u2", size, _HEADER.size)
    words = np.frombuffer(block, "<u4", offset=begin).astype(np.uint32)
    decoder = _stream().queue.RangeDecoder(words)
    return decoder.decode(_model(frequencies), count) + np.int32(smallest)


def encode_codes(codes: np.ndarray, bit_width: int) -> bytes:
    """Encodes the codes of a layer.

    Args:
      codes: uint8[n], each below ``2**bit_width``.
      bit_width: 1 to 8.

    Returns:
      The bytes that `decode_codes` restores them from; at most 8 bytes (k, one
      frequency, the coder's last word) and a few in a million more than packed codes.

    Raises:
      TypeError: if codes are not uint8.
      ValueError: if the bit-width is out of range, a code too large for it, or there is
        no code.
    """
    check_bit_width(bit_width)
    if codes.dtype != np.uint8:
        raise TypeError(f"Expected codes of dtype uint8, found {codes.dtype}.")
    if not codes.size:
        raise ValueError("Expected at least one code to encode, found none.")
    if codes.max() >= 2**bit_width:
        raise ValueError(
            f"Codes of {bit_width} bits are below {2**bit_width}; found {codes.max()}."
        )
    counts = np.bincount(codes, minlength=2**bit_width)
    histograms = [counts.reshape(-1, 2**k).sum(axis=1) for k in range(bit_width + 1)]
    bin_bits = int(np.argmin([_bits_with(histogram) for histogram in histograms]))
    frequencies = _to_16_bits(histograms[bin_bits])
    coder = _stream().queue.RangeEncoder()
    coder.encode(codes.astype(np.int32), _model(np.repeat(frequencies, 2**bin_bits)))
    words = coder.get_compressed().astype("<u4")
    return bytes([bin_bits]) + frequencies.astype("<u2").tobytes() + words.tobytes()


def decode_codes(block: bytes, bit_width: int, num_codes: int) -> np.ndarray:
    """Decodes what `encode_codes` encoded.

    Args:
      block: the bytes.
      bit_width: of the codes, 1 to 8.
      num_codes: n.

    Returns:
      uint8[n].
    """
    bin_bits, size = block[0], 2 ** (bit_width - block[0])
    frequencies = np.frombuffer(block, "<u2", size, 1)
    words = np.frombuffer(block, "<u4", offset=1 + 2 * size).astype(np.uint32)
    decoder = _stream().queue.RangeDecoder(words)
    model = _model(np.repeat(frequencies, 2**bin_bits))
    return decoder.decode(model, num_codes).astype(np.uint8)


def symbol_bits(symbols: tf.Tensor) -> tf.Tensor:
    """Returns a close bound on the range-coded size of symbols, without the header.

    In a graph, where the coder itself cannot run: the cross-entropy of the symbols
    under the 16-bit frequencies that `encode` would use. The coder keeps a probability
    of ``2**-24`` for values of the alphabet that do not occur.

    Args:
      symbols: float32[n] of whole numbers.

    Returns:
      Bits, float32[].
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


def _bits_with(histogram: np.ndarray) -> float:
    """Returns the bits of n codes and their frequencies, less ``n * bit_width``.

    Each code takes ``bit_width - log2(bins)`` bits within its bin.
    """
    used = histogram[histogram > 0]
    total = used.sum()
    index_bits = float(np.sum(used * np.log2(total / used)))
    return index_bits - total * math.log2(len(histogram)) + 16 * len(histogram)


def _model(frequencies: np.ndarray):
    probabilities = frequencies.astype(np.float64) / frequencies.sum(dtype=np.float64)
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
