"""Runs a study: `python studies/run.py populations --seeds=0,1,2 --list`.

A run whose result file exists is not repeated, an interrupted one continues from its
last checkpoint in the work directory. The exit code is 0 if all selected runs are
finished, 1 if one diverged or could not run (its data set is missing, for example), 2
if the study or an argument is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import logging
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

# TensorFlow's start-up notes say nothing about a run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from studies import results  # noqa: E402
from studies.definitions import Cell, Study, build_config, load_study  # noqa: E402
from studies.time_left import TimeLeft, count_rounds  # noqa: E402
from tff_fedmpq.simulation.config import Workers  # noqa: E402

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Changes the rounding of a run, not what it is.
_IMMATERIAL = ("compute",)
# Settings that came later, and what earlier runs did.
_BEFORE = {"step_rounding": "nearest"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      cell: Its configuration.
      seed: Its seed.
      config: Both as an `ExperimentConfig`.
      result_path: Path of its result file.
      work_dir: Directory of its checkpoints.
    """

    cell: Cell
    seed: int
    config: Any
    result_path: pathlib.Path
    work_dir: pathlib.Path

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.cell.id}/seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """Returns all settings as they are in the result file."""
        return json.loads(json.dumps(self.config.as_dict()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code."""
    arguments = _parse(argv)
    try:
        study = load_study(arguments.study)
        if arguments.document:
            from studies import document  # SciPy takes a second.

            path = document.write_page(study, arguments.results_dir, arguments.docs_dir)
            print(f"Wrote {path}.")
            return 0
        runs = list(plan(study, arguments))
        if arguments.list:
            print(format_list(runs))
            return 0
        return run_all(study, runs, arguments.data_dir, _workers(arguments))
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        return 130


def plan(study: Study, arguments: argparse.Namespace) -> Iterator[Run]:
    """Yields the selected runs, by seed and then by group."""
    patterns = arguments.runs.split(",") if arguments.runs else ["*"]
    for pattern in patterns:
        if not fnmatch.filter([cell.id for cell in study.cells], pattern):
            known = "\n  ".join(cell.id for cell in study.cells)
            raise ValueError(f"No run matches {pattern!r}; there are:\n  {known}")
    cells = {c.id: c for group in study.groups for c in study.cells_of(group)}
    for seed in arguments.seeds or study.seeds:
        for cell in cells.values():
            if any(fnmatch.fnmatchcase(cell.id, pattern) for pattern in patterns):
                place = pathlib.Path(study.name, cell.id)
                yield Run(
                    cell,
                    seed,
                    build_config(cell, seed),
                    arguments.results_dir / place / f"seed{seed}.json",
                    arguments.work_dir / place / f"seed{seed}",
                )


def format_list(runs: Sequence[Run]) -> str:
    """Returns a line per run with its state, and how many are left."""
    states = [describe_state(run) for run in runs]
    width = max(len(run.name) for run in runs)
    lines = [f"{run.name:<{width}}  {state}" for run, state in zip(runs, states)]
    done = states.count(results.FINISHED)
    return "\n".join([*lines, f"{done} of {len(runs)} finished."])


def describe_state(run: Run) -> str:
    """Returns "finished", "diverged", "round 3 of 30", "not run" or a difference."""
    record = results.read_record(run.result_path)
    if record is not None:
        return find_difference(run, record) or record["state"]
    done = count_rounds(run.work_dir)
    return f"round {done} of {run.settings()['rounds']}" if done else "not run"


def find_difference(run: Run, record: dict[str, Any]) -> str:
    """Returns how the settings of a result file differ from the run's, or ""."""
    wanted = run.settings()
    before = {name: _BEFORE[name] for name in _BEFORE if name in wanted}
    present = {**before, **record["settings"]}
    names = sorted((present.keys() | wanted.keys()) - set(_IMMATERIAL))
    differing = [
        f"{name}: {present.get(name)!r} there, {wanted.get(name)!r} here"
        for name in names
        if present.get(name) != wanted.get(name)
    ]
    if not differing:
        return ""
    return f"{run.result_path} has other settings ({'; '.join(differing)})"


def run_all(
    study: Study, runs: Sequence[Run], data_dir: str | None, workers: Any = None
) -> int:
    """Runs what is not finished; one failure does not keep the others from running.

    Returns:
      The exit code.
    """
    problems = []
    for index, run in enumerate(runs):
        record = results.read_record(run.result_path)
        problem = find_difference(run, record) if record else ""
        if record is None:
            print(f"== {run.name} ({index + 1} of {len(runs)})", flush=True)
            later = sum(not other.result_path.exists() for other in runs[index + 1 :])
            with TimeLeft(run.work_dir, run.settings()["rounds"], later):
                record, problem = run_one(study, run, data_dir, workers)
        if record and record["state"] == results.DIVERGED:
            problem = problem or record["error"]
        if problem:
            problems.append(f"{run.name}: {problem}")
    print(f"{len(runs) - len(problems)} of {len(runs)} runs are finished.")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def run_one(
    study: Study, run: Run, data_dir: str | None, workers: Any = None
) -> tuple[dict[str, Any] | None, str]:
    """Runs one run to its end and writes its result file.

    Returns:
      The content of the file, or None and why the run could not be made.
    """
    experiment = _load_experiment()
    heading = {
        "study": study.name,
        "run": run.cell.id,
        "seed": run.seed,
        "command": command_of(study, run),
        "settings": run.settings(),
    }
    # A study's own configuration may alter what it runs on.
    around = getattr(getattr(run.config, "scheme", None), "around_run", None)
    try:
        with around(experiment, run.config) if around else contextlib.nullcontext():
            result = experiment.run_experiment(
                run.config,
                run.work_dir,
                data_dir=data_dir,
                resume=True,
                **({"workers": workers} if workers else {}),
            )
        record = results.finished_record(heading, result)
    except experiment.DivergenceError as error:
        provenance = experiment.provenance.describe()
        record = results.diverged_record(heading, error, provenance)
    # Missing data, a work directory of another run, no worker left.
    except (ValueError, ConnectionError) as error:
        return None, str(error)
    except RuntimeError as error:
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"
    results.write_record(run.result_path, record)
    return record, ""


def command_of(study: Study, run: Run) -> str:
    """Returns the command that repeats a run."""
    runs = shlex.quote(run.cell.id)
    return f"python studies/run.py {study.name} --runs={runs} --seeds={run.seed}"


def _load_experiment() -> Any:
    """Returns the module that imports TensorFlow, which takes seconds."""
    from tff_fedmpq.simulation import experiment

    return experiment


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", help="name of a TOML file in studies/, or its path")
    parser.add_argument("--runs", help="patterns of run names, separated by commas")
    parser.add_argument(
        "--seeds", type=_seeds, help="such as 0,1,2; default: the study's"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the state of each run"
    )
    parser.add_argument(
        "--document",
        action="store_true",
        help="write the page from the results",
    )
    parser.add_argument("--data_dir", help="directory of the data sets")
    parser.add_argument("--workers", help="addresses of workers, see docs/workers.md")
    parser.add_argument("--tls_dir", help="certificate of this machine, for workers")
    parser.add_argument("--clients_dir", help="clients' files, which workers need")
    for name, default in (
        ("work_dir", _ROOT / "runs/studies"),
        ("results_dir", _ROOT / "studies/results"),
        ("docs_dir", _ROOT / "docs/studies"),
    ):
        parser.add_argument(f"--{name}", type=pathlib.Path, default=default)
    return parser.parse_args(argv)


def _workers(arguments: argparse.Namespace) -> Workers | None:
    if not arguments.workers:
        return None
    addresses = tuple(arguments.workers.split(","))
    return Workers(addresses, arguments.tls_dir, clients_dir=arguments.clients_dir)


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
