"""Figures of runs and partitions, for notebooks and files.

    curves(result)                       accuracy, loss, bits sent, bit-widths by round
    bits_per_layer(result)               bits of each client's layers
    bytes_against_accuracy(results)      what an accuracy costs, of several runs
    partition(partition, labels)         examples of each client by class

A result is what `run_experiment` returns and `result.json` holds. Each function returns
a `matplotlib.figure.Figure`: a notebook shows it, and `savefig` writes it to a file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import figure as mpl
from matplotlib import ticker
from matplotlib.axes import Axes

if TYPE_CHECKING:
    from tff_fedmpq.simulation.data.partitions import Partition

_BITS_PER_MEGABYTE = 8e6
_MAX_CLASSES = 20  # That have a colour of their own.
_MAX_NAMES = 60  # Of clients or layers that are written beside an axis.
_Rounds = Sequence[Mapping[str, Any]]


class Figure(mpl.Figure):
    """A figure that notebooks show, also without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def curves(result: Mapping[str, Any]) -> Figure:
    """Draws accuracy, loss, bits sent and bit-widths by round."""
    rounds = result["rounds"]
    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2)
    _plot_accuracy(axes[0, 0], rounds, result["devices"])
    _plot_loss(axes[0, 1], rounds)
    _plot_sent(axes[1, 0], rounds)
    _plot_bit_widths(axes[1, 1], rounds, figure)
    for panel in axes.flat:
        _count_rounds(panel)
    for panel, place in zip(axes.flat, ("lower right", "best", "upper left")):
        panel.legend(fontsize=8, loc=place)
        panel.grid(alpha=0.3)
    settings = result["settings"]
    figure.suptitle(
        f"{result['scheme']}: {result['model']} on {result['dataset']}, "
        f"Dirichlet({settings['alpha']:g}), {settings['clients_per_round']} of "
        f"{settings['num_clients']} clients, {settings['epochs']} local epoch(s)"
    )
    return figure


def bits_per_layer(result: Mapping[str, Any], round_number: int = -1) -> Figure:
    """Draws the bits of each client's layers after a round, -1 being the last.

    Rows are layers, columns clients by their budgets. ValueError for a round that the
    result does not have, and for a scheme of float weights.
    """
    numbers = _numbers(result["rounds"])
    if round_number != -1 and round_number not in numbers:
        raise ValueError(
            f"round_number: expected one of {numbers}, found {round_number}."
        )
    index = -1 if round_number == -1 else numbers.index(round_number)
    record, names = result["rounds"][index], result["layers"]["names"]
    if not names:
        raise ValueError(f"{result['scheme']} has float weights; they have no bits.")
    budgets = np.array(result["settings"]["budgets"])
    order = np.argsort(budgets, kind="stable")
    table = np.array(record["next_bit_widths"])[order].T
    size = _inches(2, 0.35 * len(order)), _inches(1, 0.25 * len(names))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, aspect="auto", vmin=1, vmax=8)
    few = max(table.shape) <= _MAX_NAMES
    for (row, column), bits in np.ndenumerate(table if few else []):
        colour = "black" if bits > 5 else "white"
        axes.text(column, row, bits, ha="center", va="center", color=colour, size=7)
    if few:
        axes.set_xticks(range(len(order)), [f"{v:g}" for v in budgets[order]])
        axes.set_yticks(range(len(names)), names, size=7)
    title = f"Bits per weight after round {record['round']}"
    axes.set(xlabel="clients, by budget", ylabel="layer", title=title)
    figure.colorbar(image, ax=axes, label="bits")
    return figure


def bytes_against_accuracy(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws test accuracy by megabytes sent so far, both ways, of runs by name."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, result in results.items():
        rounds = result["rounds"]
        bits = [record["uplink_bits"] + record["downlink_bits"] for record in rounds]
        accuracy = [100 * record["test_accuracy"] for record in rounds]
        sent = np.cumsum(bits) / _BITS_PER_MEGABYTE
        axes.plot(sent, accuracy, marker=".", label=name)
    axes.set(xlabel="MB sent, all clients, both ways", ylabel="test accuracy, %")
    axes.set(title="What an accuracy costs", ylim=(0, 100))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def partition(partition: Partition, labels: np.ndarray) -> Figure:
    """Draws the number of examples of each client, by class of `labels`, int[n].

    More than 20 classes, or labels that are no whole numbers, are not told apart.
    """
    labels = np.asarray(labels)
    classes = (
        np.unique(labels) if labels.ndim == 1 and labels.dtype.kind in "iu" else []
    )
    size = 8, _inches(1, 0.25 * partition.num_clients)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = figure.subplots()
    if 1 <= len(classes) <= _MAX_CLASSES:
        shares = [labels[indices] for indices in partition.client_indices]
        left = np.zeros(partition.num_clients, int)
        for label in classes:
            counts = np.array([np.count_nonzero(share == label) for share in shares])
            axes.barh(partition.client_ids, counts, left=left, label=str(label))
            left += counts
        axes.legend(
            title="class", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
        )
    else:
        axes.barh(partition.client_ids, partition.sizes)
    axes.invert_yaxis()
    if partition.num_clients > _MAX_NAMES:
        axes.set_yticks([])
    title = ", ".join(filter(None, [partition.dataset, partition.method]))
    if partition.alpha is not None:
        title += f"({partition.alpha:g})"
    axes.set(xlabel="examples", ylabel="client", title=title)
    return figure


def _inches(margin: float, size: float) -> float:
    return float(np.clip(margin + size, 3, 16))


def _count_rounds(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


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
        sent = np.cumsum(bits) / _BITS_PER_MEGABYTE
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
