"""Figures of the study: accuracy by round, a line for each group of runs, as SVG."""

from __future__ import annotations

import hashlib
import io
import pathlib
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tff_fedmpq.simulation.files import PathLike, write_atomically


def plot_accuracies(curves: Mapping[str, np.ndarray], path: PathLike) -> None:
    """Draws the mean over seeds, and from the least to the greatest as a band.

    The file has no date, and says of which curves it is: their `digest`.

    Args:
      curves: label -> accuracy in %, float[seeds, rounds].
      path: of the SVG file; its folder is made.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, accuracy in curves.items():
        numbers = np.arange(1, accuracy.shape[1] + 1)
        legend = f"{label} ({len(accuracy)})"
        axes.plot(numbers, accuracy.mean(axis=0), label=legend)
        if len(accuracy) > 1:
            least, greatest = accuracy.min(axis=0), accuracy.max(axis=0)
            axes.fill_between(numbers, least, greatest, alpha=0.2)
    axes.set(xlabel="round", ylabel="accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="mean (number of seeds)", title_fontsize=8)
    about = {"Date": None, "Creator": None, "Description": f"content: {digest(curves)}"}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tff_fedmpq"}):  # Else ids are random.
        figure.savefig(content, format="svg", metadata=about)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def digest(curves: Mapping[str, np.ndarray]) -> str:
    """Returns what tells curves apart from others, whatever draws them."""
    texts = (
        f"{label}: {accuracy.round(6).tolist()}" for label, accuracy in curves.items()
    )
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
