"""What `compare.py` does: the runs, and a table and a figure of their results.

    OUTPUT/<scheme>/seed<seed>/   a run each (`tff_fedmpq.simulation.experiment`)
    OUTPUT/table.{txt,csv,json}   a row per scheme: mean and deviation over seeds
    OUTPUT/comparison.png         accuracy by round, and by megabytes sent

All runs of a seed share everything but the scheme: partition, participants, initial
weights, order of the examples and augmentation are functions of the seed.
"""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import tabulate
from absl import logging
from matplotlib.figure import Figure

from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation.config import ExperimentConfig, Workers
from tff_fedmpq.simulation.experiment import DivergenceError, run_experiment
from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE
from tff_fedmpq.simulation.run_files import check_output_dir

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def run_comparison(
    configs: Mapping[str, Sequence[ExperimentConfig]],
    output_dir: PathLike,
    *,
    data_dir: PathLike | None = None,
    workers: Workers | None = None,
    announce: Callable[[str], None] = logging.info,
) -> list[dict[str, Any]]:
    """Runs all schemes with all seeds, one after the other, and writes the table.

    Finished runs in `output_dir` are not redone, interrupted ones continue, and those
    that diverge are left out of the table. `announce` is called with a line before each
    run, and for each that diverged.

    Returns:
      The rows of the table (`summarise`).

    Raises:
      ValueError: if a run that was begun is of another configuration, before anything
        is run; or for settings that a scheme refuses.
      DivergenceError: if all of them diverge.
    """
    output_dir = pathlib.Path(output_dir).expanduser()
    runs = [
        (scheme, config, output_dir / scheme / f"seed{config.seed}")
        for scheme, configs_of_scheme in configs.items()
        for config in configs_of_scheme
    ]
    for _, config, directory in runs:
        check_output_dir(directory, config, resume=True)
    elsewhere: dict[str, Any] = {"workers": workers} if workers else {}
    results: dict[str, list[Mapping[str, Any]]] = {}
    for scheme, config, directory in runs:
        announce(f"== {scheme}, seed {config.seed}")
        try:
            result = run_experiment(
                config, directory, data_dir=data_dir, resume=True, **elsewhere
            )
        except DivergenceError as error:
            announce(f"Left out of the table: {error}")
        else:
            results.setdefault(scheme, []).append(result)
    if not results:
        raise DivergenceError("All runs diverged; there is nothing to compare.")
    rows = [summarise(scheme, results[scheme]) for scheme in results]
    write_tables(rows, output_dir)
    plot_comparison(results, output_dir / "comparison.png")
    return rows


def summarise(scheme: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the row of one scheme from the results of its seeds.

    scheme, precision: its name; bits of updates, weights, activations: v is a client's
      budget, int(v) that of which a scheme uses whole bits only.
    seeds: number of runs.
    accuracy, accuracy_std: test accuracy after the last round, %, mean and standard
      deviation over seeds (None for one seed).
    uplink_megabytes, downlink_megabytes: sent by and to all clients in all rounds.
    compression: size of float32 messages over that of the scheme's, both directions.
    seconds: duration of a run.
    """
    final = 100 * np.array([run["rounds"][-1]["test_accuracy"] for run in runs])
    up, down = (
        np.mean([_total(run, key) for run in runs]) / BITS_PER_MEGABYTE
        for key in ("uplink_bits", "downlink_bits")
    )
    messages = np.mean([sum(len(r["clients"]) for r in run["rounds"]) for run in runs])
    float32 = 2 * messages * 32 * runs[0]["model_weights"] / BITS_PER_MEGABYTE
    return {
        "scheme": scheme,
        "precision": runs[0]["precision"],
        "seeds": len(runs),
        "accuracy": float(final.mean()),
        "accuracy_std": float(final.std(ddof=1)) if len(runs) > 1 else None,
        "uplink_megabytes": float(up),
        "downlink_megabytes": float(down),
        "compression": float(float32 / (up + down)),
        "seconds": float(np.mean([_total(run, "seconds") for run in runs])),
    }


def _total(run: Mapping[str, Any], key: str) -> float:
    return sum(record[key] for record in run["rounds"])


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as a table of text."""
    headers = {
        "scheme": "scheme",
        "precision": "bits u/w/a",
        "seeds": "seeds",
        "accuracy": "accuracy, %",
        "accuracy_std": "std",
        "uplink_megabytes": "up, MB",
        "downlink_megabytes": "down, MB",
        "compression": "compression",
        "seconds": "seconds",
    }
    return tabulate.tabulate(
        rows,
        headers,
        floatfmt=("", "", "", ".2f", ".2f", ".3f", ".3f", ".2f", ".0f"),
        missingval="-",
    )


def write_tables(rows: Sequence[Mapping[str, Any]], output_dir: pathlib.Path) -> None:
    """Writes `table.txt`, `table.csv` and `table.json`."""
    (output_dir / "table.txt").write_text(format_table(rows) + "\n")
    (output_dir / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    with open(output_dir / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plot_comparison(results: Results, path: PathLike) -> None:
    """Draws accuracy by round and by megabytes, means over seeds, to a PNG file.

    All runs of a scheme have equally many rounds.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    by_round, by_size = figure.subplots(1, 2, sharey=True)
    for scheme, runs in results.items():
        accuracy = np.mean(
            [[100 * r["test_accuracy"] for r in run["rounds"]] for run in runs], axis=0
        )
        bits = [
            [r["uplink_bits"] + r["downlink_bits"] for r in run["rounds"]]
            for run in runs
        ]
        sent = np.mean(bits, axis=0)
        by_round.plot(range(1, len(accuracy) + 1), accuracy, marker=".", label=scheme)
        by_size.plot(np.cumsum(sent) / BITS_PER_MEGABYTE, accuracy, marker=".")
    by_round.set(xlabel="round", ylabel="test accuracy, %")
    by_size.set(xlabel="MB sent, both directions, all clients", xscale="log")
    for axes in (by_round, by_size):
        axes.grid(alpha=0.3)
    by_round.legend()
    figure.savefig(path, dpi=110)
