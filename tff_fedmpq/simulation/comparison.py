"""Several schemes on the same partition, participants, initial weights and batches.

    OUTPUT/<scheme>/seed<seed>/   a run each (`experiment`)
    OUTPUT/table.{txt,csv,json}   a row per scheme: mean and deviation over seeds
    OUTPUT/comparison.png         accuracy against rounds, and against megabytes sent

All runs of a seed share everything but the scheme: partition, participants of a round,
initial weights, order of the examples and augmentation are functions of the seed alone.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

import numpy as np
from absl import logging
from matplotlib.figure import Figure

from tff_fedmpq.federated.schemes import ALL_SCHEMES
from tff_fedmpq.simulation import datasets
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.experiment import (
    DivergenceError,
    build_config_scheme,
    check_output_dir,
    run_experiment,
)
from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE
from tff_fedmpq.simulation.partition import Partition


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """What a table says of one scheme; means are over seeds.

    Attributes:
      scheme: its name.
      precision: bits of update, weight and activation; "v" is a client's budget.
      seeds: how many runs.
      accuracy: test accuracy after the last round, %, mean.
      accuracy_deviation: its standard deviation over seeds (0 for a single one).
      uplink_megabytes: sent up by all clients in all rounds.
      downlink_megabytes: sent down.
      uplink_megabytes_per_round: of all clients.
      downlink_megabytes_per_round: of all clients.
      compression: bits up that float32 would have taken, over bits up.
      seconds: of a run.
    """

    scheme: str
    precision: str
    seeds: int
    accuracy: float
    accuracy_deviation: float
    uplink_megabytes: float
    downlink_megabytes: float
    uplink_megabytes_per_round: float
    downlink_megabytes_per_round: float
    compression: float
    seconds: float


def check_schemes(schemes: Sequence[str]) -> None:
    """Checks names of schemes.

    Raises:
      ValueError: naming those that exist, if one does not or stands twice.
    """
    unknown = [scheme for scheme in schemes if scheme not in ALL_SCHEMES]
    if unknown or not schemes:
        raise ValueError(
            f"Unknown schemes {unknown}; choose among {list(ALL_SCHEMES)}."
        )
    if len(set(schemes)) < len(schemes):
        raise ValueError(f"A scheme stands twice in {list(schemes)}.")


def run_comparison(
    make_config: Callable[..., ExperimentConfig],
    schemes: Sequence[str],
    seeds: Sequence[int],
    output_dir: str | os.PathLike[str],
    *,
    scheme_options: Mapping[str, Mapping[str, Any]] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    announce: Callable[[str], None] = logging.info,
) -> list[ComparisonRow]:
    """Runs all schemes with all seeds, one after the other, and writes the table.

    What is finished in `output_dir` is not redone; what was interrupted goes on; what
    diverges is left out of the table.

    Args:
      make_config: returns the configuration of a run from `scheme`, `seed` and
        `scheme_options`, so that what is a scheme's own is that of each.
      schemes: their names.
      seeds: of the runs.
      output_dir: where everything goes.
      scheme_options: scheme -> its own options.
      data_dir: where the data set lies.
      announce: called with a line before each run, and for each that diverged.

    Raises:
      ValueError: for an unknown scheme or option, or if a run that was begun is of
        another configuration or data set; before anything is run.
      DivergenceError: if all of them diverge.
    """
    check_schemes(schemes)
    if not seeds:
        raise ValueError("Expected at least one seed.")
    output_dir = pathlib.Path(output_dir).expanduser()
    options = scheme_options or {}
    configs = {
        (scheme, seed): make_config(
            scheme=scheme, seed=seed, scheme_options=options.get(scheme, {})
        )
        for seed in seeds
        for scheme in schemes
    }
    for run_config in configs.values():
        build_config_scheme(run_config)  # Fails early on options that do not exist.
    directories = {
        (scheme, seed): output_dir / scheme / f"seed{seed}" for scheme, seed in configs
    }
    dataset = datasets.load(next(iter(configs.values())).dataset, data_dir)
    _check_same_data(dataset.name, directories.values())
    for key, run_config in configs.items():
        check_output_dir(directories[key], run_config, resume=True)
    results: dict[str, list[Mapping[str, Any]]] = {scheme: [] for scheme in schemes}
    for (scheme, seed), run_config in configs.items():
        announce(f"== {scheme}, seed {seed}")
        directory = directories[scheme, seed]
        try:
            result = run_experiment(
                run_config, directory, data_dir=data_dir, resume=True
            )
        except DivergenceError as error:
            announce(f"Left out of the table: {scheme}, seed {seed}. {error}")
        else:
            results[scheme].append(result)
    finished = {scheme: runs for scheme, runs in results.items() if runs}
    if not finished:
        raise DivergenceError("All runs diverged; there is nothing to compare.")
    rows = [summarise(runs) for runs in finished.values()]
    write_tables(rows, output_dir)
    plot_comparison(finished, output_dir / "comparison.png")
    return rows


def _check_same_data(name: str, directories: Iterable[pathlib.Path]) -> None:
    """Checks that runs that were begun are of the data set that others will be of."""
    for directory in directories:
        path = directory / "partition.json"
        if path.exists() and (begun := Partition.load(path).dataset) != name:
            raise ValueError(
                f"{directory} holds a run on {begun}, and the others would be on "
                f"{name}: name the data set, and use a directory for each."
            )


def summarise(runs: Sequence[Mapping[str, Any]]) -> ComparisonRow:
    """Returns the row of one scheme from the results of its seeds."""
    final = 100 * np.array([run["rounds"][-1]["test_accuracy"] for run in runs])
    rounds = len(runs[0]["rounds"])
    up = _mean_megabytes(runs, "uplink_bits")
    down = _mean_megabytes(runs, "downlink_bits")
    return ComparisonRow(
        scheme=runs[0]["scheme"],
        precision=runs[0]["precision"],
        seeds=len(runs),
        accuracy=float(final.mean()),
        accuracy_deviation=float(final.std(ddof=1)) if len(runs) > 1 else 0.0,
        uplink_megabytes=up,
        downlink_megabytes=down,
        uplink_megabytes_per_round=up / rounds,
        downlink_megabytes_per_round=down / rounds,
        compression=_float_megabytes(runs) / up,
        seconds=float(np.mean([_total(run, "seconds") for run in runs])),
    )


def _total(run: Mapping[str, Any], key: str) -> float:
    return sum(record[key] for record in run["rounds"])


def _mean_megabytes(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([_total(run, key) for run in runs])) / BITS_PER_MEGABYTE


def _float_megabytes(runs: Sequence[Mapping[str, Any]]) -> float:
    """Returns what the same messages of float32 models would have taken."""
    messages = np.mean([sum(len(r["clients"]) for r in run["rounds"]) for run in runs])
    return float(messages) * 32 * runs[0]["model_weights"] / BITS_PER_MEGABYTE


def format_table(rows: Sequence[ComparisonRow]) -> str:
    """Returns rows as an aligned table of text."""
    width = max(len(name) for name in ("scheme", *(row.scheme for row in rows)))
    header = (
        f"{'scheme':<{width}} {'bits u/w/a':>10} {'accuracy, %':>15} {'up MB':>9} "
        f"{'per round':>9} {'down MB':>9} {'per round':>9} {'ratio':>6} {'seconds':>8}"
    )
    lines = [header, "-" * len(header)]
    for row in rows:
        accuracy = f"{row.accuracy:.2f}"
        if row.seeds > 1:
            accuracy += f" +- {row.accuracy_deviation:.2f}"
        lines.append(
            f"{row.scheme:<{width}} {row.precision:>10} {accuracy:>15} "
            f"{row.uplink_megabytes:>9.3f} {row.uplink_megabytes_per_round:>9.3f} "
            f"{row.downlink_megabytes:>9.3f} {row.downlink_megabytes_per_round:>9.3f} "
            f"{row.compression:>6.2f} {row.seconds:>8.0f}"
        )
    lines.append(
        "accuracy: after the last round, mean +- deviation over seeds; MB: of all "
        "clients; ratio: float32 over bits up."
    )
    return "\n".join(lines)


def write_tables(rows: Sequence[ComparisonRow], output_dir: pathlib.Path) -> None:
    """Writes `table.txt`, `table.csv` and `table.json`."""
    records = [dataclasses.asdict(row) for row in rows]
    (output_dir / "table.txt").write_text(format_table(rows) + "\n")
    (output_dir / "table.json").write_text(json.dumps(records, indent=1) + "\n")
    with open(output_dir / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def plot_comparison(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike[str],
) -> None:
    """Draws accuracy against rounds and against megabytes, means over seeds.

    Args:
      results: scheme -> results of its runs, of equally many rounds.
      path: of the PNG file.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    by_round, by_size = figure.subplots(1, 2, sharey=True)
    for scheme, runs in results.items():
        accuracy = 100 * np.array(
            [[record["test_accuracy"] for record in run["rounds"]] for run in runs]
        )
        sent = np.cumsum(
            [
                [r["uplink_bits"] + r["downlink_bits"] for r in run["rounds"]]
                for run in runs
            ],
            axis=1,
        )
        rounds = np.arange(1, accuracy.shape[1] + 1)
        by_round.plot(rounds, accuracy.mean(axis=0), marker=".", label=scheme)
        megabytes = sent.mean(axis=0) / BITS_PER_MEGABYTE
        by_size.plot(megabytes, accuracy.mean(axis=0), marker=".", label=scheme)
    by_round.set(xlabel="round", ylabel="test accuracy, %")
    by_size.set(xlabel="MB sent, both directions, all clients", xscale="log")
    for axes in (by_round, by_size):
        axes.grid(alpha=0.3)
    by_round.legend()
    figure.savefig(path, dpi=110)
