"""Writes a study's page from its result files, by a Jinja2 template.

The template is `templates/<study>.md.jinja` where it exists, or `study.md.jinja`.
Cells without a finished run do not appear on the page.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import tabulate

from studies import analysis, results
from studies.definitions import DIRECTORY, Cell, Coordinates, Study, format_value

# Cell id -> seed -> content of the result file.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def write_page(
    study: Study, results_dir: pathlib.Path, docs_dir: pathlib.Path
) -> pathlib.Path:
    """Writes the page of a study and returns its path."""
    path = docs_dir / f"{study.name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(study, read_results(study, results_dir)))
    return path


def read_results(study: Study, results_dir: pathlib.Path) -> Results:
    """Returns the result files of a study, also of seeds that it does not name."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in study.cells:
        paths = sorted((results_dir / study.name / cell.id).glob("seed*.json"))
        records = [results.read_record(path) for path in paths]
        found[cell.id] = {record["seed"]: record for record in records if record}
    return found


def render(study: Study, found: Results) -> str:
    """Returns the page's Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(DIRECTORY / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = [f"{study.name}.md.jinja", "study.md.jinja"]
    finished = {
        cell: {s: r for s, r in by_seed.items() if r["state"] == results.FINISHED}
        for cell, by_seed in found.items()
    }
    records = [record for by_seed in found.values() for record in by_seed.values()]
    return environment.select_template(names).render(
        study=study,
        page=_Page(study, finished),
        protocol=_format_protocol(study),
        runs=_format_runs(study, found),
        diverged=[r for r in records if r["state"] == results.DIVERGED],
        commands=[record["command"] for record in records],
        machines=_distinct(_describe_machine(record) for record in records),
    )


class _Page:
    """The tables of a page, as Markdown; empty texts where nothing was run."""

    def __init__(self, study: Study, finished: Results):
        self._study, self._results = study, finished

    def groups(self) -> list[tuple[str, Coordinates]]:
        """Returns heading and coordinates of the groups with a result of their own."""
        return [
            (", ".join(format_value(*item) for item in group.items()), group)
            for group in self._study.groups
            if any(
                self._results[c.id] and c.coordinates == group
                for c in self._study.cells_of(group)
            )
        ]

    def means(self, group: Coordinates, measure: str) -> str:
        """Returns the table of a group's means, a row per run."""
        rows = []
        for cell in self._finished_cells(group):
            of_cell = self._results[cell.id]
            row = {"run": cell.title, "global model": _mean(of_cell, measure)}
            for budget in analysis.budgets_of(of_cell):
                row[f"{budget} bits"] = _mean(of_cell, measure, budget)
            if measure == "accuracy" and cell.id in self._study.published:
                row["published"] = f"{self._study.published[cell.id]:.1f}"
            rows.append(row)
        return _table(rows, last=("published",))

    def communication(self, group: Coordinates) -> str:
        """Returns the table of bits sent per round and of the mean bit-width."""
        rows = []
        for cell in self._finished_cells(group):
            rounds = [
                r for run in self._results[cell.id].values() for r in run["rounds"]
            ]
            row = {"run": cell.title}
            for title, key, unit in (
                ("Mbit to clients", "downlink_bits", 1e6),
                ("Mbit to the server", "uplink_bits", 1e6),
                ("mean bit-width", "mean_bit_width", 1),
            ):
                values = [r[key] / unit for r in rounds if key in r]
                row[title] = f"{sum(values) / len(values):.2f}" if values else ""
            rows.append(row)
        return _table(rows)

    def differences(self, group: Coordinates, measure: str) -> str:
        """Returns the table of a group's paired differences from the baselines."""
        cells = self._finished_cells(group)
        baselines = [
            c for name in self._study.baselines for c in cells if c.run == name
        ]
        pairs = [(c, b) for b in baselines for c in cells if c not in baselines]
        pairs += [(c, b) for i, b in enumerate(baselines) for c in baselines[i + 1 :]]
        return self._differences(pairs, measure, lambda cell: cell.title)

    def along(self, axis: str, measure: str, baseline: str = "") -> str:
        """Returns the table of the runs along an axis, a column per value.

        With a `baseline`, a cell's id, it has the differences from this cell.
        """
        rows: dict[str, dict[str, str]] = {}
        for cell in self._study.cells:
            found = self._results[cell.id]
            if axis not in cell.coordinates or not found:
                continue
            row = rows.setdefault(cell.run, {})
            row["run"] = cell.title
            value = format_value(axis, cell.coordinates[axis]).replace("_", " ")
            row[value] = _mean(found, measure)
            if baseline:
                theirs = self._results[baseline]
                difference = analysis.paired_difference(found, theirs, measure)
                row[value] = format_estimate(difference, measure, sign="+")
        return _table(list(rows.values()))

    def named(self, runs: Sequence[str], measure: str) -> str:
        """Returns the table of some runs, with the epsilon of those that have one."""
        rows = []
        for cell in self._study.cells:
            found = self._results[cell.id]
            if cell.run not in runs or not found:
                continue
            row = {"run": cell.title, "global model": _mean(found, measure)}
            finals = [record["final"] for record in found.values()]
            if epsilons := {f["privacy"]["epsilon"] for f in finals if "privacy" in f}:
                row["epsilon"] = f"{max(epsilons):.4g}"
            rows.append(row)
        return _table(rows)

    def pairs(self, measure: str) -> str:
        """Returns the table of the differences that the study lists by name."""
        cells = {cell.id: cell for cell in self._study.cells}
        pairs = [(cells[a], cells[b]) for a, b in self._study.pairs]
        return self._differences(pairs, measure, lambda cell: cell.id)

    def _finished_cells(self, group: Coordinates) -> list[Cell]:
        return [c for c in self._study.cells_of(group) if self._results[c.id]]

    def _differences(
        self, pairs: Sequence[tuple[Cell, Cell]], measure: str, name
    ) -> str:
        rows = []
        for cell, baseline in pairs:
            ours, theirs = self._results[cell.id], self._results[baseline.id]
            if not ours.keys() & theirs.keys():
                continue
            devices = analysis.pair_devices(
                analysis.budgets_of(ours), analysis.budgets_of(theirs)
            )
            row = {"difference": f"{name(cell)} - {name(baseline)}"}
            for budgets in [(analysis.GLOBAL, analysis.GLOBAL), *devices]:
                difference = analysis.paired_difference(ours, theirs, measure, budgets)
                row[_device_title(*budgets)] = format_estimate(
                    difference, measure, sign="+"
                )
            rows.append(row)
        return _table(rows)


