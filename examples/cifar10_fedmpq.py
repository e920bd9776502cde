"""Trains FedMPQ with TensorFlow Federated on CIFAR-10.

    python examples/cifar10_fedmpq.py --alpha=0.1 --preset=quick --output_dir=/tmp/run

The preset says everything about the run; every other flag replaces one of its settings.
Results are in the output directory: result.json, curves.png, metrics.csv, tensorboard/.
"""

from __future__ import annotations

import os
import sys

# TensorFlow's start-up notes say nothing about a run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging  # noqa: E402

from tff_fedmpq.simulation import report  # noqa: E402
from tff_fedmpq.simulation.config import (  # noqa: E402
    DTYPE_POLICIES,
    PRESETS,
    ExperimentConfig,
    config_from_preset,
)
from tff_fedmpq.simulation.datasets import LOADERS  # noqa: E402
from tff_fedmpq.simulation.experiment import run_experiment  # noqa: E402
from tff_fedmpq.simulation.models import MODEL_DEPTHS  # noqa: E402

_PRESET = flags.DEFINE_enum(
    "preset",
    "paper",
    sorted(PRESETS),
    "Settings to start from. 'paper': 50 rounds of 5 local epochs, hours on a laptop. "
    "'quick': a fifth of the images and a small network, within three minutes.",
)
_DATASET = flags.DEFINE_enum(
    "dataset",
    "auto",
    sorted(LOADERS),
    "'auto' is CIFAR-10 where it is found or can be downloaded, else scikit-learn's "
    "digits, which need no file.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Directory of the extracted data set; by default $TFF_FEDMPQ_DATA_DIR, then "
    "~/.keras/datasets, then a download.",
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/fedmpq", "Where results and checkpoints go."
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --output_dir; a finished one is not redone."
)
_SETTINGS = {
    "alpha": flags.DEFINE_float(
        "alpha", None, "Of the Dirichlet partition; smaller is more heterogeneous."
    ),
    "num_clients": flags.DEFINE_integer("num_clients", None, "Clients in all."),
    "budgets": flags.DEFINE_list(
        "budgets",
        None,
        "Bits per weight of each client, 1 to 8, fractions allowed: 2,2,4,4,4,6,... By "
        "default 20, 30, 30 and 20 % of the clients have 2, 4, 6 and 8 bits.",
    ),
    "clients_per_round": flags.DEFINE_integer(
        "clients_per_round", None, "Clients that train in a round."
    ),
    "rounds": flags.DEFINE_integer("rounds", None, "Communication rounds."),
    "local_epochs": flags.DEFINE_integer("local_epochs", None, "Epochs per round."),
    "batch_size": flags.DEFINE_integer("batch_size", None, "Of local training."),
    "model": flags.DEFINE_enum("model", None, sorted(MODEL_DEPTHS), "The network."),
    "train_examples": flags.DEFINE_integer(
        "train_examples", None, "Training images to use, drawn by the seed."
    ),
    "learning_rate": flags.DEFINE_float(
        "learning_rate", None, "Of the integer update of codes (eta)."
    ),
    "float_learning_rate": flags.DEFINE_float(
        "float_learning_rate", None, "Of BatchNorm and biases."
    ),
    "momentum": flags.DEFINE_float("momentum", None, "Of local SGD."),
    "weight_decay": flags.DEFINE_float("weight_decay", None, "Of local SGD."),
    "augment": flags.DEFINE_bool("augment", None, "Random crops and flips."),
    "compute": flags.DEFINE_enum(
        "compute",
        None,
        sorted(DTYPE_POLICIES),
        "What layers compute in; bfloat16 is faster on processors that have it.",
    ),
    "seed": flags.DEFINE_integer("seed", None, "Fixes everything random."),
}
_SCHEME_SETTINGS = {
    "lasso": flags.DEFINE_float("lasso", None, "Lambda of the group Lasso; 0 is off."),
    "pruning_threshold": flags.DEFINE_float(
        "epsilon", None, "Density up to which a layer's top bit plane is pruned."
    ),
}


def _read_config() -> ExperimentConfig:
    """Returns the configuration that the flags describe."""
    settings = {name: flag.value for name, flag in _SETTINGS.items()}
    options = {
        name: flag.value
        for name, flag in _SCHEME_SETTINGS.items()
        if flag.value is not None
    }
    return config_from_preset(
        _PRESET.value,
        scheme="fedmpq",
        scheme_options=options,
        dataset=_DATASET.value,
        **settings,
    )


def main(argv: list[str]) -> int:
    """Runs what the flags say; user errors end in one line."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    try:
        result = run_experiment(
            _read_config(),
            _OUTPUT_DIR.value,
            data_dir=_DATA_DIR.value,
            resume=_RESUME.value,
        )
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(report.describe_result(result))
    print(f"Results: {os.path.abspath(_OUTPUT_DIR.value)}")
    return 0


if __name__ == "__main__":
    app.run(main)
