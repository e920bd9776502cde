"""Figures of the study: accuracy by round, a line for each group of runs, as SVG."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping

import matplotlib
import numpy as np

from tff_fedmpq.simulation.files import PathLike, write_atomically

matplotlib.use("Agg")  # Before pyplot: a document needs no screen.
from matplotlib import pyplot as plt  # noqa: E402


def plot_accuracies(curves: Mapping[str, np.ndarray], path: PathLike) -> None:
    """Draws the mean over seeds, and from the least to the greatest as a band.

    The same curves give the same file: it has no date, and no ids drawn at random.

    Args:
      curves: label -> accuracy in %, float[seeds, rounds].
      path: of the SVG file; its folder is made.
    """
    with matplotlib.rc_context({"svg.hashsalt": "tff_fedmpq"}):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for label, accuracy in curves.items():
            numbers = np.arange(1, accuracy.shape[1] + 1)
            legend = f"{label} ({len(accuracy)})"
            axes.plot(numbers, accuracy.mean(axis=0), label=legend)
            least, greatest = accuracy.min(axis=0), accuracy.max(axis=0)
            axes.fill_between(numbers, least, greatest, alpha=0.2)
        axes.set(xlabel="round", ylabel="accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, title="mean (number of seeds)", title_fontsize=8)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
        plt.close(figure)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
