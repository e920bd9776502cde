"""Report of a run: its lines on the terminal."""

from collections.abc import Mapping
from typing import Any

import tabulate

from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE


def describe_round(record: Mapping[str, Any], rounds: int) -> str:
    """Returns the line that is printed after a round."""
    left_out = [f"{c} ({reason})" for c, reason in record["rejected"].items()]
    unnamed = record["num_rejected"] - len(left_out)
    left_out += [f"{unnamed} unknown"] if unnamed else []
    return (
        f"round {record['round']:>3}/{rounds}  "
        f"test accuracy {100 * record['test_accuracy']:5.2f} %  "
        f"test loss {record['test_loss']:.3f}  "
        f"train loss {record['train_loss']:.3f}  "
        f"up {record['uplink_bits'] / BITS_PER_MEGABYTE:.3f} MB  "
        f"down {record['downlink_bits'] / BITS_PER_MEGABYTE:.3f} MB  "
        f"bits {record['mean_bit_width']:.2f}  "
        f"{record['seconds']:.1f} s"
        + (f"  left out: {', '.join(left_out)}" if left_out else "")
        + ("  abandoned" if record["abandoned"] else "")
    )


def describe_result(result: Mapping[str, Any]) -> str:
    """Returns the summary that is printed at the end."""
    last = result["rounds"][-1]
    lines = [
        f"Global model after {last['round']} rounds: "
        f"{100 * last['test_accuracy']:.2f} % of the test images."
    ]
    if privacy := result.get("privacy"):
        lines.append(
            f"Differential privacy of each client: epsilon {privacy['epsilon']:.4g} at "
            f"delta {privacy['delta']:g}."
        )
    if result["devices"]:
        lines += ["Models that devices get:", format_devices(result)]
    return "\n".join(lines)


def format_devices(result: Mapping[str, Any], table_format: str = "simple") -> str:
    """Returns bits, bytes and accuracy of devices in a table format of `tabulate`."""
    rows = [
        [
            budget,
            device["mean_bit_width"],
            (device["bytes_down"] or 0) / 1000 or None,
            device["num_bytes"] / 1000,
            100 * device["accuracy"],
        ]
        for budget, device in result["devices"].items()
    ]
    headers = ["budget", "bits per weight", "kB down", "kB stored", "accuracy, %"]
    return tabulate.tabulate(
        rows,
        headers,
        table_format,
        floatfmt=("", ".2f", ".1f", ".1f", ".2f"),
        disable_numparse=[0],
        missingval="-",
    )
