"""The same round in other systems, each in a Python environment of its own.

A peer is a program that prints "ready", then runs a round whenever it reads a line and
prints "done": so rounds of several systems alternate within one benchmark.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv
from collections.abc import Sequence

import numpy as np

_FOLDER = pathlib.Path(__file__).parent


class Peer:
    """A running peer; use it as a context manager."""

    def __init__(
        self,
        program: str,
        packages: Sequence[str],
        environments: pathlib.Path,
        *arguments: object,
    ):
        """Makes the peer's environment, if there is none, and starts its program.

        Args:
          program: File in this folder.
          packages: Requirements that are installed with pip.
          environments: Directory of environments, kept for the next run.
          *arguments: Arguments of the program.
        """
        folder = environments / pathlib.Path(program).stem
        python = folder / "bin" / "python"
        if not (folder / "complete").exists():
            venv.create(folder, clear=True, with_pip=True)
            command = [python, "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(command, check=True)
            (folder / "complete").touch()
        variables = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
        self._process = subprocess.Popen(
            [python, _FOLDER / program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            env=variables,
        )
        self._wait_for("ready")

    def run(self) -> None:
        """Runs a round."""
        print("go", file=self._process.stdin, flush=True)
        self._wait_for("done")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _wait_for(self, word: str) -> None:
        for line in self._process.stdout:
            if line.strip() == word:
                return
        raise RuntimeError(f"The peer ended with status {self._process.wait()}.")


def save_clients(path: pathlib.Path, images, labels, client_indices) -> None:
    """Writes the clients' examples to a file that peers read."""
    arrays = {f"images{n}": images[i] for n, i in enumerate(client_indices)}
    arrays |= {f"labels{n}": labels[i] for n, i in enumerate(client_indices)}
    np.savez(path, **arrays)
