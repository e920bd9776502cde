"""Bits sent in a round: per client, direction and item, from its measurements.

All bits were counted from the tensors that travelled. Where a scheme's uplink is
entropy-coded, its symbols are coded here, decoded as a check, and replaced by the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tff_fedmpq.baselines import entropy_coding
from tff_fedmpq.federated.messages import BIT_ITEMS

BITS_PER_MEGABYTE = 8e6


def client_records(
    measurements: Mapping[str, Any], client_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns, for each participant of a round, its itemised bits.

    A record has the id under ``client``, and under ``uplink_bits`` and
    ``downlink_bits`` an int for each of `BIT_ITEMS`. `client_ids` name the rows.
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
    """Returns the bits of symbols, int16[streams, n], each stream coded separately.

    Raises RuntimeError if decoding does not give the symbols back.
    """
    bits = 0
    for stream in symbols:
        block = entropy_coding.encode(stream)
        if not np.array_equal(entropy_coding.decode(block, stream.size), stream):
            raise RuntimeError("Entropy coding did not restore its symbols.")
        bits += 8 * len(block)
    return bits


def total_bits(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the bits of a whole round by direction, from its `client_records`."""
    return {
        direction: sum(sum(record[direction].values()) for record in records)
        for direction in ("uplink_bits", "downlink_bits")
    }


def bytes_down(
    records: Sequence[Mapping[str, Any]], device: Mapping[str, Any]
) -> int | None:
    """Returns the bytes that a device received in the last of its rounds, if any.

    `records` are those of all rounds, `device` is a device in the last of them.
    """
    for record in reversed(records):
        for client in record["clients"]:
            if client["client"] == device["client"]:
                return sum(client["downlink_bits"].values()) // 8
    return None
