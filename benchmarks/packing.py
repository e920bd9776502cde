"""Throughput of packing codes into bytes and back.

For bit-widths 1 to 8, `quantization.packing` in its TensorFlow form (in a graph, as a
round runs it) and in its NumPy form, against

* packbits: the usual way, by bit planes: `numpy.unpackbits` of the codes, their low
  ``b`` bits kept, then `numpy.packbits`, and back likewise. It gives the same bytes;
* copy: `numpy.copyto` of the codes, the limit that memory sets.

A code is a byte; throughput is in GB of codes per second, whatever they pack into.
All candidates are checked to give the same result before they are timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from benchmarks import measure
from tff_fedmpq.quantization import packing

Candidates = Mapping[str, Callable[[], np.ndarray]]


def pack_with_packbits(codes: np.ndarray, bit_width: int) -> np.ndarray:
    """Packs codes uint8[n] as `packing.pack_numpy` does, by way of bit planes."""
    planes = np.unpackbits(
        codes[:, np.newaxis], axis=1, count=bit_width, bitorder="little"
    )
    return np.packbits(planes, bitorder="little")


def unpack_with_packbits(
    packed: np.ndarray, bit_width: int, num_codes: int
) -> np.ndarray:
    """Restores the codes uint8[n] that `pack_with_packbits` packed."""
    bits = np.unpackbits(packed, count=num_codes * bit_width, bitorder="little")
    planes = bits.reshape(num_codes, bit_width)
    return np.packbits(planes, axis=1, bitorder="little")[:, 0]


def pack_candidates(codes: np.ndarray, bit_width: int) -> Candidates:
    """Returns the ways of packing codes uint8[n]."""
    # The bit-width is a tensor, as in a round, where it is a row of a table.
    width, tensor = tf.constant(bit_width), tf.constant(codes)
    pack = tf.function(packing.pack)
    copy = np.empty_like(codes)
    return {
        "tensorflow": lambda: np.asarray(pack(tensor, width)),
        "numpy": lambda: packing.pack_numpy(codes, bit_width),
        "packbits": lambda: pack_with_packbits(codes, bit_width),
        "copy": lambda: np.copyto(copy, codes),
    }


def unpack_candidates(codes: np.ndarray, bit_width: int) -> Candidates:
    """Returns the ways of unpacking what codes uint8[n] pack into."""
    packed = packing.pack_numpy(codes, bit_width)
    width, tensor = tf.constant(bit_width), tf.constant(packed)
    unpack = tf.function(lambda p, b: packing.unpack(p, b, codes.size))
    copy = np.empty_like(codes)
    return {
        "tensorflow": lambda: np.asarray(unpack(tensor, width)),
        "numpy": lambda: packing.unpack_numpy(packed, bit_width, codes.size),
        "packbits": lambda: unpack_with_packbits(packed, bit_width, codes.size),
        "copy": lambda: np.copyto(copy, codes),
    }


def compare(
    operation: str, candidates: Candidates, num_codes: int, bit_width: int, repeats: int
) -> list[dict[str, Any]]:
    """Times one operation and returns a row per candidate."""
    results = [run() for name, run in candidates.items() if name != "copy"]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    timings = measure.time_alternately(candidates, repeats=repeats, warmup=1)
    # A ratio of throughputs is the inverse ratio of times.
    return [
        {
            "operation": operation,
            "bit_width": bit_width,
            "candidate": name,
            "GB_per_s": num_codes / timings.median(name) / 1e9,
            "to_packbits": timings.ratio("packbits", name),
            "to_packbits_quartiles": timings.spread("packbits", name),
            "to_copy": timings.ratio("copy", name),
        }
        for name in candidates
    ]


def main() -> None:
    """Runs the benchmark."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--codes", type=int, default=2**24, help="how many codes")
    parser.add_argument("--repeats", type=int, default=7, help="at least 5")
    args = parser.parse_args()
    before = measure.environment()
    rng = np.random.default_rng(0)
    rows = []
    for bit_width in range(1, 9):
        codes = rng.integers(0, 2**bit_width, args.codes, np.uint8)
        for operation, build in (
            ("pack", pack_candidates),
            ("unpack", unpack_candidates),
        ):
            candidates = build(codes, bit_width)
            rows += compare(operation, candidates, args.codes, bit_width, args.repeats)
    measure.save("packing", rows, [], before, output=args.output, num_codes=args.codes)


if __name__ == "__main__":
    main()
