"""Runs cells one after the other; interrupted and started again, it goes on.

OUTPUT/<preset>/<result id>/        the run: checkpoints, result.json (`experiment`)
RESULTS/<preset>/<result id>.json   what is kept of it (`results`)
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from tff_fedmpq.simulation.datasets import DatasetNotFoundError
from tff_fedmpq.simulation.experiment import (
    DivergenceError,
    OutputDirectoryError,
    check_output_dir,
    run_experiment,
)
from tff_fedmpq.simulation.files import PathLike
from tff_fedmpq.simulation.reproduction import results
from tff_fedmpq.simulation.reproduction.cells import Cell
from tff_fedmpq.simulation.reproduction.cost import CostEstimator

_CANNOT = "cannot be run"
_SAVED_STATE = re.compile(r"round_(\d+)")


@dataclasses.dataclass(frozen=True)
class PlannedCell:
    """What is to be done for a cell.

    Attributes:
      cell: the cell.
      state: "finished", "round 12 of 50", "diverged in round 13 of 50", "not run",
        "cannot be run", or "the same run as ...".
      seconds: that it will take; 0 where nothing is to be done.
      is_to_run: whether something is.
      obstacle: why it cannot be run; "" where it can.
    """

    cell: Cell
    state: str
    seconds: float = 0.0
    is_to_run: bool = False
    obstacle: str = ""


def plan(
    cells: Sequence[Cell],
    output_dir: PathLike,
    results_dir: PathLike,
    estimator: CostEstimator,
) -> list[PlannedCell]:
    """Returns what is to be done for each cell, and how long that will take.

    Args:
      cells: in the order of running.
      output_dir: of the runs.
      results_dir: of the result files.
      estimator: of seconds.
    """
    planned = []
    seen: dict[str, str] = {}
    records = {
        preset: results.read_records(results_dir, preset)
        for preset in {cell.preset for cell in cells}
    }
    for cell in cells:
        if cell.result_id in seen:
            state = f"the same run as {seen[cell.result_id]}"
            planned.append(PlannedCell(cell, state))
            continue
        if not cell.obstacle:
            seen[cell.result_id] = cell.id
        planned.append(_plan_cell(cell, output_dir, records[cell.preset], estimator))
    return planned


def _plan_cell(
    cell: Cell,
    output_dir: PathLike,
    records: Mapping[str, Mapping[str, Any]],
    estimator: CostEstimator,
) -> PlannedCell:
    config = cell.config
    if config is None:
        return PlannedCell(cell, _CANNOT, obstacle=cell.obstacle)
    # Under the id of a run that was begun: who owns a result depends on the defaults.
    name = results.find_record(records, config)
    if name is not None:
        cell = dataclasses.replace(cell, result_id=name)
        record = records[name]
        if record["finished"] or results.has_diverged(record):
            return PlannedCell(cell, results.describe_state(record))
    elif cell.result_id in records:
        path = results.result_path("", cell)
        obstacle = f"{path} among the results is of other settings; move it away"
        return PlannedCell(cell, _CANNOT, obstacle=obstacle)
    directory = run_dir(output_dir, cell)
    try:
        check_output_dir(directory, config, resume=True)
    except OutputDirectoryError as error:
        return PlannedCell(cell, _CANNOT, obstacle=str(error))
    rounds_done = count_rounds_done(directory)
    state = f"round {rounds_done} of {config.rounds}" if rounds_done else "not run"
    try:
        seconds = estimator.seconds(config, rounds_done)
    except DatasetNotFoundError as error:
        return PlannedCell(cell, _CANNOT, obstacle=str(error))
    return PlannedCell(cell, state, seconds, is_to_run=True)


def run_dir(output_dir: PathLike, cell: Cell) -> pathlib.Path:
    """Returns the directory of a cell's run."""
    return pathlib.Path(output_dir).expanduser() / cell.preset / cell.result_id


def count_rounds_done(directory: pathlib.Path) -> int:
    """Returns the last round of a run whose state was saved; 0 where there is none."""
    # A state that is being saved has a longer name until it is whole.
    names = (path.name for path in directory.glob("checkpoints/round_*"))
    saved = (_SAVED_STATE.fullmatch(name) for name in names)
    return max((int(match[1]) for match in saved if match), default=0)


def run_cells(
    planned: Sequence[PlannedCell],
    output_dir: PathLike,
    results_dir: PathLike,
    *,
    data_dir: PathLike | None,
    announce: Callable[[str], None],
    on_result: Callable[[], None],
) -> None:
    """Runs what is to be run; a run that diverges does not keep others from running.

    Args:
      planned: by `plan`.
      output_dir: of the runs.
      results_dir: of the result files.
      data_dir: where data sets lie.
      announce: called with a line before each run, and for one that diverges.
      on_result: called whenever a result file was written.

    Raises:
      ValueError: if a run is refused, such as one in a directory of another one.
    """
    to_run = [entry for entry in planned if entry.is_to_run]
    for number, entry in enumerate(to_run, 1):
        announce(
            f"== {entry.cell.id} ({number} of {len(to_run)}, {entry.state}, about "
            f"{format_seconds(entry.seconds)})"
        )
        try:
            run_cell(entry.cell, output_dir, results_dir, data_dir, on_result)
        except DivergenceError as error:
            announce(str(error))


def run_cell(
    cell: Cell,
    output_dir: PathLike,
    results_dir: PathLike,
    data_dir: PathLike | None,
    on_result: Callable[[], None],
) -> None:
    """Runs a cell to its end; records it, or how far it came.

    Raises:
      DivergenceError: if training diverges.
      OutputDirectoryError: if the directory of the run holds another one.
    """
    config = cell.config
    if config is None:
        raise ValueError(f"{cell.id} cannot be run: {cell.obstacle}.")
    directory = run_dir(output_dir, cell)
    check_output_dir(directory, config, resume=True)  # Leaves results of others alone.
    record, diverged = None, False
    try:
        result = run_experiment(config, directory, data_dir=data_dir, resume=True)
        record = results.finished_record(result, cell, config)
    except DivergenceError:
        diverged = True
        raise
    finally:
        # Also when it was interrupted: the document tells of it then.
        rounds_done = count_rounds_done(directory)
        if record is None and (rounds_done or diverged):
            record = results.unfinished_record(cell, config, rounds_done, diverged)
        if record is not None:
            results.write_record(results_dir, cell, record)
            on_result()


def format_plan(planned: Sequence[PlannedCell]) -> str:
    """Returns the plan as lines of text, with a total."""
    width = max(len(entry.cell.id) for entry in planned)
    obstacles = list(dict.fromkeys(e.obstacle for e in planned if e.obstacle))
    lines = []
    for entry in planned:
        line = f"{entry.cell.id:<{width}}  {entry.state}"
        if entry.obstacle:
            line += f" ({obstacles.index(entry.obstacle) + 1})"
        if entry.is_to_run:
            line += f", about {format_seconds(entry.seconds)}"
        if entry.cell.result_id != entry.cell.id:
            line += f"  = {entry.cell.result_id}"
        lines.append(line)
    lines += [f"({number}) {text}" for number, text in enumerate(obstacles, 1)]
    to_run = [entry for entry in planned if entry.is_to_run]
    total = format_seconds(sum(entry.seconds for entry in to_run))
    lines.append(f"{len(to_run)} of {len(planned)} cells to run, about {total} in all.")
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Returns a duration for people, such as "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
