"""Cells: slots of the tables at a preset and a seed, each of them one run.

Several slots may ask for the same run (Table 2's ten clients are Table 1's alpha 0.5).
The first of them in the order of `TABLES` owns its result; the others name it by
`Cell.result_id`, so that nothing is run twice.

A configuration spells out every option of its scheme, its defaults too: what a result
file says stays true when a default changes, and then no longer matches.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from tff_fedmpq.simulation.compute import AUTO
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.reproduction import study, tables
from tff_fedmpq.simulation.reproduction.tables import Grid, Slot


@dataclasses.dataclass(frozen=True)
class Preset:
    """A protocol for all tables.

    Attributes:
      title: what it is.
      models: data set -> network; data sets that are missing are not run.
      settings: of `ExperimentConfig`, instead of its defaults; a slot's own come first.
    """

    title: str
    models: Mapping[str, str]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_REDUCED = {"train_examples": 20_000, "rounds": 30, "local_epochs": 2}
PRESETS: Mapping[str, Preset] = {
    # ExperimentConfig's defaults are the paper's.
    "paper": Preset(
        "the paper's protocol",
        {"cifar10": "resnet20", "cifar100": "resnet20", "tiny_imagenet": "resnet44"},
    ),
    "reduced": Preset(
        "a reduced protocol",
        {"cifar10": "resnet20", "cifar100": "resnet20"},
        _REDUCED,
    ),
    "tuning": Preset(
        "the reduced protocol on held-out training images, for choosing settings",
        {"cifar10": "resnet20"},
        {**_REDUCED, "validation_examples": 5_000},
    ),
}

# In this order; a run that several of them ask for belongs to the first.
TABLES: Mapping[str, Callable[[], list[Grid]]] = {
    "table1": tables.table_1,
    "table2": tables.table_2,
    "table3": tables.table_3,
    "table4": tables.table_4,
    "figure2": tables.figure_2,
    "study": study.study,
}
DEFAULT_SEEDS: Mapping[str, Sequence[int]] = {
    **{table: (0,) for table in TABLES},
    "study": study.SEEDS,
}
DEFAULT_COMPUTE = AUTO


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run, or a place that cannot be run.

    Attributes:
      id: its name, such as "table1/cifar10/alpha0.5/fedmpq/seed0".
      result_id: id of the cell that owns its result, often its own.
      preset: key of `PRESETS`.
      config: of the run; None where there is an obstacle.
      obstacle: why it cannot be run; "" where it can.
    """

    id: str
    result_id: str
    preset: str
    config: ExperimentConfig | None
    obstacle: str = ""


def grids() -> list[Grid]:
    """Returns the grids of all tables, in the order of `TABLES`."""
    return [grid for table in TABLES.values() for grid in table()]


def expand(
    table: str, preset: str, seeds: Sequence[int], compute: str = DEFAULT_COMPUTE
) -> list[Cell]:
    """Returns the cells of a table in its order, all of a seed before the next seed.

    Args:
      table: key of `TABLES`.
      preset: key of `PRESETS`.
      seeds: of the runs.
      compute: of the layers on clients.

    Raises:
      ValueError: for an unknown table or preset, or a setting out of range.
    """
    _check_known(table, TABLES, "table")
    _check_known(preset, PRESETS, "preset")
    slots = {s.group: s for grid in TABLES[table]() for s in grid.slots.values()}
    return [
        make_cell(slot, preset, seed, compute)
        for seed in dict.fromkeys(seeds)
        for slot in slots.values()
    ]


def make_cell(
    slot: Slot, preset: str, seed: int, compute: str = DEFAULT_COMPUTE
) -> Cell:
    """Returns a slot's cell."""
    obstacle = find_obstacle(slot, preset)
    group = slot.group if obstacle else owners(preset)[slot.group]
    return Cell(
        id=f"{slot.group}/seed{seed}",
        result_id=f"{group}/seed{seed}",
        preset=preset,
        config=None if obstacle else build_config(slot, preset, seed, compute),
        obstacle=obstacle,
    )


def find_obstacle(slot: Slot, preset: str) -> str:
    """Returns why a preset cannot express a slot, or ""."""
    if slot.only_preset not in ("", preset):
        return f"it serves to choose settings, at the preset {slot.only_preset} only"
    dataset = slot.settings["dataset"]
    if dataset not in PRESETS[preset].models:
        return f"the preset {preset} has no network for {dataset}"
    return ""


def build_config(
    slot: Slot, preset: str, seed: int, compute: str = DEFAULT_COMPUTE
) -> ExperimentConfig:
    """Returns the configuration of a slot that has no obstacle."""
    settings = {**PRESETS[preset].settings, **slot.settings}
    settings["model"] = PRESETS[preset].models[settings["dataset"]]
    return ExperimentConfig(**settings, seed=seed, compute=compute)


@functools.cache
def owners(preset: str) -> Mapping[str, str]:
    """Returns, for every group that can be run, the group that owns its result."""
    first: dict[str, str] = {}
    owner = {}
    for slot in (slot for grid in grids() for slot in grid.slots.values()):
        if not find_obstacle(slot, preset):
            config = build_config(slot, preset, seed=0).as_dict()
            key = json.dumps(config, sort_keys=True)
            owner[slot.group] = first.setdefault(key, slot.group)
    return owner


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Returns the cells whose ids match one of the patterns, in their order.

    Args:
      cells: to choose from.
      patterns: as of file names (`fnmatch`), of ids with or without their last part,
        the seed; "*" matches "/" too. None choose all.

    Raises:
      ValueError: if a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(_matches(cell, pattern) for cell in cells):
            raise ValueError(
                f"No cell matches {pattern!r}. Ids look like {cells[0].id}; --list "
                "shows them all, for the seeds that --seeds says."
            )
    if not patterns:
        return list(cells)
    return [
        cell for cell in cells if any(_matches(cell, pattern) for pattern in patterns)
    ]


def _matches(cell: Cell, pattern: str) -> bool:
    group = cell.id.rpartition("/")[0]
    return any(fnmatch.fnmatchcase(name, pattern) for name in (cell.id, group))


def _check_known(name: str, known: Mapping[str, Any], what: str) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {', '.join(known)}.")
