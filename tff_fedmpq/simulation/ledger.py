"""Bits sent, read off a round's measurements: per client, direction and item.

All bits were counted from the tensors that travelled. Where a scheme's uplink is
entropy-coded, its symbols are coded here by the real coder, decoded again to be sure,
and the bytes of the code take the place of the symbols' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tff_fedmpq.federated.messages import BIT_ITEMS
from tff_fedmpq.quantization import entropy_coding

BITS_PER_MEGABYTE = 8e6


def client_records(
    measurements: Mapping[str, Any], client_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns, for each participant of a round, its itemised bits.

    Args:
      measurements: of `build_process`.
      client_ids: N ids, in the order of the tables' rows.

    Returns:
      Dicts with ``client``, and under ``uplink_bits`` and ``downlink_bits`` an int for
      each of `BIT_ITEMS`.
    """
    records = []
    for row in np.flatnonzero(measurements["participations"]):
        record: dict[str, Any] = {"client": client_ids[row]}
        for direction in ("uplink_bits", "downlink_bits"):
            bits = measurements[direction][row].tolist()
            record[direction] = dict(zip(BIT_ITEMS, bits))
        symbols = measurements["uplink_symbols"][row]
        if symbols.size:
            record["uplink_bits"]["codes"] = coded_bits(symbols)
        records.append(record)
    return records


def coded_bits(symbols: np.ndarray) -> int:
    """Returns the bits of entropy-coded symbols.

    Args:
      symbols: int16[streams, symbols]; streams are coded apart.

    Raises:
      RuntimeError: if decoding does not give the symbols back.
    """
    bits = 0
    for stream in symbols:
        block = entropy_coding.encode(stream)
        if not np.array_equal(entropy_coding.decode(block), stream):
            raise RuntimeError("Entropy coding did not restore its symbols.")
        bits += 8 * len(block)
    return bits


def total_bits(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the bits of a whole round in each direction.

    Args:
      records: as `client_records` returns them.
    """
    return {
        direction: sum(sum(record[direction].values()) for record in records)
        for direction in ("uplink_bits", "downlink_bits")
    }
