"""Files for devices from a federated run: sizes, and accuracy from the file itself.

    python examples/cifar10_fedmpq.py --preset=quick --model=resnet20 \
        --budgets=2,3,4,8 --output_dir=runs/export
    python -m studies.export_files runs/export

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
from collections.abc import Mapping
from typing import Any

import numpy as np

import tff_fedmpq
from studies import pages
from tff_fedmpq import export
from tff_fedmpq.export.report import report_of
from tff_fedmpq.simulation import data, provenance
from tff_fedmpq.simulation.finished_run import load_run

_ROOT = pathlib.Path(__file__).parents[1]
RESULTS = _ROOT / "studies" / "results" / "export"
PAGE = _ROOT / "docs" / "export.md"
_BUDGETS = (2.0, 3.0, 4.0, 8.0)
_WRITERS = {"litert": export.write_litert, "micro": export.write_tflite_micro}
_IMAGES, _PART, _COMPARED = 2000, 100, 50


def main() -> None:
    """Measures all files of a run, and writes the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="output directory of a run")
    parser.add_argument(
        "--micro_images", type=int, default=_IMAGES, help="images for TFLite Micro"
    )
    arguments = parser.parse_args()
    folder, counts = arguments.run, {"micro": arguments.micro_images}
    write_packed_files(folder)
    settings = json.loads((folder / "config.json").read_text())
    dataset = data.load(settings["dataset"])
    images = dataset.test_images[:_IMAGES].astype(np.float32)
    labels = dataset.test_labels[:_IMAGES]
    names = ("model", "dataset", "epochs", "train_examples", "budgets", "seed")
    rounds = len(list((folder / "rounds").glob("*.json")))
    result = {
        "run": {"rounds": rounds, **{name: settings[name] for name in names}},
        "devices": [
            measure(budget, folder / "devices", images, labels, counts)
            for budget in _BUDGETS
        ],
        **provenance.describe(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{settings['model']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    pages.put(PAGE, "measured", tables(result))


def write_packed_files(folder: pathlib.Path) -> None:
    """Writes what needs TensorFlow Federated: packed files, and Keras's outputs."""
    devices = folder / "devices"
    devices.mkdir(exist_ok=True)
    missing = [b for b in _BUDGETS if not _path(devices, b, "npy").exists()]
    if not missing:
        return
    run = load_run(folder)
    images = run.dataset.test_images[:_IMAGES].astype(np.float32)
    for budget in missing:
        model = run.device_model(budget)
        export.write_packed(model, _path(devices, budget, "fedmpq"))
        np.save(_path(devices, budget, "npy"), model.predict(images, verbose=0))


def measure(
    budget: float,
    folder: pathlib.Path,
    images: np.ndarray,
    labels: np.ndarray,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Returns the sizes of a device's files, and accuracies on all or fewer images."""
    paths = {
        kind: _path(folder, budget, kind) for kind in ("fedmpq", "litert", "micro")
    }
    model = export.read_packed(paths["fedmpq"])
    expected = np.load(_path(folder, budget, "npy"))
    kept = _path(folder, budget, "fedmpq.npy")
    if not kept.exists():
        np.save(kept, model.predict(images, verbose=0))
    found = {"fedmpq": np.load(kept)}
    for kind, write in _WRITERS.items():
        if not paths[kind].exists():
            print(write(model, paths[kind], images[:_COMPARED]), flush=True)
        some = images[: counts.get(kind)]
        found[kind] = _outputs_in_parts(kind, paths[kind], some, model)
    report = report_of(model, paths["fedmpq"])
    return {
        "budget": budget,
        "mean_bit_width": tff_fedmpq.summary(model).mean_bit_width,
        "code_bytes": report.code_bytes,
        "other_bytes": report.other_bytes,
        "files": {
            kind: {
                "bytes": path.stat().st_size,
                **_comparison(expected, found[kind], labels),
            }
            for kind, path in paths.items()
        },
    }


def _path(folder: pathlib.Path, budget: float, suffix: str) -> pathlib.Path:
    return folder / f"{budget:g}bits.{suffix}"


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


def _comparison(
    expected: np.ndarray, found: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Compares a file's logits with Keras's, on as many images as there are."""
    expected, labels = expected[: len(found)], labels[: len(found)]
    difference = np.abs(expected - found).max(1)
    return {
        "images": len(found),
        "accuracy": float(np.mean(found.argmax(1) == labels)),
        "keras_accuracy": float(np.mean(expected.argmax(1) == labels)),
        "largest_difference": float(difference.max()),
        "median_difference": float(np.median(difference)),
        "equal_labels": int((expected.argmax(1) == found.argmax(1)).sum()),
    }


def tables(result: dict[str, Any]) -> str:
    """Returns the tables of a result in Markdown."""
    run = result["run"]
    lines = [
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
        "Sizes are in bytes; floats include scales. Outputs of the file itself on test "
        "images:",
        "",
        "| device | file | images | accuracy | Keras's | equal labels | difference: "
        "median | largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {"fedmpq": "packed, in Keras", "litert": "LiteRT", "micro": "TFLite Micro"}
    for row in result["devices"]:
        for kind, file in row["files"].items():
            lines.append(
                f"| {row['budget']:g} bits | {names[kind]} | {file['images']:,} | "
                f"{file['accuracy']:.4f} | {file['keras_accuracy']:.4f} | "
                f"{file['equal_labels']:,} | "
                f"{file['median_difference']:.1e} | {file['largest_difference']:.1e} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
