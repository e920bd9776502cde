"""The ledger: who sent what, item by item, and the real size of coded symbols."""

from __future__ import annotations

import numpy as np
import pytest

from tff_fedmpq.baselines import entropy_coding
from tff_fedmpq.federated.messages import BIT_ITEMS
from tff_fedmpq.simulation import ledger

CLIENT_IDS = ["dora", "bert", "anna"]


def make_measurements(symbols=None):
    """Of three clients, of whom the first and the last took part."""
    took_part = np.array([1, 0, 1], np.int32)
    bits = np.arange(24, dtype=np.int64).reshape(2, 3, 4) + 1
    bits = bits * took_part[:, np.newaxis]
    if symbols is None:
        symbols = np.zeros([3, 0, 0], np.int16)
    return {
        "participations": took_part,
        "uplink_bits": bits[0],
        "downlink_bits": bits[1],
        "uplink_symbols": symbols,
    }


def test_records_are_the_rows_of_participants():
    assert BIT_ITEMS == ("codes", "scales", "headers", "float_parameters")
    assert ledger.client_records(make_measurements(), CLIENT_IDS) == [
        {
            "client": "dora",
            "uplink_bits": {
                "codes": 1,
                "scales": 2,
                "headers": 3,
                "float_parameters": 4,
            },
            "downlink_bits": {
                "codes": 13,
                "scales": 14,
                "headers": 15,
                "float_parameters": 16,
            },
        },
        {
            "client": "anna",
            "uplink_bits": {
                "codes": 9,
                "scales": 10,
                "headers": 11,
                "float_parameters": 12,
            },
            "downlink_bits": {
                "codes": 21,
                "scales": 22,
                "headers": 23,
                "float_parameters": 24,
            },
        },
    ]


def test_bits_are_python_integers():
    """JSON takes no others, and those of TensorFlow would wrap."""
    for record in ledger.client_records(make_measurements(), CLIENT_IDS):
        for direction in ("uplink_bits", "downlink_bits"):
            assert all(type(bits) is int for bits in record[direction].values())


def test_a_round_of_nobody_has_no_records():
    measurements = make_measurements()
    measurements["participations"] = np.zeros(3, np.int32)
    assert ledger.client_records(measurements, CLIENT_IDS) == []
    assert ledger.total_bits([]) == {"uplink_bits": 0, "downlink_bits": 0}


def test_totals_are_over_clients_and_items():
    records = ledger.client_records(make_measurements(), CLIENT_IDS)
    assert ledger.total_bits(records) == {
        "uplink_bits": sum(range(1, 5)) + sum(range(9, 13)),
        "downlink_bits": sum(range(13, 17)) + sum(range(21, 25)),
    }


def test_coded_symbols_take_the_place_of_their_own_bits():
    """Those of the clients that took part, each stream as a block of its own."""
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.normal(scale=2, size=(3, 2, 500))).astype(np.int16)
    records = ledger.client_records(make_measurements(symbols), CLIENT_IDS)
    for record, row in zip(records, (0, 2)):
        blocks = [entropy_coding.encode(stream) for stream in symbols[row]]
        assert record["uplink_bits"]["codes"] == 8 * sum(map(len, blocks))
        assert 0 < record["uplink_bits"]["codes"] < 16 * 1000
    # What is not coded stays as it was counted.
    plain = ledger.client_records(make_measurements(), CLIENT_IDS)
    for record, other in zip(records, plain):
        assert record["downlink_bits"] == other["downlink_bits"]
        assert {**record["uplink_bits"], "codes": 0} == {
            **other["uplink_bits"],
            "codes": 0,
        }


def test_a_code_that_does_not_restore_its_symbols_is_an_error(monkeypatch):
    monkeypatch.setattr(entropy_coding, "decode", lambda *_: np.zeros(4, np.int32))
    ledger.coded_bits(np.zeros([1, 4], np.int16))
    with pytest.raises(RuntimeError, match="did not restore"):
        ledger.coded_bits(np.array([[0, 0, 1, 0]], np.int16))
