"""Timing side by side, and what every benchmark's result file has in common.

Times on a shared machine drift, so figures are ratios: all candidates are run in one
process, one after the other, in an order that is turned round at every repeat, and a
ratio is the median of the ratios within repeats.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq import processor
from tff_fedmpq.simulation import provenance

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "performance"

MIN_REPEATS = 5

_VECTOR_INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"}


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds per call of several candidates.

    Attributes:
      seconds: candidate -> float64[repeats], wall-clock seconds per call.
      cpu_seconds: as `seconds`, of this process's processor time, all threads.
    """

    seconds: Mapping[str, np.ndarray]
    cpu_seconds: Mapping[str, np.ndarray]

    def median(self, candidate: str) -> float:
        """Returns the median of a candidate's seconds per call."""
        return float(np.median(self.seconds[candidate]))

    def ratio(self, candidate: str, baseline: str) -> float:
        """Returns the median over repeats of candidate / baseline."""
        return float(np.median(self.seconds[candidate] / self.seconds[baseline]))

    def spread(self, candidate: str, baseline: str) -> list[float]:
        """Returns the first and the third quartile of the ratio."""
        ratios = self.seconds[candidate] / self.seconds[baseline]
        return [float(q) for q in np.quantile(ratios, [0.25, 0.75])]

    def rows(self, baseline: str) -> list[dict[str, Any]]:
        """Returns a row per candidate, compared with the baseline."""
        return [
            {
                "candidate": name,
                "ms": 1e3 * self.median(name),
                "cpu_ms": 1e3 * float(np.median(self.cpu_seconds[name])),
                "ratio": self.ratio(name, baseline),
                "ratio_quartiles": self.spread(name, baseline),
            }
            for name in self.seconds
        ]


def time_alternately(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 2 * MIN_REPEATS + 1,
    calls: int = 1,
    warmup: int = 3,
) -> Timings:
    """Times candidates side by side.

    Args:
      candidates: name -> function that does its work before it returns (a TensorFlow
        result has to be fetched in it).
      repeats: how often each candidate's turn comes, at least 5.
      calls: calls per turn.
      warmup: calls of each candidate before anything is timed.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats has to be at least {MIN_REPEATS}, found {repeats}.")
    for function in candidates.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats):
        order = list(candidates) if repeat % 2 == 0 else list(candidates)[::-1]
        for name in order:
            started, cpu_started = time.perf_counter(), time.process_time()
            for _ in range(calls):
                candidates[name]()
            seconds[name].append((time.perf_counter() - started) / calls)
            cpu_seconds[name].append((time.process_time() - cpu_started) / calls)
    return Timings(
        {name: np.array(values) for name, values in seconds.items()},
        {name: np.array(values) for name, values in cpu_seconds.items()},
    )


def bar(what: str, measured: float, *, at_most: float | None = None, at_least=None):
    """Returns a bar and whether it is met, ready for JSON.

    Args:
      what: the quantity, with its unit.
      measured: its value.
      at_most: the largest value that meets the bar, or
      at_least: the smallest.
    """
    met = measured <= at_most if at_most is not None else measured >= at_least
    limit = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"
    return {"what": what, "bar": limit, "measured": measured, "met": bool(met)}


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser of the flags that every benchmark has.

    Args:
      description: the benchmark's docstring.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="result file (default: docs/results/performance/<benchmark>.json)",
    )
    return parser


def environment() -> dict[str, Any]:
    """Returns what the figures depend on: code, machine, versions and threads."""
    features = processor.processor_features()
    return {
        "commit": provenance.find_commit(),
        "processor": processor.processor_name(),
        "vector_instructions": sorted(features & _VECTOR_INSTRUCTIONS),
        "onednn": processor.onednn_setting(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "preloaded": os.environ.get("LD_PRELOAD", ""),
    }


def save(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    bars: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any],
    *,
    output: str | os.PathLike[str] | None = None,
    **details: Any,
) -> pathlib.Path:
    """Prints a benchmark's table and writes its result file; returns the file's path.

    Args:
      name: of the benchmark.
      rows: the table; all with the same keys.
      bars: what the project asks of the figures (see `bar`).
      before: `environment()` as it was before the measurement.
      output: the result file; by default `docs/results/performance/<name>.json`.
      **details: anything else worth keeping.
    """
    print_table(name, rows)
    for entry in bars:
        verdict = "met" if entry["met"] else "MISSED"
        print(f"  {entry['what']}: {entry['measured']:.4g} ({entry['bar']}) {verdict}")
    result = {
        "benchmark": name,
        "command": _command(),
        "environment": dict(before),
        "rows": list(rows),
        "bars": list(bars),
        **details,
    }
    path = pathlib.Path(output) if output else RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"  -> {path}")
    return path


def _command() -> str:
    """Returns the command line; of folders of this machine only the last part."""
    words = ["python", "-m", f"benchmarks.{pathlib.Path(sys.argv[0]).stem}"]
    return " ".join(
        words + [re.sub(r"(^|=)/\S*/", r"\1", word) for word in sys.argv[1:]]
    )


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as an aligned table."""
    cells = [[_format(value) for value in row.values()] for row in rows]
    columns = [list(rows[0]), *cells]
    widths = [max(len(line[i]) for line in columns) for i in range(len(columns[0]))]
    print(title)
    for line in columns:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths)))


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "-".join(_format(v) for v in value)
    return str(value)
