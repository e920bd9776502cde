"""What a finished run leaves to look at: `curves.png` and a printed summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE


def plot_curves(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws accuracy, loss, bits and bit-widths per round.

    Args:
      result: as `experiment.run_experiment` returns it.
      path: of the PNG file.
    """
    rounds = result["rounds"]
    numbers = [record["round"] for record in rounds]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    _plot_accuracy(axes[0, 0], result, numbers)
    _plot_loss(axes[0, 1], rounds, numbers)
    _plot_bits(axes[1, 0], rounds, numbers)
    _plot_bit_widths(axes[1, 1], rounds, numbers, figure)
    for panel in axes.flat:
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    protocol = result["protocol"]
    figure.suptitle(
        f"{result['scheme']}: {protocol['model']} on {result['dataset']}, "
        f"Dirichlet({protocol['alpha']:g}), {protocol['clients_per_round']} of "
        f"{protocol['num_clients']} clients, {protocol['local_epochs']} local epoch(s)"
    )
    figure.savefig(path, dpi=110)


def _plot_accuracy(axes, result: Mapping[str, Any], numbers: list[int]) -> None:
    accuracy = [100 * record["test_accuracy"] for record in result["rounds"]]
    axes.plot(numbers, accuracy, marker=".", label="global model")
    for budget, tier in (result.get("tier_accuracy") or {}).items():
        axes.plot(
            numbers[-1], 100 * tier["accuracy"], "x", label=f"device of {budget} bits"
        )
    axes.set(xlabel="round", ylabel="test accuracy, %", title="Accuracy")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_loss(axes, rounds: list[Mapping[str, Any]], numbers: list[int]) -> None:
    for key, label in (("train_loss", "training"), ("test_loss", "test")):
        axes.plot(numbers, [r[key] for r in rounds], marker=".", label=label)
    axes.set(xlabel="round", ylabel="cross-entropy", title="Loss")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_bits(axes, rounds: list[Mapping[str, Any]], numbers: list[int]) -> None:
    for key, label in (("uplink_bits", "up"), ("downlink_bits", "down")):
        megabytes = [r[key] / BITS_PER_MEGABYTE for r in rounds]
        axes.plot(numbers, megabytes, marker=".", label=label)
    axes.set(xlabel="round", ylabel="MB, all clients", title="Sent per round")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_bit_widths(
    axes, rounds: list[Mapping[str, Any]], numbers: list[int], figure
) -> None:
    table = np.array([record["bit_widths"] for record in rounds]).T
    axes.set(xlabel="round", ylabel="layer", title="Bit-width per layer, average")
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
        f"{result['scheme']} on {result['dataset']} ({result['dataset_source']}): "
        f"{100 * last['test_accuracy']:.2f} % after {last['round']} rounds."
    ]
    if "recalibrated" in result:  # Results of former versions are without it.
        accuracy = 100 * result["recalibrated"]["accuracy"]
        lines.append(f"  the global model, BatchNorm recalibrated: {accuracy:.2f} %")
    for budget, tier in (result.get("tier_accuracy") or {}).items():
        lines.append(
            f"  what a device of {budget} bits gets: {100 * tier['accuracy']:.2f} % "
            f"({100 * tier['accuracy_aggregated_statistics']:.2f} % with the "
            "aggregated BatchNorm statistics)"
        )
    return "\n".join(lines)
