"""Report of a run: its lines on the terminal, and `curves.png`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE


def describe_round(record: Mapping[str, Any], rounds: int) -> str:
    """Returns the line that is printed after a round."""
    return (
        f"round {record['round']:>3}/{rounds}  "
        f"test accuracy {100 * record['test_accuracy']:5.2f} %  "
        f"test loss {record['test_loss']:.3f}  "
        f"train loss {record['train_loss']:.3f}  "
        f"up {record['uplink_bits'] / BITS_PER_MEGABYTE:.3f} MB  "
        f"down {record['downlink_bits'] / BITS_PER_MEGABYTE:.3f} MB  "
        f"bits {record['mean_bit_width']:.2f}  "
        f"{record['seconds']:.1f} s"
    )


def describe_result(result: Mapping[str, Any]) -> str:
    """Returns the summary that is printed at the end."""
    last = result["rounds"][-1]
    lines = [
        f"Global model after {last['round']} rounds: "
        f"{100 * last['test_accuracy']:.2f} % of the test images."
    ]
    if result["devices"]:
        lines += ["Models that devices get:", format_devices(result)]
    return "\n".join(lines)


def format_devices(result: Mapping[str, Any], table_format: str = "simple") -> str:
    """Returns a table of budget, bits, bytes and accuracy.

    Args:
      result: Result of a run.
      table_format: Format of `tabulate`.
    """
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


def plot_curves(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws accuracy, loss, bits sent and bit-widths per round.

    Args:
      result: Result of a run.
      path: Path of the PNG file.
    """
    rounds = result["rounds"]
    numbers = [record["round"] for record in rounds]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    _plot_accuracy(axes[0, 0], result, numbers)
    _plot_loss(axes[0, 1], rounds, numbers)
    _plot_sent(axes[1, 0], rounds, numbers)
    _plot_bit_widths(axes[1, 1], rounds, numbers, figure)
    for panel in axes.flat:
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    settings = result["settings"]
    figure.suptitle(
        f"{result['scheme']}: {result['model']} on {result['dataset']}, "
        f"Dirichlet({settings['alpha']:g}), {settings['clients_per_round']} of "
        f"{settings['num_clients']} clients, {settings['epochs']} local epoch(s)"
    )
    figure.savefig(path, dpi=110)


def _plot_accuracy(axes: Axes, result: Mapping[str, Any], numbers: list[int]) -> None:
    accuracy = [100 * record["test_accuracy"] for record in result["rounds"]]
    axes.plot(numbers, accuracy, marker=".", label="global model")
    # Side by side, for devices of several budgets are often equally good.
    for place, (budget, device) in enumerate(result["devices"].items(), start=1):
        axes.plot(
            numbers[-1] + 0.03 * len(numbers) * place,
            100 * device["accuracy"],
            "D",
            label=f"device of {budget} bits",
        )
    axes.set(xlabel="round", ylabel="test accuracy, %", title="Accuracy")
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)


def _plot_loss(
    axes: Axes, rounds: Sequence[Mapping[str, Any]], numbers: list[int]
) -> None:
    for key, label in (("train_loss", "training"), ("test_loss", "test")):
        axes.plot(numbers, [r[key] for r in rounds], marker=".", label=label)
    axes.set(xlabel="round", ylabel="cross-entropy", title="Loss")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_sent(
    axes: Axes, rounds: Sequence[Mapping[str, Any]], numbers: list[int]
) -> None:
    """Draws bytes sent so far, beside those of float32 models."""
    clients = np.cumsum([len(record["clients"]) for record in rounds])
    for key, label, style in (
        ("downlink_bits", "down", "-"),
        ("uplink_bits", "up", "--"),
    ):
        sent = np.cumsum([record[key] for record in rounds]) / BITS_PER_MEGABYTE
        label = f"{label}, {1000 * sent[-1] / clients[-1]:.0f} kB per model"
        axes.plot(numbers, sent, style, marker=".", label=label)
    axes.set(xlabel="round", ylabel="MB, all clients", title="Sent so far")
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)


def _plot_bit_widths(
    axes: Axes,
    rounds: Sequence[Mapping[str, Any]],
    numbers: list[int],
    figure: Figure,
) -> None:
    table = np.array([record["bit_widths"] for record in rounds]).T
    axes.set(xlabel="round", ylabel="layer", title="Bits per weight, mean over clients")
    if not table.size:
        axes.text(0.5, 0.5, "float weights", ha="center", transform=axes.transAxes)
        return
    image = axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        vmin=1,
        vmax=8,
        extent=(numbers[0] - 0.5, numbers[-1] + 0.5, len(table) - 0.5, -0.5),
    )
    figure.colorbar(image, ax=axes, label="bits")
