"""Bits sent in a round: per client, direction and item, from its measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
        records.append(record)
    return records


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
