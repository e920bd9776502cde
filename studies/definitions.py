"""Reads a study's TOML file and expands it into cells, one per configuration.

    title, question        text
    seeds                  seeds of the runs
    baselines              names of runs that the others are compared with
    pairs                  further comparisons: [[cell id, cell id], ...]
    [protocol]             settings of all runs, by the names of `make_config`
    [populations]          name -> budgets, one per client
    [axes] or [[axes]]     setting or "population" -> values; cells are their product,
                           or the union of several products
    [[runs]]               name, title and settings; they override the protocol and axes
    [claims], [published]  expectations with their margins; cell id -> accuracy in %

A run that sets the name of an axis itself does not vary along it: it has one cell,
which belongs to all groups of that axis. A text "module:function" stands for that
function, the text "None" for None, which TOML cannot express.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python < 3.11.
    import tomli as tomllib

DIRECTORY = pathlib.Path(__file__).parent
_REQUIRED = {"title", "question", "seeds", "protocol", "runs"}
_OPTIONAL = {"baselines", "pairs", "populations", "axes", "claims", "published"}
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

Coordinates = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A configuration of a study; with a seed, a run.

    Attributes:
      id: Name of its folder, such as "alpha0.5-scarce-fedmpq".
      run: Name of its entry in `[[runs]]`.
      title: Title of that entry.
      coordinates: Axis -> value, for the axes along which the run varies.
      settings: Arguments of `make_config` but the seed, as the TOML file has them.
    """

    id: str
    run: str
    title: str
    coordinates: Coordinates
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study: its texts, its cells and the comparisons to make.

    Attributes:
      name: Name of the TOML file without its suffix.
      groups: Coordinates of all combinations of the axes.
      cells: Cells of all runs, without duplicates.
      others: As in the TOML file.
    """

    name: str
    title: str
    question: str
    seeds: Sequence[int]
    protocol: Mapping[str, Any]
    populations: Mapping[str, Sequence[float]]
    groups: Sequence[Coordinates]
    cells: Sequence[Cell]
    baselines: Sequence[str]
    pairs: Sequence[Sequence[str]]
    claims: Mapping[str, str]
    published: Mapping[str, float]

    def cells_of(self, group: Coordinates) -> list[Cell]:
        """Returns the cells that belong to a group, in the order of the runs."""
        return [c for c in self.cells if c.coordinates.items() <= group.items()]


def load_study(name: str) -> Study:
    """Returns the study of a name in this directory, or of a TOML file's path.

    Raises:
      ValueError: if the file is missing or its content is not as described above.
    """
    path = pathlib.Path(name)
    if path.suffix != ".toml":
        path = DIRECTORY / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in DIRECTORY.glob("*.toml")))
        raise ValueError(f"No study {name!r}; there are: {known}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    missing = _REQUIRED - content.keys()
    unknown = content.keys() - _REQUIRED - _OPTIONAL
    if missing or unknown:
        raise ValueError(
            f"{path}: missing {sorted(missing)}, unknown {sorted(unknown)}."
        )
    axes = content.pop("axes", {})
    grids = axes if isinstance(axes, list) else [axes]
    runs, populations = content.pop("runs"), content.pop("populations", {})
    names = [run.get("name") for run in runs]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"{path}: every run needs a name of its own, found {names}.")
    cells: dict[str, Cell] = {}  # By id: several grids can lead to the same cell.
    for run in runs:
        for coordinates in _combinations(grids, leave_out=run):
            cell = _make_cell(run, coordinates, content["protocol"], populations)
            cells[cell.id] = cell
    study = Study(
        name=path.stem,
        groups=list(_combinations(grids)),
        cells=list(cells.values()),
        populations=populations,
        **{"baselines": [], "pairs": [], "claims": {}, "published": {}, **content},
    )
    _check_names(study, path)
    return study


def build_config(cell: Cell, seed: int) -> Any:
    """Returns the `ExperimentConfig` of a cell and a seed.

    Raises:
      ValueError: if a setting is unknown, out of range or names no function.
    """
    from tff_fedmpq.simulation.config import make_config

    settings = {name: _resolve(value) for name, value in cell.settings.items()}
    return make_config(**settings, seed=seed)


def _combinations(
    grids: Sequence[Mapping[str, Sequence[Any]]], leave_out: Mapping[str, Any] = {}
) -> Iterator[Coordinates]:
    """Yields the coordinates of all grids, without the axes to leave out."""
    for grid in grids:
        axes = [axis for axis in grid if axis not in leave_out]
        for values in itertools.product(*(grid[axis] for axis in axes)):
            yield dict(zip(axes, values))


def _make_cell(
    run: Mapping[str, Any],
    coordinates: Coordinates,
    protocol: Mapping[str, Any],
    populations: Mapping[str, Sequence[float]],
) -> Cell:
    settings = {**protocol, **coordinates, **run}
    name = settings.pop("name")
    title = settings.pop("title", name)
    if "population" in settings:
        population = settings.pop("population")
        if population not in populations:
            raise ValueError(
                f"Unknown population {population!r}; there are {sorted(populations)}."
            )
        settings["budgets"] = populations[population]
    labels = [format_value(axis, value, "") for axis, value in coordinates.items()]
    return Cell("-".join([*labels, name]), name, title, coordinates, settings)


def format_value(axis: str, value: Any, separator: str = " ") -> str:
    """Returns "alpha 0.5" for a number, the text itself for a text."""
    return value if isinstance(value, str) else f"{axis}{separator}{value:g}"


def _check_names(study: Study, path: pathlib.Path) -> None:
    runs, ids = {cell.run for cell in study.cells}, {cell.id for cell in study.cells}
    unknown = set(study.baselines) - runs
    unknown |= {cell for pair in study.pairs for cell in pair} - ids
    unknown |= study.published.keys() - ids
    if unknown:
        raise ValueError(
            f"{path}: baselines, pairs or published name {sorted(unknown)}, which are "
            f"not among the runs {sorted(runs)} or cells {sorted(ids)}."
        )


def _resolve(value: Any) -> Any:
    """Returns the object that a setting stands for."""
    if value == "None":
        return None
    if not isinstance(value, str) or not _FUNCTION.fullmatch(value):
        return value
    module, _, function = value.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{value} cannot be imported: {error}.") from None
