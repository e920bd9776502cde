"""Checkpoints of a run: the process's state and a record, per finished round.

    OUTPUT/checkpoints/round_<n>.npz   tensors of the state, and digests of all records
    OUTPUT/rounds/<n>.json             record of the round, written before it

A round counts as done when its state is saved, which is awaited: TFF's own training
program saves in the background, where a kill can lose several rounds. A state that
cannot be read is passed over for the one before it, and kept under another name.
Loading executes nothing that a file brings, as a SavedModel's graph would.
"""

from __future__ import annotations

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq.files import PathLike, remove_leftovers, write_atomically

_KEPT = 2  # The latest state, and one to fall back to.
_DIGESTS = "records"  # SHA-256 of each round's record, uint8[n, 32].


class CheckpointError(ValueError):
    """A run was saved, and what was saved cannot be read."""


class Checkpoints:
    """Saves and restores the rounds of one run, below its output directory."""

    def __init__(self, directory: PathLike):
        self._states = pathlib.Path(directory, "checkpoints")
        self._records = pathlib.Path(directory, "rounds")
        for folder in (self._states, self._records):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)

    def save(self, round_number: int, state: Any, record: dict[str, Any]) -> None:
        """Saves a finished round, from 1; returns when its files are written."""
        content = json.dumps(record, allow_nan=False).encode()
        write_atomically(self._record_path(round_number), content)
        digests = [_digest(self._record_path(n)) for n in range(1, round_number + 1)]
        leaves = {str(i): leaf for i, leaf in enumerate(tf.nest.flatten(state))}
        file = io.BytesIO()
        np.savez(file, **{_DIGESTS: np.stack(digests)}, **leaves)
        write_atomically(self._state_path(round_number), file.getvalue())
        for old in self._versions()[:-_KEPT]:
            self._state_path(old).unlink()

    def load_latest(self, structure: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Returns the latest state that can be read, and all records up to it.

        Without any, these are `structure`, which is any state of the process, and [].
        `CheckpointError` if states were saved, and none of them can be read with the
        records of all rounds up to it. Nothing is touched then.
        """
        damaged: dict[int, Exception] = {}
        for version in reversed(self._versions()):
            try:
                loaded = self._load(version, structure)
            except Exception as error:  # Whatever a damaged file makes NumPy raise.
                logging.warning("Checkpoint of round %d is damaged: %s", version, error)
                damaged[version] = error
                continue
            for later in damaged:  # Their rounds will be done, and saved, again.
                path = self._state_path(later)
                path.replace(path.with_name(f"damaged_{later}.npz"))
            return loaded
        if damaged:
            reasons = "; ".join(f"round {r}: {error}" for r, error in damaged.items())
            raise CheckpointError(
                f"None of the checkpoints in {self._states} can be read with the "
                f"records of their rounds ({reasons}). Mend them, or delete the run's "
                "directory to begin anew."
            )
        return structure, []

    def _load(self, version: int, structure: Any) -> tuple[Any, list[dict[str, Any]]]:
        expected = [np.asarray(leaf) for leaf in tf.nest.flatten(structure)]
        with np.load(self._state_path(version), allow_pickle=False) as file:
            digests = file[_DIGESTS]
            if len(file.files) != len(expected) + 1:
                raise ValueError(
                    f"it has {len(file.files) - 1} tensors, of another run"
                )
            leaves = [file[str(i)] for i in range(len(expected))]
        for i, (leaf, like) in enumerate(zip(leaves, expected)):
            if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
                raise ValueError(f"tensor {i} is {leaf.dtype}{list(leaf.shape)}")
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                raise ValueError(f"tensor {i} is not finite")
        if digests.shape[:1] != (version,):
            raise ValueError("it has digests of other records")
        paths = [self._record_path(n) for n in range(1, version + 1)]
        for path, digest in zip(paths, digests):
            if not np.array_equal(_digest(path), digest):
                raise ValueError(f"{path} is damaged or was changed")
        records = [json.loads(path.read_text()) for path in paths]
        return tf.nest.pack_sequence_as(structure, leaves), records

    def _versions(self) -> list[int]:
        names = (path.stem for path in self._states.glob("round_*.npz"))
        return sorted(int(name.removeprefix("round_")) for name in names)

    def _state_path(self, round_number: int) -> pathlib.Path:
        return self._states / f"round_{round_number}.npz"

    def _record_path(self, round_number: int) -> pathlib.Path:
        return self._records / f"{round_number:05d}.json"


def _digest(path: pathlib.Path) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8)
