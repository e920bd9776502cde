"""`docs/study.md` and its figures, from a text with placeholders and result files.

The text is written by hand (`docs/study.template.md`); its numbers are not. Between
double braces stands what is to be shown:

    {{ table: repairs }}               a question of `study.QUESTIONS`; a line while
                                       none of its runs is finished
    {{ devices: finalists }}           the same question, by bits of the device
    {{ table: outer_layers @ tuning }} at another preset than "reduced"
    {{ protocol: reduced }}            a preset of `cells.PRESETS`, in words
    {{ mean: PRESET/GROUP }}           over seeds, of a group such as table1/.../aqfl
    {{ difference: PRESET/A, PRESET/B }}   A - B, paired by seed
    {{ recalibrated_difference: PRESET/A, PRESET/B }}   the same of the global model
                                       after the last round, recalibrated
    {{ recalibration: PRESET/GROUP }}  what recalibrating adds to the global model after
                                       the last round
    {{ devices_difference: PRESET/A, PRESET/B }}   the same of the models that devices
                                       get, recalibrated: from the least to the
                                       greatest over budgets, of means over seeds
    {{ sent_devices_difference: PRESET/A, PRESET/B }}   the same with the statistics
                                       that the server sent
    {{ swing: PRESET/GROUP }}          standard deviation of a run's last five rounds
    {{ pruned: PRESET/GROUP }}         rounds in which MSB pruning took bits off
    {{ full_planes: PRESET/GROUP }}    layers with nearly all weights in the outer half
                                       of their range, in a run's last five rounds
    {{ figure: NAME | LABEL = PRESET/GROUP | ... }}   accuracy by round, NAME.svg

Accuracy here is the mean over a run's last five rounds, for a single round's swings,
but in figures, which show every round.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from tff_fedmpq.simulation.files import PathLike, write_atomically
from tff_fedmpq.simulation.reproduction import (
    cells,
    document,
    figures,
    paper,
    results,
    study,
)
from tff_fedmpq.simulation.reproduction.document import Records
from tff_fedmpq.simulation.reproduction.tables import Grid, Slot

RecordsByPreset = Mapping[str, Records]

NUM_LATE_ROUNDS = 5
# Keys of a device's accuracy, by where its BatchNorm statistics are from.
_RECALIBRATED, _AS_SENT = "accuracy", "accuracy_aggregated_statistics"
_FULL_DENSITY = 0.9  # Of a top plane; it is 1 where a layer has one bit.
FIGURES = "figures"  # The folder beside the study.
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*:\s*(.*?)\s*\}\}", re.DOTALL)
_PAIR = (paper.SCHEME_TITLES["fedmpq"], paper.SCHEME_TITLES["aqfl"])


def write_study(results_dir: PathLike, template: PathLike, path: PathLike) -> None:
    """Writes the study of the result files in a directory, and its figures.

    Args:
      results_dir: as the harness wrote it.
      template: file of the text with placeholders.
      path: of the study; figures go into the folder `FIGURES` beside it.

    Raises:
      ValueError: naming a result file that is damaged, or a placeholder that is not
        understood.
      FileNotFoundError: if there is no template.
    """
    records = {
        preset: results.read_records(results_dir, preset) for preset in cells.PRESETS
    }
    text, path = pathlib.Path(template).read_text(), pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, build_study(text, records).encode())
    for match in _PLACEHOLDER.finditer(text):
        kind, argument = match.groups()
        if kind == "figure" and (curves := _curves(argument, records)):
            name, _ = _parse_figure(argument)
            figures.plot_accuracies(curves, path.parent / FIGURES / f"{name}.svg")


def build_study(template: str, records: RecordsByPreset) -> str:
    """Returns the template with every placeholder filled in.

    Args:
      template: text with placeholders (module docstring).
      records: preset -> result id -> content of the result file.
    """

    def fill(match: re.Match[str]) -> str:
        kind, argument = match.groups()
        if kind not in _KINDS:
            raise ValueError(
                f"Unknown placeholder {match.group()!r}; expected one of "
                f"{', '.join(_KINDS)}."
            )
        return _KINDS[kind](argument, records)

    return _PLACEHOLDER.sub(fill, template)


def late_accuracies(slot: Slot, preset: str, records: Records) -> dict[int, float]:
    """Returns the mean test accuracy of the last rounds in %, by seed."""
    return {
        seed: float(np.mean(by_round[-NUM_LATE_ROUNDS:]))
        for seed, by_round in _accuracies_by_round(slot, preset, records).items()
    }


def _accuracies_by_round(
    slot: Slot, preset: str, records: Records
) -> dict[int, list[float]]:
    """Returns the test accuracy after each round in %, by seed, of finished runs."""
    return {
        record["protocol"]["seed"]: [100 * r["test_accuracy"] for r in record["rounds"]]
        for record in document.find_records(slot, preset, records).values()
        if record["finished"]
    }


def format_table(grid: Grid, preset: str, records: Records) -> str:
    """Returns a grid as a Markdown table; with FedMPQ - AQFL where it has both."""
    is_paired = set(_PAIR) <= set(grid.columns)
    heads = [grid.corner, *grid.columns]
    heads += [" - ".join(_PAIR)] if is_paired else []
    lines = [document.format_row(heads), document.format_row(["---"] * len(heads))]
    for row in grid.rows:
        by_column = {
            column: late_accuracies(grid.slots[row, column], preset, records)
            for column in grid.columns
            if (row, column) in grid.slots
        }
        entries = [row]
        entries += [
            format_mean(list(by_column[column].values())) if column in by_column else ""
            for column in grid.columns
        ]
        if is_paired and set(_PAIR) <= set(by_column):
            entries.append(format_difference(*(by_column[name] for name in _PAIR)))
        lines.append(document.format_row([*entries, ""][: len(heads)]))
    table = "\n".join(lines)
    return f"{table}\n\n{grid.note}" if grid.note else table


def format_devices(grid: Grid, preset: str, records: Records) -> str:
    """Returns the accuracy of what devices get, as a Markdown table.

    A line for each place of the grid that has results. In it, all after the last round
    and means over seeds: the global model, and that of each budget, with BatchNorm
    statistics estimated for that model ("-" for the global model of runs that did not
    record it), and with those of the server.
    """
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    shown: set[str] = set()  # Several places may ask for the same runs.
    for place, slot in grid.slots.items():
        found = document.find_records(slot, preset, records)
        finished = [r for r in found.values() if r["finished"] and r["tier_accuracy"]]
        if finished and not shown.issuperset(found):
            runs[place] = finished
            shown.update(found)
    budgets = sorted(
        {b for of_place in runs.values() for b in of_place[0]["tier_accuracy"]},
        key=float,
    )
    heads = [grid.corner, "", "global", *(f"{budget} bits" for budget in budgets)]
    rows = [heads, ["---"] * len(heads)]
    for place, of_place in runs.items():
        tiers = [r["tier_accuracy"] for r in of_place]
        rows.append(
            [
                *place,
                f"{_show_global(of_place)} ({len(tiers)})",
                *(_show_tier(tiers, budget) for budget in budgets),
            ]
        )
    return "\n".join(document.format_row(row) for row in rows)


def _show_global(of_place: Sequence[Mapping[str, Any]]) -> str:
    last = [100 * r["rounds"][-1]["test_accuracy"] for r in of_place]
    recalibrated = _recalibrated_accuracies(of_place)
    is_recorded = len(recalibrated) == len(of_place)
    shown = f"{np.mean(list(recalibrated.values())):.1f}" if is_recorded else "-"
    return f"{shown} / {np.mean(last):.1f}"


def _recalibrated_accuracies(finished: Sequence[document.Record]) -> dict[int, float]:
    """Returns the recalibrated global model's accuracy in %, by seed.

    Of the runs that recorded it: results of former versions are without it.
    """
    return {
        record["seed"]: 100 * record["recalibrated"]["accuracy"]
        for record in finished
        if "recalibrated" in record
    }


def _show_tier(tiers: Sequence[Mapping[str, Any]], budget: str) -> str:
    if budget not in tiers[0]:
        return ""
    estimated, as_sent = (
        100 * np.mean([tier[budget][key] for tier in tiers])
        for key in (_RECALIBRATED, _AS_SENT)
    )
    return f"{estimated:.1f} / {as_sent:.1f}"


def format_mean(values: Sequence[float], spec: str = ".1f") -> str:
    """Returns mean, standard deviation and number, as "41.2 ± 0.4 (2)"."""
    if not values:
        return "not run"
    text = format(np.mean(values), spec)
    if len(values) == 1:
        return f"{text} (1)"
    return f"{text} ± {np.std(values, ddof=1):.1f} ({len(values)})"


def format_difference(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """Returns a - b over the seeds that both have."""
    return format_mean([a[seed] - b[seed] for seed in sorted(set(a) & set(b))], "+.1f")


def _question(
    argument: str, records: RecordsByPreset, form: Callable[[Grid, str, Records], str]
) -> str:
    name, _, asked = (part.strip() for part in argument.partition("@"))
    if name not in study.QUESTIONS:
        raise ValueError(
            f"Unknown table {name!r}; expected one of {', '.join(study.QUESTIONS)}."
        )
    grid = study.QUESTIONS[name]()
    preset = asked or next(iter(grid.slots.values())).only_preset or "reduced"
    _check_preset(preset)
    found = records.get(preset, {})
    if not any(late_accuracies(slot, preset, found) for slot in grid.slots.values()):
        return f"(Not run: none of its {len(grid.slots)} runs per seed is finished.)"
    return form(grid, preset, found)


def _protocol(preset: str, records: RecordsByPreset) -> str:
    del records
    _check_preset(preset)
    return document.describe_protocol(preset)


def _check_preset(preset: str) -> None:
    if preset not in cells.PRESETS:
        raise ValueError(f"Unknown preset {preset!r}.")


def _mean(name: str, records: RecordsByPreset) -> str:
    return format_mean(list(_accuracies_of(name, records).values()))


def _difference(
    names: str,
    records: RecordsByPreset,
    *,
    measure: Callable[[str, RecordsByPreset], dict[int, float]],
) -> str:
    """Returns A - B of what `measure` says of each, by seed."""
    a, b = (measure(name.strip(), records) for name in names.split(",", 1))
    return format_difference(a, b)


def _recalibration(name: str, records: RecordsByPreset) -> str:
    last = {
        record["seed"]: 100 * record["rounds"][-1]["test_accuracy"]
        for record in _finished(name, records)
    }
    return format_difference(_recalibrated_of(name, records), last)


def _recalibrated_of(name: str, records: RecordsByPreset) -> dict[int, float]:
    """Returns `_recalibrated_accuracies` of PRESET/GROUP."""
    return _recalibrated_accuracies(_finished(name, records))


def _devices_difference(
    names: str, records: RecordsByPreset, *, key: str = _RECALIBRATED
) -> str:
    a, b = (_tiers_of(name.strip(), records) for name in names.split(",", 1))
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return "not run"
    if set(a[seeds[0]]) != set(b[seeds[0]]):
        raise ValueError(f"{names}: their devices have other budgets.")
    by_budget = [
        100 * np.mean([a[s][bits][key] - b[s][bits][key] for s in seeds])
        for bits in a[seeds[0]]
    ]
    bounds = dict.fromkeys((f"{min(by_budget):+.1f}", f"{max(by_budget):+.1f}"))
    return f"{' to '.join(bounds)} ({len(seeds)})"


def _tiers_of(name: str, records: RecordsByPreset) -> dict[int, Mapping[str, Any]]:
    """Returns what devices get after the last round of finished runs, by seed."""
    tiers = {r["seed"]: r["tier_accuracy"] for r in _finished(name, records)}
    if None in tiers.values():
        raise ValueError(f"{name} sends float weights: its devices have no budgets.")
    return tiers


def _accuracies_of(name: str, records: RecordsByPreset) -> dict[int, float]:
    """Returns `late_accuracies` of PRESET/GROUP."""
    slot, preset = _find_group(name)
    return late_accuracies(slot, preset, records.get(preset, {}))


def _swing(name: str, records: RecordsByPreset) -> str:
    slot, preset = _find_group(name)
    by_seed = _accuracies_by_round(slot, preset, records.get(preset, {}))
    last = [by_round[-NUM_LATE_ROUNDS:] for by_round in by_seed.values()]
    if not last:
        return "not run"
    return f"{np.mean([np.std(accuracies, ddof=1) for accuracies in last]):.1f}"


def _of_each_run(
    name: str, records: RecordsByPreset, *, describe: Callable[[document.Record], str]
) -> str:
    """Returns what `describe` says of each finished run of PRESET/GROUP."""
    texts = [describe(record) for record in _finished(name, records)]
    return " and ".join(texts) or "not run"


def _count_pruned(record: document.Record) -> str:
    """Returns in how many rounds clients sent up fewer bits of codes than they got.

    Headers are longer down than up, by as much in every round; so the smallest
    difference is that of a round without pruning, if there is one.
    """
    rounds = record["rounds"]
    differences = [r["downlink_bits"] - r["uplink_bits"] for r in rounds]
    pruned = sum(difference > min(differences) for difference in differences)
    return f"{pruned} of {len(rounds)}"


def _count_full_planes(record: document.Record) -> str:
    """Returns how many layers have full top planes, means over clients and rounds."""
    sizes = np.array(record["layers"]["sizes"])
    late = record["rounds"][-NUM_LATE_ROUNDS:]
    densities = np.mean([r["top_plane_densities"] for r in late], axis=0)
    full = densities >= _FULL_DENSITY
    share = 100 * sizes[full].sum() / sizes.sum()
    return f"{full.sum()} of {len(sizes)} layers ({share:.0f} % of the weights)"


def _finished(name: str, records: RecordsByPreset) -> list[document.Record]:
    """Returns the results of the finished runs of PRESET/GROUP."""
    slot, preset = _find_group(name)
    found = document.find_records(slot, preset, records.get(preset, {}))
    return [record for record in found.values() if record["finished"]]


def _find_group(name: str) -> tuple[Slot, str]:
    """Returns the slot and the preset of PRESET/GROUP."""
    preset, _, group = name.partition("/")
    slots = {s.group: s for g in cells.grids() for s in g.slots.values()}
    if preset not in cells.PRESETS or group not in slots:
        raise ValueError(f"{name!r} is no group of runs; expected PRESET/GROUP.")
    return slots[group], preset


def _figure(argument: str, records: RecordsByPreset) -> str:
    name, _ = _parse_figure(argument)
    curves = _curves(argument, records)
    if not curves:
        return "(figure: not run)"
    return f"![Accuracy by round: {'; '.join(curves)}]({FIGURES}/{name}.svg)"


def _curves(argument: str, records: RecordsByPreset) -> dict[str, np.ndarray]:
    """Returns label -> accuracy in %, float[seeds, rounds], of what has results."""
    curves = {}
    for label, group in _parse_figure(argument)[1].items():
        slot, preset = _find_group(group)
        by_seed = _accuracies_by_round(slot, preset, records.get(preset, {}))
        if by_seed:
            curves[label] = np.array([by_seed[seed] for seed in sorted(by_seed)])
    return curves


def _parse_figure(argument: str) -> tuple[str, dict[str, str]]:
    """Returns a figure's name, and label -> PRESET/GROUP."""
    name, *lines = (part.strip() for part in argument.split("|"))
    labels = dict(line.partition("=")[::2] for line in lines)
    return name, {label.strip(): group.strip() for label, group in labels.items()}


_KINDS: Mapping[str, Callable[[str, RecordsByPreset], str]] = {
    "table": functools.partial(_question, form=format_table),
    "devices": functools.partial(_question, form=format_devices),
    "protocol": _protocol,
    "mean": _mean,
    "difference": functools.partial(_difference, measure=_accuracies_of),
    "recalibrated_difference": functools.partial(_difference, measure=_recalibrated_of),
    "recalibration": _recalibration,
    "devices_difference": _devices_difference,
    "sent_devices_difference": functools.partial(_devices_difference, key=_AS_SENT),
    "swing": _swing,
    "pruned": functools.partial(_of_each_run, describe=_count_pruned),
    "full_planes": functools.partial(_of_each_run, describe=_count_full_planes),
    "figure": _figure,
}
