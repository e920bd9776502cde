"""Files for devices from a federated run: sizes, and accuracy from the file itself.

    python examples/cifar10_fedmpq.py --preset=quick --model=resnet20 \
        --budgets=2,3,4,8 --output_dir=runs/export
    python studies/export_files.py runs/export

For each budget the device's model is written as a packed file, for LiteRT and for
TFLite Micro (docs/export.md); 2,000 test images then go through each file in its own
runtime, in parts that are kept, so that the command can be stopped and given again. The
numbers go to `studies/results/export/<model>.json`, and the tables to `docs/export.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

import tff_fedmpq
from tff_fedmpq import export
from tff_fedmpq.simulation import provenance
from tff_fedmpq.simulation.finished_run import FinishedRun, load_run

_ROOT = pathlib.Path(__file__).parents[1]
RESULTS = _ROOT / "studies" / "results" / "export"
PAGE = _ROOT / "docs" / "export.md"
_MARKS = "<!-- measured -->\n", "<!-- end -->"
_BUDGETS = (2.0, 3.0, 4.0, 8.0)
_IMAGES, _PART, _COMPARED = 2000, 100, 50


def main() -> None:
    """Measures all files of a run, and writes the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="output directory of a run")
    folder = parser.parse_args().run
    run = load_run(folder)
    devices = [measure(run, budget, folder / "devices") for budget in _BUDGETS]
    result = {
        "run": describe_run(run, folder),
        "images": _IMAGES,
        "devices": devices,
        **provenance.describe(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{run.config.model}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_page(result)


def describe_run(run: FinishedRun, folder: pathlib.Path) -> dict[str, Any]:
    """Returns how long a run trained, and on what."""
    config = run.config
    records = len(list((folder / "rounds").glob("*.json")))
    return {
        "model": config.model,
        "dataset": config.dataset,
        "rounds": records,
        "epochs": config.scheme.epochs,
        "train_examples": len(run.dataset.train_labels),
        "budgets": list(config.budgets),
        "seed": config.seed,
    }


def measure(run: FinishedRun, budget: float, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the files of a device, and returns their sizes and accuracies."""
    folder.mkdir(exist_ok=True)
    model = run.device_model(budget)
    images = run.dataset.test_images[:_IMAGES].astype(np.float32)
    labels = run.dataset.test_labels[:_IMAGES]
    paths = {
        kind: folder / f"{budget:g}bits.{kind}"
        for kind in ("fedmpq", "litert", "micro")
    }
    reports = {
        "fedmpq": export.write_packed(model, paths["fedmpq"]),
        "litert": export.write_litert(model, paths["litert"], images[:_COMPARED]),
        "micro": export.write_tflite_micro(model, paths["micro"], images[:_COMPARED]),
    }
    expected = model.predict(images, verbose=0)
    found = {"fedmpq": export.read_packed(paths["fedmpq"]).predict(images, verbose=0)}
    for kind in ("litert", "micro"):
        found[kind] = _outputs_in_parts(kind, paths[kind], images, model)
    report = reports["fedmpq"]
    return {
        "budget": budget,
        "mean_bit_width": tff_fedmpq.summary(model).mean_bit_width,
        "code_bytes": report.code_bytes,
        "other_bytes": report.other_bytes,
        "keras_accuracy": _accuracy(expected, labels),
        "files": {
            kind: {
                "bytes": reports[kind].num_bytes,
                "accuracy": _accuracy(found[kind], labels),
                **_differences(expected, found[kind]),
            }
            for kind in paths
        },
    }


def _outputs_in_parts(
    kind: str, path: pathlib.Path, images: np.ndarray, model: Any
) -> np.ndarray:
    """Returns a file's outputs, in parts that an interrupted command leaves."""
    parts, digest = [], hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    for begin in range(0, len(images), _PART):
        kept = path.with_suffix(f".{kind}.{digest}.{begin}.npy")
        if not kept.exists():
            part = [images[begin : begin + _PART]]
            np.save(kept, export.run_file(path, part, model, kind)[0])
        parts.append(np.load(kept))
    return np.concatenate(parts)


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(1) == labels))


def _differences(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    difference = np.abs(expected - found).max(1)
    return {
        "largest_difference": float(difference.max()),
        "median_difference": float(np.median(difference)),
        "equal_labels": int((expected.argmax(1) == found.argmax(1)).sum()),
    }


def write_page(result: dict[str, Any]) -> None:
    """Puts the tables of a result between the marks of the page."""
    text = PAGE.read_text()
    head, rest = text.split(_MARKS[0])
    _, tail = rest.split(_MARKS[1])
    PAGE.write_text(head + _MARKS[0] + tables(result) + _MARKS[1] + tail)


def tables(result: dict[str, Any]) -> str:
    """Returns the tables of a result in Markdown."""
    run, count = result["run"], result["images"]
    lines = [
        "",
        f"{run['model']} after {run['rounds']} rounds of {run['epochs']} epoch on "
        f"{run['train_examples']:,} images of {run['dataset']}, clients of "
        f"{', '.join(f'{b:g}' for b in run['budgets'])} bits.",
        "",
        "| device | mean bits | codes | floats | packed | LiteRT | TFLite Micro |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["devices"]:
        sizes = (f"{row['files'][kind]['bytes']:,}" for kind in row["files"])
        lines.append(
            f"| {row['budget']:g} bits | {row['mean_bit_width']:.2f} | "
            f"{row['code_bytes']:,.0f} | {row['other_bytes']:,} | {' | '.join(sizes)} |"
        )
    lines += [
        "",
        "Sizes are in bytes; floats include scales. Outputs of the file itself on "
        f"{count:,} test images:",
        "",
        "| device | file | accuracy | Keras's | equal labels | difference: median | "
        "largest |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"fedmpq": "packed, in Keras", "litert": "LiteRT", "micro": "TFLite Micro"}
    for row in result["devices"]:
        for kind, file in row["files"].items():
            lines.append(
                f"| {row['budget']:g} bits | {names[kind]} | {file['accuracy']:.4f} | "
                f"{row['keras_accuracy']:.4f} | {file['equal_labels']:,} | "
                f"{file['median_difference']:.1e} | {file['largest_difference']:.1e} |"
            )
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    main()
