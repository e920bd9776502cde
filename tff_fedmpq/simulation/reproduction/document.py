"""`docs/reproduction.md`: ours beside the paper's, from result files alone.

The tables are those of `tables` and `study`; a place shows the mean over the seeds
that are finished, or how far a run has got. The same files give the same document.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tff_fedmpq.simulation.files import PathLike, write_atomically
from tff_fedmpq.simulation.ledger import BITS_PER_MEGABYTE
from tff_fedmpq.simulation.reproduction import cells, results
from tff_fedmpq.simulation.reproduction.deviations import DEVIATIONS
from tff_fedmpq.simulation.reproduction.tables import Grid, Slot

Record = Mapping[str, Any]
Records = Mapping[str, Record]

_NOT_RUN = "not run"

_HEAD = """# Reproduction of the paper's tables

Written by `python examples/reproduce.py --report_only` from the result files in
`docs/results/reproduction/` alone; do not edit it. The paper: Chen & Vikalo, CVPR 2024.

Numbers are accuracy of the global model after the last round, in %: of test images but
where a section says otherwise. "ours" is the
mean over finished seeds; "67.10 +- 0.40 (2)" is mean, standard deviation over seeds and
their number; without it, one seed. "paper" is what the paper prints. `not run`: no
result yet. `round k of n`: interrupted there, no result yet. `diverged in round k of
n`: ended there, without a result. `n/a`: cannot be run, the reason stands below the
table. `-`: the paper has no number."""


def build_document(records_by_preset: Mapping[str, Records]) -> str:
    """Returns the document.

    Args:
      records_by_preset: preset -> result id -> content of the result file.
    """
    parts = [_HEAD]
    for preset in cells.PRESETS:
        parts.extend(_preset_section(preset, records_by_preset.get(preset, {})))
    parts.extend(_deviation_section())
    parts.extend(_run_section(records_by_preset))
    return "\n\n".join(parts) + "\n"


def write_document(results_dir: PathLike, path: PathLike) -> None:
    """Writes the document of the result files in a directory.

    Raises:
      ValueError: naming a result file that is damaged.
    """
    records_by_preset = {
        preset: results.read_records(results_dir, preset) for preset in cells.PRESETS
    }
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, build_document(records_by_preset).encode())


def _preset_section(preset: str, records: Records) -> Iterator[str]:
    """Yields all tables at one preset; of a reduced one, those that were begun.

    What has not begun is named, unless the preset cannot express it.
    """
    label = "" if preset == "paper" else f" - {preset.upper()}"
    yield f"## {_capitalised(cells.PRESETS[preset].title)}{label}"
    yield describe_protocol(preset)
    is_validation = "validation_examples" in cells.PRESETS[preset].settings
    if is_validation:
        yield (
            "Validation accuracy, of images on which settings were chosen; so the "
            "paper's tables are left out."
        )
    elif preset != "paper":
        yield (
            "The paper's numbers are beside ours for orientation; they are of its own "
            "protocol."
        )
    left_out = []
    for grid in cells.grids():
        if is_validation and grid.with_paper:
            continue
        is_begun = any(find_records(s, preset, records) for s in _slots(grid))
        if is_begun or (preset == "paper" and grid.with_paper):
            yield f"### {grid.title}{label}"
            yield format_grid(grid, preset, records)
        elif not all(cells.find_obstacle(slot, preset) for slot in _slots(grid)):
            left_out.append(grid.title)
    if left_out:
        yield "Not run: " + "; ".join(left_out) + "."
    unused = sorted(set(records) - _used_ids(preset, records))
    if unused:
        yield (
            "Not shown, for they are of settings that have changed since: "
            + ", ".join(f"`{name}`" for name in unused)
            + "."
        )


def describe_protocol(preset: str) -> str:
    """Returns what a preset's runs have in common, in words."""
    slot = Slot("", {"dataset": "cifar10", "scheme": "fedmpq"})
    config = cells.build_config(slot, preset, seed=0)
    images = "all"
    if config.train_examples is not None:
        images = f"{config.train_examples:,} (drawn by the seed)"
    tested = "test images: all"
    if config.validation_examples is not None:
        tested = (
            f"evaluated on {config.validation_examples:,} other training images in the "
            "place of the test images"
        )
    decay, unit = (
        config.learning_rate_decay,
        config.scheme_options["learning_rate_unit"],
    )
    networks = ", ".join(f"{d}: {m}" for d, m in cells.PRESETS[preset].models.items())
    text = (
        f"Networks: {networks}. Training images: {images}; {tested}. "
        f"{config.rounds} rounds of {config.local_epochs} local epochs, batch "
        f"{config.batch_size}, SGD with rate {config.float_learning_rate:g} (of "
        f"quantized kernels, by default: {config.learning_rate:g} of {unit}s, {decay} "
        "decay), momentum "
        f"{config.momentum:g}, weight decay {config.weight_decay:g}. "
        f"{config.num_clients} clients, "
        f"{config.clients_per_round} of them in a round, with "
        f"{_join(config.budgets)} bits per weight, Dirichlet({config.alpha:g}) over "
        "clients for each class, where a table does not say otherwise."
    )
    if preset == "paper":
        return text
    return f"**Not the paper's protocol: fewer images, rounds or epochs.** {text}"


