"""Report of a run: its lines on the terminal, and `curves.png`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE

_Rounds = Sequence[Mapping[str, Any]]


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


def plot_curves(result: Mapping[str, Any], path: PathLike) -> None:
    """Draws accuracy, loss, bits sent and bit-widths per round to a PNG file."""
    rounds = result["rounds"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    _plot_accuracy(axes[0, 0], rounds, result["devices"])
    _plot_loss(axes[0, 1], rounds)
    _plot_sent(axes[1, 0], rounds)
    _plot_bit_widths(axes[1, 1], rounds, figure)
    for panel in axes.flat:
        panel.set_xlabel("round")
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for panel, place in zip(axes.flat, ("lower right", "best", "upper left")):
        panel.legend(fontsize=8, loc=place)
        panel.grid(alpha=0.3)
    settings = result["settings"]
    figure.suptitle(
        f"{result['scheme']}: {result['model']} on {result['dataset']}, "
        f"Dirichlet({settings['alpha']:g}), {settings['clients_per_round']} of "
        f"{settings['num_clients']} clients, {settings['epochs']} local epoch(s)"
    )
    figure.savefig(path, dpi=110)


def _numbers(rounds: _Rounds) -> list[int]:
    return [record["round"] for record in rounds]


def _plot_accuracy(axes: Axes, rounds: _Rounds, devices: Mapping[str, Any]) -> None:
    numbers = _numbers(rounds)
    accuracy = [100 * record["test_accuracy"] for record in rounds]
    axes.plot(numbers, accuracy, marker=".", label="global model")
    # Side by side, for devices of several budgets are often equally good.
    for place, (budget, device) in enumerate(devices.items(), start=1):
        x = numbers[-1] + 0.03 * len(numbers) * place
        label = f"device of {budget} bits"
        axes.plot(x, 100 * device["accuracy"], "D", label=label)
    axes.set(ylabel="test accuracy, %", title="Accuracy", ylim=(0, 100))


def _plot_loss(axes: Axes, rounds: _Rounds) -> None:
    for key, label in (("train_loss", "training"), ("test_loss", "test")):
        loss = [record[key] for record in rounds]
        axes.plot(_numbers(rounds), loss, marker=".", label=label)
    axes.set(ylabel="cross-entropy", title="Loss", ylim=(0, None))


def _plot_sent(axes: Axes, rounds: _Rounds) -> None:
    """Draws what was sent so far; labels say how much a model has on average."""
    models = sum(len(record["clients"]) for record in rounds)
    for way, style in ("down", "-"), ("up", "--"):
        bits = [record[f"{way}link_bits"] for record in rounds]
        sent = np.cumsum(bits) / BITS_PER_MEGABYTE
        label = f"{way}, {1000 * sent[-1] / models:.0f} kB per model"
        axes.plot(_numbers(rounds), sent, style, marker=".", label=label)
    axes.margins(y=0.15)
    axes.set(ylabel="MB, all clients", title="Sent so far", ylim=(0, None))


def _plot_bit_widths(axes: Axes, rounds: _Rounds, figure: Figure) -> None:
    axes.set(ylabel="layer", title="Bits per weight, mean over clients")
    table = np.array([record["bit_widths"] for record in rounds]).T
    if not table.size:
        axes.text(0.5, 0.5, "float weights", ha="center", transform=axes.transAxes)
        return
    first, last = rounds[0]["round"], rounds[-1]["round"]
    extent = (first - 0.5, last + 0.5, len(table) - 0.5, -0.5)
    image = axes.imshow(
        table, aspect="auto", interpolation="nearest", vmin=1, vmax=8, extent=extent
    )
    figure.colorbar(image, ax=axes, label="bits")
