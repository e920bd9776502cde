"""The result file of a cell: small enough to be committed, and all the document needs.

    RESULTS/<preset>/<result id>.json

A finished run leaves its `result.json` without the lists that hold something for each
client in each round (`clients`, `next_bit_widths`), and without densities where the
file would be large; one that was interrupted, or diverged, leaves `"finished": false`
and the rounds done.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tff_fedmpq.federated.schemes import build_scheme
from tff_fedmpq.simulation.config import ExperimentConfig, complete_protocol
from tff_fedmpq.simulation.files import PathLike, write_atomically
from tff_fedmpq.simulation.reproduction.cells import Cell

MAX_BYTES = 200_000
_PER_CLIENT = ("clients", "next_bit_widths")
_DENSITIES = "top_plane_densities"
# It changes what a run costs, and rounding; another seed does more.
_IMMATERIAL = ("compute",)
# Of codes, so of no consequence where there are none.
_OF_CODES = ("learning_rate", "learning_rate_decay")
# Options that the first result files do not mention, and how their runs behaved.
_FORMER_OPTIONS = {"low_bit_damping": 0.0, "learning_rate_unit": "code"}


def result_path(results_dir: PathLike, cell: Cell) -> pathlib.Path:
    """Returns where a cell's result file lies."""
    return pathlib.Path(results_dir) / cell.preset / f"{cell.result_id}.json"


def command_of(cell: Cell, config: ExperimentConfig) -> str:
    """Returns the command that makes a cell's result."""
    return (
        f"python examples/reproduce.py {cell.id.split('/')[0]} --preset={cell.preset} "
        f"--cells='{cell.id}' --seeds={config.seed} --compute={config.compute}"
    )


def finished_record(
    result: Mapping[str, Any], cell: Cell, config: ExperimentConfig
) -> dict[str, Any]:
    """Returns what is kept of a finished run.

    Args:
      result: as `run_experiment` returns it.
      cell: of the run.
      config: of the run.
    """
    record = {**_heading(cell, config, True, len(result["rounds"])), **result}
    record["rounds"] = _without(result["rounds"], *_PER_CLIENT)
    if len(format_record(record)) > MAX_BYTES:
        record["rounds"] = _without(record["rounds"], _DENSITIES)
    return record


def unfinished_record(
    cell: Cell, config: ExperimentConfig, rounds_done: int, diverged: bool = False
) -> dict[str, Any]:
    """Returns what is said of a run that was interrupted, or diverged after a round."""
    return {
        **_heading(cell, config, False, rounds_done),
        **({"diverged": True} if diverged else {}),
        "protocol": config.as_dict(),
    }


def describe_state(record: Mapping[str, Any]) -> str:
    """Returns "finished", "round 12 of 50" or "diverged in round 13 of 50"."""
    if record["finished"]:
        return "finished"
    done, rounds = record["rounds_done"], record["protocol"]["rounds"]
    if has_diverged(record):
        return f"diverged in round {done + 1} of {rounds}"
    return f"round {done} of {rounds}"


def has_diverged(record: Mapping[str, Any]) -> bool:
    """Returns whether a run ended without a result, as it would end again."""
    return record.get("diverged", False)


def write_record(results_dir: PathLike, cell: Cell, record: Mapping[str, Any]) -> None:
    """Writes a cell's result file, whole or not at all."""
    path = result_path(results_dir, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, format_record(record).encode())


def read_records(results_dir: PathLike, preset: str) -> dict[str, dict[str, Any]]:
    """Returns all result files of a preset: result id -> content.

    Raises:
      ValueError: naming a file that is damaged.
    """
    folder = pathlib.Path(results_dir) / preset
    return {
        str(path.relative_to(folder).with_suffix("")): _read(path)
        for path in sorted(folder.rglob("*.json"))
        if not path.name.startswith(".")
    }


def find_record(
    records: Mapping[str, Mapping[str, Any]], config: ExperimentConfig
) -> str | None:
    """Returns the id of the result of a configuration, under whatever id it was run.

    Of several, one that is finished; None where there is none.

    Args:
      records: result id -> content of the result file.
      config: of the run.
    """
    wanted = _settings_key(config.as_dict())
    found = [
        name
        for name, record in records.items()
        if record["protocol"]["scheme"] == config.scheme
        and _settings_key(record["protocol"]) == wanted
    ]
    finished = [name for name in found if records[name]["finished"]]
    return next(iter(finished or found), None)


def _settings_key(protocol: Mapping[str, Any]) -> str:
    """Returns a text that runs of the same settings have in common, and no others."""
    protocol = complete_protocol(protocol)
    immaterial = set(_IMMATERIAL)
    if build_scheme(protocol["scheme"], {}).weights is None:
        immaterial.update(_OF_CODES)
    else:
        options = {**_FORMER_OPTIONS, **protocol["scheme_options"]}
        protocol = {**protocol, "scheme_options": options}
    material = {k: v for k, v in protocol.items() if k not in immaterial}
    return json.dumps(material, sort_keys=True)


def format_record(record: Mapping[str, Any]) -> str:
    """Returns a record as JSON with a line per entry, and per round."""
    lines = []
    for key, value in record.items():
        text = json.dumps(value)
        if key == "rounds" and value:
            text = "[\n  " + ",\n  ".join(json.dumps(r) for r in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _heading(
    cell: Cell, config: ExperimentConfig, finished: bool, rounds_done: int
) -> dict[str, Any]:
    return {
        "id": cell.result_id,
        "preset": cell.preset,
        "finished": finished,
        "rounds_done": rounds_done,
        "command": command_of(cell, config),
    }


def _without(rounds: list[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in keys} for r in rounds]


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        record["finished"], record["rounds_done"]
        for setting in ("scheme", "scheme_options", "seed"):
            record["protocol"][setting]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no result file of a cell ({error!r}); delete it and run the "
            "cell again."
        ) from None
    return record
