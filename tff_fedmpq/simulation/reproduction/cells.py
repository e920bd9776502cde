"""Cells: slots of the tables at a preset and a seed, each of them one run.

Several slots may ask for the same run (Table 2's ten clients are Table 1's alpha 0.5).
The first of them in the order of `TABLES` owns its result; the others name it by
`Cell.result_id`, so that nothing is run twice.

A cell's configuration spells out every option of its scheme, its defaults too: what a
result file says stays true when a default changes, and then no longer matches.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from tff_fedmpq.allocation.policies import ALLOCATION_POLICIES
from tff_fedmpq.federated.scheme import AGGREGATION_WEIGHTS
from tff_fedmpq.federated.schemes import ALL_SCHEMES, build_scheme
from tff_fedmpq.federated.uplink import ModelChangeUplink, Uplink
from tff_fedmpq.quantization.scales import SCALE_RULES
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
      table: key of `TABLES` by which `result_id` can be run.
      preset: key of `PRESETS`.
      config: of the run; None where there is an obstacle.
      obstacle: why it cannot be run; "" where it can.
    """

    id: str
    result_id: str
    table: str
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
        table=group.split("/")[0],
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
    scheme = settings["scheme"]
    settings["scheme_options"] = explicit_options(
        scheme, settings.get("scheme_options", {})
    )
    settings["model"] = PRESETS[preset].models[settings["dataset"]]
    return ExperimentConfig(**settings, seed=seed, compute=compute)


def explicit_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options of a scheme by name, those left at their defaults too.

    Args:
      name: of the scheme.
      options: those that are given.
    """
    scheme = build_scheme(name, options)
    explicit: dict[str, Any] = {
        parameter.name: parameter.default
        for parameter in inspect.signature(ALL_SCHEMES[name]).parameters.values()
        if isinstance(parameter.default, (str, int, float))
    }
    explicit |= {
        **options,
        "aggregation_weight": _name(scheme.aggregation_weight, AGGREGATION_WEIGHTS),
    }
    if scheme.weights is not None:
        explicit |= {
            "representation": scheme.weights.representation.name,
            "scale_rule": _name(scheme.weights.scale_rule, SCALE_RULES),
            "activation_bits": scheme.activation_bits,
            "lasso": scheme.lasso,
            "allocation": _name(scheme.allocation, ALLOCATION_POLICIES),
            "code_update": scheme.training.code_update,
            "low_bit_damping": scheme.training.low_bit_damping,
            "learning_rate_unit": scheme.training.learning_rate_unit,
            "pruning_threshold": scheme.training.pruning_threshold,
            "saturate": scheme.training.saturate,
            "pooled_statistics": scheme.pooled_statistics,
            **_server_options(scheme.uplink),
        }
    return explicit


def _server_options(uplink: Uplink) -> dict[str, Any]:
    if isinstance(uplink, ModelChangeUplink):
        rate = uplink.server_learning_rate
        return {"error_feedback": True, "server_learning_rate": rate}
    return {"error_feedback": False, "server_learning_rate": 1.0}


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
      patterns: as of file names (`fnmatch`); "*" matches "/" too. None choose all.

    Raises:
      ValueError: if a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.id, pattern) for cell in cells):
            raise ValueError(
                f"No cell matches {pattern!r}. Ids look like {cells[0].id}; --list "
                "shows them all."
            )
    if not patterns:
        return list(cells)
    return [
        cell
        for cell in cells
        if any(fnmatch.fnmatchcase(cell.id, pattern) for pattern in patterns)
    ]


def _name(value: Any, known: Mapping[str, Any]) -> str:
    """Returns the name under which a variation is known."""
    return next(name for name, variation in known.items() if variation is value)


def _check_known(name: str, known: Mapping[str, Any], what: str) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {', '.join(known)}.")
