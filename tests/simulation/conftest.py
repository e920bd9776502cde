"""The result of a run, from numbers made by hand."""

from __future__ import annotations

import pytest

ONES = 4 * [[1, 1]]


def make_record(number, accuracy, losses, bits, bit_widths, clients=2):
    train_loss, test_loss = losses
    up, down = bits
    return {
        "round": number,
        "test_accuracy": accuracy,
        "train_loss": train_loss,
        "test_loss": test_loss,
        "uplink_bits": up,
        "downlink_bits": down,
        "mean_bit_width": 3.75,
        "bit_widths": bit_widths,
        "seconds": 12.34,
        "clients": [{}] * clients,
        "next_bit_widths": [[4, 7], [3, 8], [1, 3], [2, 2]] if number == 3 else ONES,
        "rejected": {},
        "num_rejected": 0,
        "abandoned": False,
    }


@pytest.fixture
def result():
    """Three rounds of two clients; layers of 2 and 4, 3 and 4, 3 and 5 bits."""
    return {
        "scheme": "fedmpq",
        "model": "resnet8",
        "dataset": "digits",
        "settings": {
            "alpha": 0.5,
            "clients_per_round": 2,
            "num_clients": 4,
            "epochs": 3,
            "budgets": [8, 4.5, 2, 2],
        },
        "layers": {"names": ["conv", "dense"], "sizes": [10, 30]},
        "rounds": [
            make_record(1, 0.125, (2.5, 2.25), (8_000_000, 16_000_000), [2.0, 4.0]),
            make_record(2, 0.5, (1.5, 1.75), (4_000_000, 8_000_000), [3.0, 4.0]),
            make_record(3, 0.625, (1.25, 3.0), (4_000_000, 8_000_000), [3.0, 5.0]),
        ],
        "devices": {
            "2": {
                "client": "0",
                "mean_bit_width": 1.984,
                "num_bytes": 23_456,
                "bytes_down": 25_000,
                "accuracy": 0.3333,
                "loss": 1.5,
            },
            "6.5": {
                "client": "2",
                "mean_bit_width": 6.5,
                "num_bytes": 76_540,
                "bytes_down": None,
                "accuracy": 0.625,
                "loss": 1.25,
            },
        },
    }


@pytest.fixture
def float_result(result):
    rounds = [{**r, "bit_widths": [], "mean_bit_width": 32} for r in result["rounds"]]
    layers = {"names": [], "sizes": []}
    return {
        **result, "scheme": "fedavg", "rounds": rounds, "devices": {}, "layers": layers
    }  # fmt: skip