def format_grid(grid: Grid, preset: str, records: Records) -> str:
    """Returns a grid as a Markdown table, with its notes.

    At presets other than the paper's, rows of which nothing is run are left out.
    """
    heads = [grid.corner]
    for column in grid.columns:
        heads += [f"{column}, ours", "paper"] if grid.with_paper else [column]
    lines = [format_row(heads), format_row(["---"] * len(heads))]
    for row in grid.rows:
        ours, entries = set(), [row]
        for column in grid.columns:
            slot = grid.slots.get((row, column))
            entries.append(show_slot(slot, preset, records) if slot else "")
            ours.add(entries[-1])
            if grid.with_paper:
                number = slot.paper if slot else None
                entries.append("-" if number is None else f"{number:.1f}")
        if preset == "paper" or not ours <= {_NOT_RUN, ""}:
            lines.append(format_row(entries))
    obstacles = {cells.find_obstacle(slot, preset) for slot in _slots(grid)} - {""}
    notes = [grid.note] if grid.note else []
    notes += [f"n/a: {obstacle}." for obstacle in sorted(obstacles)]
    table = "\n".join(lines)
    return f"{table}\n\n{' '.join(notes)}" if notes else table


def show_slot(slot: Slot, preset: str, records: Records) -> str:
    """Returns what stands in a place of a table."""
    if cells.find_obstacle(slot, preset):
        return "n/a"
    found = list(find_records(slot, preset, records).values())
    finished = [_accuracy(record) for record in found if record["finished"]]
    if len(finished) > 1:
        deviation = np.std(finished, ddof=1)
        return f"{np.mean(finished):.2f} +- {deviation:.2f} ({len(finished)})"
    if finished:
        return f"{finished[0]:.2f}"
    if found:
        furthest = max(found, key=lambda record: record["rounds_done"])
        return results.describe_state(furthest)
    return _NOT_RUN


def find_records(slot: Slot, preset: str, records: Records) -> dict[str, Record]:
    """Returns the results of a slot's present settings: result id -> content."""
    found: dict[str, Record] = {}
    if cells.find_obstacle(slot, preset):
        return found
    for seed in sorted({record["protocol"]["seed"] for record in records.values()}):
        config = cells.build_config(slot, preset, seed)
        name = results.find_record(records, config)
        if name is not None:
            found[name] = records[name]
    return found


def _used_ids(preset: str, records: Records) -> set[str]:
    slots = (slot for grid in cells.grids() for slot in _slots(grid))
    return {name for slot in slots for name in find_records(slot, preset, records)}


def _deviation_section() -> Iterator[str]:
    yield "## Deviations from the paper"
    lines = [
        format_row(["what", "why", "where, and how to undo it"]),
        format_row(["---"] * 3),
    ]
    yield "\n".join([*lines, *(format_row(deviation) for deviation in DEVIATIONS)])


def _run_section(records_by_preset: Mapping[str, Records]) -> Iterator[str]:
    yield "## Runs"
    runs = [r for records in records_by_preset.values() for r in records.values()]
    if not runs:
        yield "None yet."
        return
    yield (
        "MB: sent by, or to, all clients in all rounds. Devices: accuracy of the model "
        "that a device of so many bits gets, with BatchNorm statistics estimated for "
        "it. Times are of the machine named, with whatever else ran on it. Commits: of "
        "the code that ran; ? for rounds that did not record it."
    )
    heads = ["run", "accuracy", "devices", "MB up", "MB down", "time", "compute"]
    heads += ["hardware", "versions", "commits", "command"]
    lines = [format_row(heads), format_row(["---"] * len(heads))]
    yield "\n".join([*lines, *(format_row(_run_entries(run)) for run in runs)])


def _run_entries(record: Record) -> list[str]:
    name = f"{record['preset']}: {record['id']}"
    command = f"`{record['command']}`"
    if not record["finished"]:
        return [name, results.describe_state(record), *8 * [""], command]
    tiers = (record["tier_accuracy"] or {}).items()
    devices = ", ".join(f"{b}: {100 * t['accuracy']:.2f}" for b, t in tiers)
    hours = _total(record, "seconds") / 3600
    return [
        name,
        f"{_accuracy(record):.2f}",
        devices,
        f"{_total(record, 'uplink_bits') / BITS_PER_MEGABYTE:.1f}",
        f"{_total(record, 'downlink_bits') / BITS_PER_MEGABYTE:.1f}",
        f"{hours:.2f} h",
        record["protocol"]["compute"],
        f"{record['hardware']['cores']} cores, {record['hardware']['processor']}",
        ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        ", ".join(dict.fromkeys(r.get("commit") or "?" for r in record["rounds"])),
        command,
    ]


def _accuracy(record: Record) -> float:
    return 100 * record["rounds"][-1]["test_accuracy"]


def _total(record: Record, key: str) -> float:
    return sum(round_record[key] for round_record in record["rounds"])


def _slots(grid: Grid) -> list[Slot]:
    return list(grid.slots.values())


def format_row(entries: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    # A pipe within an entry would end it.
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"


def _join(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
