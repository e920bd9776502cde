"""Trains FedMPQ, or a scheme it is compared with, on CIFAR-10.

    python examples/cifar10_fedmpq.py --alpha=0.1 --preset=quick --output_dir=runs/quick

Every flag replaces one setting of the preset. Results are in the output directory:
result.json, curves.png, metrics.csv, tensorboard/.
"""

from __future__ import annotations

import os
import sys

import run_flags
from absl import flags
from setting_flags import read_flags

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.simulation.config import make_config

_SCHEME = flags.DEFINE_enum("scheme", "fedmpq", list(SCHEMES), "Scheme to train.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Directory of results and checkpoints; default: runs/<scheme>."
)
_RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "Continue the run in --output_dir; a finished run is not redone.",
)
_TRACK = flags.DEFINE_multi_enum(
    "track", [], ["mlflow", "wandb"], "Tool that gets the rounds' numbers too, offline."
)


def main() -> None:
    """Runs the experiment that the flags describe."""
    output_dir = _OUTPUT_DIR.value or os.path.join("runs", _SCHEME.value)
    dataset = run_flags.load_dataset()
    config = make_config(
        run_flags.PRESET.value, _SCHEME.value, dataset=dataset.name, **read_flags()
    )
    run_flags.announce(config, dataset)

    from tff_fedmpq.simulation import report
    from tff_fedmpq.simulation.experiment import run_experiment

    result = run_experiment(
        config,
        output_dir,
        data_dir=run_flags.DATA_DIR.value,
        resume=_RESUME.value,
        workers=run_flags.workers(),
        track=_TRACK.value,
    )
    print(report.describe_result(result))
    print(f"Results: {output_dir}")


if __name__ == "__main__":
    sys.exit(run_flags.run(main))