def _device_title(ours: str | None, theirs: str | None) -> str:
    if ours is None:
        return "global model"
    return f"{ours} bits" if ours == theirs else f"{ours} against {theirs} bits"


def _mean(of_cell: Mapping, measure: str, budget: str | None = None) -> str:
    return format_estimate(analysis.mean_over_seeds(of_cell, measure, budget), measure)


def format_estimate(
    estimate: analysis.Estimate | None, measure: str, sign: str = ""
) -> str:
    """Returns "63.2 ± 1.6 (3)": mean, half the interval, number of seeds."""
    if estimate is None:
        return ""
    factor, digits = (100, 1) if measure == "accuracy" else (1, 3)
    text = f"{factor * estimate.mean:{sign}.{digits}f}"
    if estimate.half_width is not None:
        text += f" ± {factor * estimate.half_width:.{digits}f}"
    return f"{text} ({estimate.seeds})"


def _table(rows: Sequence[Mapping[str, str]], last: Sequence[str] = ()) -> str:
    """Returns a Markdown table with the columns of all rows in order."""
    if not rows:
        return ""
    headers = _distinct(key for row in rows for key in row)
    headers.sort(key=lambda header: header in last)
    cells = [[row.get(header, "") for header in headers] for row in rows]
    return tabulate.tabulate(cells, headers, tablefmt="pipe", disable_numparse=True)


def _format_protocol(study: Study) -> str:
    rows = [{"setting": f"`{k}`", "value": str(v)} for k, v in study.protocol.items()]
    rows += [
        {"setting": f"population {name}", "value": ", ".join(f"{b:g}" for b in budgets)}
        for name, budgets in study.populations.items()
    ]
    return _table(rows)


def _format_runs(study: Study, found: Results) -> str:
    """Returns a table of the settings that runs have beside the protocol."""
    rows = {}
    for cell in (cell for cell in study.cells if found[cell.id]):
        shared = {**study.protocol, **cell.coordinates}
        own = {k: v for k, v in cell.settings.items() if k not in shared}
        if "population" in shared:
            own.pop("budgets", None)
        settings = ", ".join(f"{name} = {value}" for name, value in own.items())
        rows[cell.run] = {"run": cell.title, "settings": settings}
    return _table(list(rows.values()))


def _describe_machine(record: Mapping[str, Any]) -> str:
    parts = [*record["hardware"].items(), *record["versions"].items()]
    commits = "".join(f", commit {commit}" for commit in record.get("commits", []))
    return ", ".join(f"{name} {value}" for name, value in parts) + commits


def _distinct(items) -> list:
    return list(dict.fromkeys(items))
