"""Record of the code, libraries and machine that made a result."""

from __future__ import annotations

import os
import pathlib
import platform
from importlib import metadata
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

from tff_fedmpq import processor
from tff_fedmpq.version import __version__

_PACKAGE = pathlib.Path(__file__).parents[1]
_LIBRARIES = ("tensorflow", "tensorflow-federated", "numpy")


def describe() -> dict[str, Any]:
    """Returns versions of libraries, and the hardware, ready for JSON.

    Only cores that this process may use are counted.
    """
    features = processor.processor_features()
    return {
        "versions": {
            "tff_fedmpq": __version__,
            "python": platform.python_version(),
            **{name.replace("-", "_"): metadata.version(name) for name in _LIBRARIES},
        },
        "hardware": {
            "processor": processor.processor_name(),
            "vector_instructions": sorted(
                name for name in features if name.startswith(("avx", "amx"))
            ),
            "cores": len(os.sched_getaffinity(0)),
            "onednn": processor.onednn_setting(),
        },
    }


def find_commit() -> str | None:
    """Returns the package's last commit, with "-dirty" if it was changed since.

    None where the package is not kept in Git. Call it when the process begins: files
    may change while it runs, the imported code does not.
    """
    try:
        # Empty where another project's repository contains the package.
        commit = _git("log", "-1", "--format=%h", "--", ".")
        changes = _git("status", "--porcelain", "--", ".")
    except (OSError, CalledProcessError):
        return None
    return (f"{commit}-dirty" if changes else commit) or None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    return check_output(command, stdin=DEVNULL, stderr=DEVNULL, text=True).strip()
