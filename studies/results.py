"""The result file of a run: `results/<study>/<cell>/seed<k>.json`.

A file holds either a finished run or one that diverged. It keeps of each round what the
analysis needs, a line per round, so that it stays small enough to be committed.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tff_fedmpq.files import write_atomically

FINISHED, DIVERGED = "finished", "diverged"
_ROUND = (
    "round",
    "test_loss",
    "test_accuracy",
    "train_loss",
    "uplink_bits",
    "downlink_bits",
    "mean_bit_width",
    "devices",
    "rejected",
    "seconds",
)
_HEADING = ("versions", "hardware")
# Settings appear once, under their own name; the layers' names are those of the model.
_LEFT_OUT = (*_HEADING, "rounds", "protocol", "settings", "seed", "layers")
_DIGITS = 6


def finished_record(heading: Mapping[str, Any], result: Mapping[str, Any]) -> dict:
    """Returns the content of a finished run's file.

    Args:
      heading: Study, run, seed, command and settings.
      result: Return value of `run_experiment`.
    """
    rounds = [{key: r[key] for key in _ROUND if key in r} for r in result["rounds"]]
    # Without the directories of this machine.
    if source := result.get("dataset_source"):
        result = {**result, "dataset_source": pathlib.PurePath(source).name}
    return {
        **heading,
        "state": FINISHED,
        **{key: result.get(key) for key in _HEADING},
        "commits": sorted({r["commit"] for r in result["rounds"] if r.get("commit")}),
        "final": {k: v for k, v in result.items() if k not in (*_LEFT_OUT, *heading)},
        "rounds": rounds,
    }


def diverged_record(
    heading: Mapping[str, Any], error: Exception, provenance: Mapping[str, Any]
) -> dict:
    """Returns the content of the file of a run that raised a `DivergenceError`.

    Args:
      heading: Study, run, seed, command and settings.
      error: The error.
      provenance: Versions and hardware.
    """
    error_text = {"state": DIVERGED, "error": str(error)}
    return {**heading, **error_text, **provenance, "rounds": []}


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a result file, whole or not at all, with floats of six digits."""
    lines = []
    for key, value in _rounded(record).items():
        text = json.dumps(value)
        if key == "rounds" and value:
            text = "[\n  " + ",\n  ".join(json.dumps(entry) for entry in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read_record(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the content of a result file; None where there is none.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        record = json.loads(path.read_text())
        record["state"], record["settings"], record["rounds"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result file ({error!r}); delete it.") from None
    return record


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value
