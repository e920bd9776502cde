"""Trains FedMPQ, or a scheme it is compared with, on CIFAR-10.

    python examples/cifar10_fedmpq.py --alpha=0.1 --preset=quick --output_dir=/tmp/run

The preset says everything about the run; every other flag replaces one of its settings.
Results are in the output directory: result.json, curves.png, metrics.csv, tensorboard/.
"""

from __future__ import annotations

import os
import sys

import experiment_flags
from absl import app, flags, logging

from tff_fedmpq.federated.schemes import ALL_SCHEMES
from tff_fedmpq.simulation import report
from tff_fedmpq.simulation.experiment import run_experiment

_SCHEME = flags.DEFINE_enum("scheme", "fedmpq", list(ALL_SCHEMES), "What to train.")
_SEED = flags.DEFINE_integer("seed", None, "Fixes everything random.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where results and checkpoints go; by default runs/<scheme>."
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --output_dir; a finished one is not redone."
)


def main(argv: list[str]) -> int:
    """Runs what the flags say; user errors end in one line."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    output_dir = _OUTPUT_DIR.value or os.path.join("runs", _SCHEME.value)
    try:
        config = experiment_flags.read_config(
            scheme=_SCHEME.value,
            scheme_options=experiment_flags.read_fedmpq_options(),
            seed=_SEED.value,
        )
        result = run_experiment(
            config,
            output_dir,
            data_dir=experiment_flags.DATA_DIR.value,
            resume=_RESUME.value,
        )
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(report.describe_result(result))
    print(f"Results: {os.path.abspath(output_dir)}")
    return 0


if __name__ == "__main__":
    app.run(main)
