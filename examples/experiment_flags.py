"""Flags that describe a run, shared by the examples."""

from __future__ import annotations

import os

# TensorFlow's start-up notes say nothing about a run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Sequence  # noqa: E402
from typing import Any  # noqa: E402

from absl import flags  # noqa: E402

from tff_fedmpq.federated.local_training import DECAYS  # noqa: E402
from tff_fedmpq.federated.schemes import build_scheme  # noqa: E402
from tff_fedmpq.simulation.compute import AUTO, DTYPE_POLICIES  # noqa: E402
from tff_fedmpq.simulation.config import (  # noqa: E402
    PRESETS,
    ExperimentConfig,
    config_from_preset,
)
from tff_fedmpq.simulation.datasets import LOADERS  # noqa: E402
from tff_fedmpq.simulation.models import MODEL_DEPTHS  # noqa: E402

_PRESET_CONFIGS = {preset: config_from_preset(preset) for preset in PRESETS}


def _with_default(name: str, text: str) -> str:
    """Returns the help text of a setting, with its value in every preset."""
    values = {preset: getattr(c, name) for preset, c in _PRESET_CONFIGS.items()}
    if len(set(values.values())) == 1:
        return f"{text} By default {next(iter(values.values()))}."
    return f"{text} By default {', '.join(f'{v} ({p})' for p, v in values.items())}."


_PRESET = flags.DEFINE_enum(
    "preset",
    "paper",
    sorted(PRESETS),
    "Settings to start from; other flags replace some of them. 'paper': 50 rounds of 5 "
    "local epochs, hours on a laptop. 'quick': a fifth of the images and a small "
    "network, within three minutes.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Directory of the extracted data set; by default $TFF_FEDMPQ_DATA_DIR, then "
    "~/.keras/datasets, then a download.",
)
_SETTINGS = {
    "dataset": flags.DEFINE_enum(
        "dataset",
        None,
        sorted(LOADERS),
        "'auto' (the default) is CIFAR-10 where it is found or can be downloaded, else "
        "scikit-learn's digits, which need no file.",
    ),
    "alpha": flags.DEFINE_float(
        "alpha",
        None,
        _with_default(
            "alpha", "Of the Dirichlet partition; smaller is more heterogeneous."
        ),
    ),
    "num_clients": flags.DEFINE_integer(
        "num_clients",
        None,
        _with_default("num_clients", "Clients in all."),
    ),
    "budgets": flags.DEFINE_list(
        "budgets",
        None,
        "Bits per weight of each client, 1 to 8, fractions allowed: 2,2,4,4,4,6,... By "
        "default 20, 30, 30 and 20 % of the clients have 2, 4, 6 and 8 bits.",
    ),
    "clients_per_round": flags.DEFINE_integer(
        "clients_per_round",
        None,
        _with_default("clients_per_round", "Clients that train in a round."),
    ),
    "rounds": flags.DEFINE_integer(
        "rounds",
        None,
        _with_default("rounds", "Communication rounds."),
    ),
    "local_epochs": flags.DEFINE_integer(
        "local_epochs",
        None,
        _with_default("local_epochs", "Epochs per round."),
    ),
    "batch_size": flags.DEFINE_integer(
        "batch_size",
        None,
        _with_default("batch_size", "Of local training."),
    ),
    "model": flags.DEFINE_enum(
        "model",
        None,
        sorted(MODEL_DEPTHS),
        _with_default("model", "The network."),
    ),
    "validation_examples": flags.DEFINE_integer(
        "validation_examples",
        None,
        "Training images that are held out and take the place of the test images: for "
        "choosing settings.",
    ),
    "train_examples": flags.DEFINE_integer(
        "train_examples",
        None,
        _with_default(
            "train_examples", "Training images to use, drawn by the seed; None: all."
        ),
    ),
    "learning_rate": flags.DEFINE_float(
        "learning_rate",
        None,
        "eta of quantized kernels at the first round; by default the scheme's own.",
    ),
    "learning_rate_decay": flags.DEFINE_enum(
        "learning_rate_decay",
        None,
        sorted(DECAYS),
        "Of eta, over the rounds; by default the scheme's own.",
    ),
    "float_learning_rate": flags.DEFINE_float(
        "float_learning_rate",
        None,
        _with_default(
            "float_learning_rate",
            "Of BatchNorm and biases; in the float schemes, of all weights.",
        ),
    ),
    "float_learning_rate_decay": flags.DEFINE_enum(
        "float_learning_rate_decay",
        None,
        sorted(DECAYS),
        _with_default(
            "float_learning_rate_decay", "Of float_learning_rate, over the rounds."
        ),
    ),
    "momentum": flags.DEFINE_float(
        "momentum",
        None,
        _with_default("momentum", "Of local SGD."),
    ),
    "weight_decay": flags.DEFINE_float(
        "weight_decay",
        None,
        _with_default("weight_decay", "Of local SGD."),
    ),
    "augment": flags.DEFINE_bool(
        "augment", None, _with_default("augment", "Random crops and flips.")
    ),
    "compute": flags.DEFINE_enum(
        "compute",
        None,
        sorted([AUTO, *DTYPE_POLICIES]),
        "What layers compute in; 'auto' (the default) is bfloat16 for quantized "
        "schemes on processors that have instructions for it, else float32.",
    ),
}
FEDMPQ_SCHEMES = ("fedmpq", "fedmpq_literal")
_FEDMPQ = build_scheme("fedmpq", {})
_FEDMPQ_OPTIONS = {
    "lasso": flags.DEFINE_float(
        "lasso",
        None,
        f"FedMPQ: lambda of the group Lasso; 0 is off. By default {_FEDMPQ.lasso}.",
    ),
    "pruning_threshold": flags.DEFINE_float(
        "epsilon",
        None,
        "FedMPQ: density up to which a top bit plane is pruned. By default "
        f"{_FEDMPQ.training.pruning_threshold}.",
    ),
}


def read_config(**settings: Any) -> ExperimentConfig:
    """Returns the configuration that the flags describe.

    Args:
      **settings: of `ExperimentConfig`, instead of flags.

    Raises:
      ValueError: for a setting out of range.
    """
    from_flags = {name: flag.value for name, flag in _SETTINGS.items()}
    from_flags["dataset"] = from_flags["dataset"] or "auto"
    return config_from_preset(_PRESET.value, **{**from_flags, **settings})


def read_fedmpq_options() -> dict[str, Any]:
    """Returns the options of FedMPQ that were given."""
    values = {name: flag.value for name, flag in _FEDMPQ_OPTIONS.items()}
    return {name: value for name, value in values.items() if value is not None}


def check_flags_act_on(schemes: Sequence[str]) -> None:
    """Checks that no flag was given that none of the schemes has a use for.

    Raises:
      ValueError: naming the flag, or an unknown scheme.
    """
    if not set(schemes) & set(FEDMPQ_SCHEMES) and read_fedmpq_options():
        raise ValueError(f"--lasso and --epsilon are FedMPQ's; found {schemes}.")
    if all(build_scheme(scheme, {}).weights is None for scheme in schemes):
        for name in ("learning_rate", "learning_rate_decay"):
            if _SETTINGS[name].value is not None:
                raise ValueError(
                    f"--{name} is of quantized kernels, which {schemes} do not have: "
                    f"--float_{name} is of all their weights."
                )
