"""The same small run on two Pythons: a record of each, and how near they are.

    uv run --python 3.11 studies/pythons.py
    UV_PROJECT_ENVIRONMENT=.venv313 uv run --python 3.13 studies/pythons.py

FedMPQ on digits, `--preset=quick` for 10 rounds in float32, seed 0. Each command writes
`studies/results/pythons/pythonX.Y.json`; then, where both records exist,
`studies/results/pythons/comparison.json`.
"""

from __future__ import annotations

import json
import pathlib
import platform
import tempfile
from importlib import metadata
from typing import Any

from tff_fedmpq.simulation.config import make_config
from tff_fedmpq.simulation.experiment import run_experiment

_FOLDER = pathlib.Path(__file__).parent / "results" / "pythons"
_PACKAGES = ("tensorflow", "tf-keras", "tensorflow-federated", "numpy", "jax")
# Of each round. Bits are counted from what was sent, and have to be the same.
_EXACT = ("uplink_bits", "downlink_bits", "mean_bit_width")
_CLOSE = ("test_accuracy", "test_loss", "train_loss")


def main() -> None:
    """Runs, writes the record and compares the records there are."""
    config = make_config(
        "quick", dataset="digits", rounds=10, compute="float32", seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        result = run_experiment(config, pathlib.Path(folder) / "run")
    rounds = [{key: r[key] for key in (*_EXACT, *_CLOSE)} for r in result["rounds"]]
    version = ".".join(platform.python_version_tuple()[:2])
    record = {
        "versions": {"python": platform.python_version(), **_versions()},
        "settings": config.as_dict(),
        "rounds": rounds,
        "devices": result["devices"],
    }
    _FOLDER.mkdir(parents=True, exist_ok=True)
    _write(_FOLDER / f"python{version}.json", record)
    paths = sorted(_FOLDER.glob("python*.json"))
    if len(paths) == 2:
        records = [json.loads(path.read_text()) for path in paths]
        _write(_FOLDER / "comparison.json", compare(*records))


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Returns what is equal and the largest differences over the rounds."""
    if first["settings"] != second["settings"]:
        raise ValueError("Expected two records of the same settings.")
    pairs = list(zip(first["rounds"], second["rounds"]))
    return {
        "versions": [first["versions"], second["versions"]],
        "rounds": len(pairs),
        "equal": {key: all(a[key] == b[key] for a, b in pairs) for key in _EXACT},
        "largest_difference": {
            key: max(abs(a[key] - b[key]) for a, b in pairs) for key in _CLOSE
        },
        "last_test_accuracy": [
            r["rounds"][-1]["test_accuracy"] for r in (first, second)
        ],
        "devices_bit_widths": [
            {budget: d["mean_bit_width"] for budget, d in r["devices"].items()}
            for r in (first, second)
        ],
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(path.relative_to(_FOLDER.parents[2]))


if __name__ == "__main__":
    main()
