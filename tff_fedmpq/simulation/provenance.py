"""Which code, of which libraries, on which machine made a result."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.version import __version__

_PACKAGE = pathlib.Path(__file__).parents[1]


def describe() -> dict[str, Any]:
    """Returns versions of libraries, and the hardware, ready for JSON.

    Cores are those that this process may use, which may be fewer than there are.
    """
    return {
        "versions": {
            "tff_fedmpq": __version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "tensorflow_federated": tff.__version__,
            "numpy": np.__version__,
        },
        "hardware": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
        },
    }


def find_commit() -> str | None:
    """Returns the package's last commit, with "-dirty" if it was changed since.

    None where the package is not kept in Git. To be asked once, when a process begins:
    files may change while it runs, and the code that runs does not.
    """
    try:
        # Of nothing, where some other project's folder holds the package.
        commit = _git("log", "-1", "--format=%h", "--", ".")
        changes = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    if not commit:
        return None
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    finished = subprocess.run(
        ["git", *arguments],
        cwd=_PACKAGE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.strip()


def _processor() -> str:
    """Returns the processor's name as Linux has it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else "unknown"
