"""Bits sent, read off a round's measurements: per client, direction and item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tff_fedmpq.federated.messages import BIT_ITEMS


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
        records.append(record)
    return records


def total_bits(measurements: Mapping[str, Any]) -> dict[str, int]:
    """Returns the bits of a whole round in each direction."""
    return {
        direction: int(np.sum(measurements[direction]))
        for direction in ("uplink_bits", "downlink_bits")
    }
