"""Reproduces the paper's tables, cell by cell, over as many days as it takes.

    python examples/reproduce.py table1 --list
    python examples/reproduce.py table1 --cells='table1/cifar10/alpha0.5/*'
    python examples/reproduce.py study --preset=reduced
    python examples/reproduce.py --report_only

A table is table1, table2, table3, table4, figure2, or study (questions of our own).
What is finished is not redone; what was interrupted goes on. Says how long all will
take before it starts. After each cell, its result is in --results_dir, and --document
and --study are written anew from the results there. The results that come with the
project are in the default one: --results_dir=runs/results --output_dir=runs/again runs
a cell again, and leaves them as they are.
"""

from __future__ import annotations

import os
import pathlib

# TensorFlow's start-up notes say nothing about a run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import signal  # noqa: E402
import sys  # noqa: E402

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from tff_fedmpq.simulation.compute import AUTO, DTYPE_POLICIES  # noqa: E402
from tff_fedmpq.simulation.config import parse_seeds  # noqa: E402
from tff_fedmpq.simulation.reproduction import (  # noqa: E402
    cells,
    document,
    runner,
    study_document,
)
from tff_fedmpq.simulation.reproduction.cost import (  # noqa: E402
    CostEstimator,
    Speed,
)

_PRESET = flags.DEFINE_enum(
    "preset",
    "paper",
    sorted(cells.PRESETS),
    "'paper': its protocol, hours for a cell; 'reduced': fewer images, rounds, epochs; "
    "'tuning': as 'reduced', without test images: for choosing settings.",
)
_CELLS = flags.DEFINE_list(
    "cells", [], "Patterns of ids, such as 'table1/cifar10/*/fedmpq'; by default all."
)
_SEEDS = flags.DEFINE_list(
    "seeds", None, "A run of every cell for each; by default 0, of the study 0 and 1."
)
_COMPUTE = flags.DEFINE_enum(
    "compute",
    cells.DEFAULT_COMPUTE,
    sorted([AUTO, *DTYPE_POLICIES]),
    "What layers on clients compute in ('auto': see cifar10_fedmpq.py). A cell that is "
    "finished in the other is not redone.",
)
_LIST = flags.DEFINE_bool(
    "list", False, "Only tell what is done, what is to do, and how long it will take."
)
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Only write the document.")
_SPEED = flags.DEFINE_float(
    "images_per_second",
    None,
    "Speed of training for the estimate of time, instead of measuring it.",
    lower_bound=1e-6,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Directory of the extracted data sets; see cifar10_fedmpq.py."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/reproduce", "Where runs and their checkpoints go."
)
_DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
_OUR_RESULTS = _DOCS / "results" / "reproduction"
_RESULTS_DIR = flags.DEFINE_string(
    "results_dir",
    None,
    "Where a small file per result goes; by default docs/results/reproduction of the "
    "project. With another folder, and another --output_dir, a cell runs again.",
)
_DOCUMENT = flags.DEFINE_string(
    "document",
    None,
    "Written from the files in --results_dir; by default docs/reproduction.md, or "
    "reproduction.md in another --results_dir.",
)
_STUDY = flags.DEFINE_string(
    "study",
    None,
    "Written from --study_template and the same files; by default docs/study.md, or "
    "study.md in another --results_dir.",
)
_STUDY_TEMPLATE = flags.DEFINE_string(
    "study_template",
    None,
    "Text whose placeholders stand for results; by default docs/study.template.md of "
    "the project. Without such a file, no study.",
)
# Evaluation has no backward pass; only for --images_per_second.
_EVALUATION_SPEED_UP = 2.0


def main(argv: list[str]) -> int:
    """Runs what the flags say; user errors end in one line."""
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")  # Warns of each network whose speed is measured.
    # Ends like Ctrl-C, which leaves a note of how far the cell has got.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        results_dir = _results_dir()
        if not _REPORT_ONLY.value:
            _run(_read_table(argv), results_dir)
        elif not results_dir.is_dir():
            raise ValueError(f"There is no directory {results_dir} of results.")
        if not _LIST.value:
            _write_documents(results_dir)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _read_table(argv: list[str]) -> str:
    if len(argv) != 2 or argv[1] not in cells.TABLES:
        found = " ".join(argv[1:]) or "nothing"
        raise ValueError(f"Expected one of {', '.join(cells.TABLES)}; found {found}.")
    return argv[1]


def _results_dir() -> pathlib.Path:
    if _RESULTS_DIR.value is None:
        return _OUR_RESULTS
    return pathlib.Path(_RESULTS_DIR.value).expanduser().resolve()


def _run(table: str, results_dir: pathlib.Path) -> None:
    seeds = cells.DEFAULT_SEEDS[table]
    if _SEEDS.value:
        seeds = parse_seeds(_SEEDS.value)
    selected = cells.select(
        cells.expand(table, _PRESET.value, seeds, _COMPUTE.value), _CELLS.value
    )
    speed = None
    if not _SPEED.value:
        print("Measuring how fast local training is ...", flush=True)
    else:
        speed = Speed(_SPEED.value, _EVALUATION_SPEED_UP * _SPEED.value)
    planned = runner.plan(
        selected,
        _OUTPUT_DIR.value,
        results_dir,
        CostEstimator(_DATA_DIR.value, speed),
    )
    print(runner.format_plan(planned))
    print(
        f"Results: {results_dir / _PRESET.value}. What is finished there runs "
        "again under another --results_dir and --output_dir.",
        flush=True,
    )
    if not _LIST.value:
        _write_documents(results_dir)  # What is wrong shows before hours of training.
        runner.run_cells(
            planned,
            _OUTPUT_DIR.value,
            results_dir,
            data_dir=_DATA_DIR.value,
            announce=lambda line: print(line, flush=True),
            on_result=lambda: _try_to_write_documents(results_dir),
        )


def _try_to_write_documents(results_dir: pathlib.Path) -> None:
    """Files may have been changed while a cell ran; that must not end the others."""
    try:
        _write_documents(results_dir)
    except (ValueError, OSError) as error:
        print(f"The documents could not be written: {error}", file=sys.stderr)


def _write_documents(results_dir: pathlib.Path) -> None:
    folder = _DOCS if results_dir == _OUR_RESULTS else results_dir
    document_path = _DOCUMENT.value or folder / "reproduction.md"
    document.write_document(results_dir, document_path)
    template = _STUDY_TEMPLATE.value or _DOCS / "study.template.md"
    if os.path.exists(template):
        study_path = _STUDY.value or folder / "study.md"
        study_document.write_study(results_dir, template, study_path)


if __name__ == "__main__":
    app.run(main)
