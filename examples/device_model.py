"""Writes the files that devices of 2, 4 and 8 bits get from a finished run.

    python examples/cifar10_fedmpq.py --preset=quick --output_dir=runs/quick
    python examples/device_model.py runs/quick

The files go to RUN/devices: a packed file, which Keras loads again, and TFLite files
for LiteRT and TFLite Micro if their environment exists (docs/export.md).
"""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # No start-up notes of TensorFlow.

# First of all: on Python 3.12 and newer it prepares TensorFlow and TFF.
import tff_fedmpq  # noqa: F401

# isort: split
import tensorflow as tf  # noqa: E402

from tff_fedmpq import export  # noqa: E402
from tff_fedmpq.federated.evaluation import Evaluator  # noqa: E402
from tff_fedmpq.simulation.finished_run import load_run  # noqa: E402

tf.get_logger().setLevel("ERROR")


def main() -> None:
    """Writes the files of each device, and prints what they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="output directory of a run")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2, 4, 8])
    parser.add_argument("--images", type=int, default=50, help="images to compare on")
    arguments = parser.parse_args()

    run = load_run(arguments.run)
    folder = arguments.run / "devices"
    folder.mkdir(exist_ok=True)
    images = run.dataset.test_images[: arguments.images].astype("float32")
    writers: dict[str, Callable[..., export.ExportReport]] = {
        "litert.tflite": export.write_litert,
        "micro.tflite": export.write_tflite_micro,
    }
    try:
        export.find_python()
    except export.ExportError as error:
        print(f"No TFLite files: {error}")
        writers.clear()
    for budget in arguments.budgets:
        model = run.device_model(budget)
        test = Evaluator(model, run.dataset.test_images, run.dataset.test_labels)
        print(f"{budget:g} bits: accuracy {test.evaluate().accuracy:.3f}")
        print(f"  {export.write_packed(model, folder / f'{budget:g}bits.fedmpq')}")
        for suffix, write in writers.items():
            print(f"  {write(model, folder / f'{budget:g}bits.{suffix}', images)}")


if __name__ == "__main__":
    main()
