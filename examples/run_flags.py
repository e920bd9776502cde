"""What the programs that run experiments share: data, preset, errors in one line."""

from __future__ import annotations

import functools
import logging
import os

# TensorFlow's start-up notes say nothing about a run.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)

import signal  # noqa: E402
import sys  # noqa: E402
from typing import Callable  # noqa: E402

import setting_flags  # noqa: E402
from absl import flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

from tff_fedmpq.simulation import data  # noqa: E402
from tff_fedmpq.simulation.config import (  # noqa: E402
    PRESETS,
    ExperimentConfig,
    Workers,
)

PRESET = flags.DEFINE_enum(
    "preset",
    "paper",
    list(PRESETS),
    "Settings to start from. paper: 50 rounds of 5 local epochs, hours on a laptop. "
    "quick: few images and a small network, minutes.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Directory of the data set; default: $TFF_FEDMPQ_DATA_DIR, then ~/.keras/datasets, "
    "then a download.",
)
_WORKERS = flags.DEFINE_list(
    "workers",
    None,
    "Addresses of workers (tff_fedmpq.worker) that train the clients: host:port, "
    "unix:/path, @FILE of addresses, dns:host:port. Default: this machine.",
)
_TLS_DIR = flags.DEFINE_string(
    "tls_dir", None, "Folder of this machine's certificate, to reach workers."
)
_INSECURE = flags.DEFINE_bool("insecure", False, "Reach workers without TLS.")
_CLIENTS_DIR = flags.DEFINE_string(
    "clients_dir",
    None,
    "Folder of the clients' files, which workers need in their --data_dir.",
)
_DATASET = flags.DEFINE_enum(
    "dataset",
    "auto",
    sorted(data.LOADERS),
    "Data set. auto is CIFAR-10 where it is found or can be downloaded, else "
    "scikit-learn's digits, which need no file.",
)
setting_flags.define_flags()
_HELP = {"--help", "-help", "-h", "--helpshort"}


@functools.cache
def load_dataset() -> data.ImageDataset:
    """Returns the data set that the flags name."""
    return data.load(_DATASET.value, DATA_DIR.value)


def workers() -> Workers | None:
    """Returns the machines that the flags name; None for this one."""
    if not _WORKERS.value:
        return None
    addresses = tuple(_WORKERS.value)
    return Workers(addresses, _TLS_DIR.value, _INSECURE.value, _CLIENTS_DIR.value)


def announce(config: ExperimentConfig, dataset: data.ImageDataset) -> None:
    """Prints what a run trains on which data, before TensorFlow is imported."""
    height, width = dataset.image_shape[:2]
    available = len(dataset.train_labels)
    used = min(config.train_examples or available, available)
    bits = sorted({budget for budget in config.budgets if not isinstance(budget, str)})
    budgets = [f"{bits[0]:g} to {bits[-1]:g} bits per weight"] if bits else []
    sizes = dict.fromkeys(
        budget for budget in config.budgets if isinstance(budget, str)
    )
    print(
        f"{config.scheme.name}: {config.model or dataset.model} on {dataset.name}, "
        f"{used:,} training images of {height}x{width} ({dataset.source})\n"
        f"{config.num_clients} clients, Dirichlet({config.alpha:g}), budgets of "
        f"{', '.join([*budgets, *sizes])}; {config.rounds} rounds of "
        f"{config.clients_per_round} clients, {config.scheme.epochs} local epochs\n"
        "Building the federated process ...",
        flush=True,
    )


def run(main: Callable[[], None]) -> int:
    """Parses the flags and runs a program.

    Errors of the user end in one line and status 2. Not `absl.app.run`: TensorFlow
    imported inside it starts in graph mode.

    Args:
      main: Program, which reads its flags.

    Returns:
      The exit status.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    if _HELP & set(sys.argv[1:]):
        print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
        for module in (__name__, setting_flags.__name__):
            print(flags.FLAGS.module_help(module))
        return 0
    signal.signal(signal.SIGTERM, _terminate)
    try:
        extra = flags.FLAGS(sys.argv)[1:]
        if extra:
            raise ValueError(f"unexpected arguments {extra}")
        main()
    # A ConnectionError is of workers, not of files.
    except (flags.Error, ConnectionError, ImportError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        word = "Terminated" if isinstance(interrupt, _Terminated) else "Interrupted"
        print(f"{word}; continue with --resume.", file=sys.stderr)
        return 143 if isinstance(interrupt, _Terminated) else 130
    except Exception as error:
        if not _concerns_files(error):
            raise
        # TensorFlow's and the system's texts may have several lines.
        reason = " ".join(str(error).split())
        print(
            f"Error: {reason}. Make room or choose another directory, then continue "
            "with --resume.",
            file=sys.stderr,
        )
        return 2
    return 0


class _Terminated(KeyboardInterrupt):
    """The program got SIGTERM."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _concerns_files(error: BaseException | None) -> bool:
    """Returns whether an error, or what caused it, is one of reading or writing."""
    if error is None or isinstance(error, OSError):
        return error is not None
    # TensorFlow's own, known if it was imported.
    names = "ResourceExhaustedError", "PermissionDeniedError"
    return type(error).__name__ in names or _concerns_files(error.__cause__)
