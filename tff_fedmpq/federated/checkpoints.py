"""Checkpoints of a run: the process's state and a record, per finished round.

    OUTPUT/checkpoints/round_<version>/   state, by TFF's FileProgramStateManager
    OUTPUT/rounds/<version>.json          record of the round, written before it

A round counts as done when its state is saved. TFF's own training program saves in the
background, where a kill can lose several rounds; here each save is awaited. A state
that cannot be read is passed over for the one before it, and kept under another name.
"""

import json
import pathlib
import shutil
from typing import Any

from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.waiting import wait_for
from tff_fedmpq.files import PathLike, write_atomically

_PREFIX = "round_"


class CheckpointError(ValueError):
    """A run was saved, and what was saved cannot be read."""


class Checkpoints:
    """Saves and restores the rounds of one run, below its output directory."""

    def __init__(self, directory: PathLike):
        self._state_directory = pathlib.Path(directory, "checkpoints")
        self._records = pathlib.Path(directory, "rounds")
        self._records.mkdir(parents=True, exist_ok=True)
        # The latest state is kept, and one to fall back to.
        self._states = tff.program.FileProgramStateManager(
            str(self._state_directory), prefix=_PREFIX, keep_total=2, keep_first=False
        )

    def save(self, round_number: int, state: Any, record: dict[str, Any]) -> None:
        """Saves a finished round, from 1; returns when its files are written."""
        content = json.dumps(record).encode()
        write_atomically(self._record_path(round_number), content)
        wait_for(self._states.save(state, version=round_number))

    def load_latest(self, structure: Any) -> tuple[Any, list[dict[str, Any]]]:
        """Returns the latest state that can be read, and all records up to it.

        Without any, these are `structure`, which is any state of the process, and [].
        `CheckpointError` if states were saved, and none of them can be read with the
        records of all rounds up to it. Nothing is touched then.
        """
        versions = sorted(wait_for(self._states.get_versions()) or [], reverse=True)
        damaged: dict[int, Exception] = {}
        for version in versions:
            try:
                state = wait_for(self._states.load(version, structure))
                records = [self._read_record(r) for r in range(1, version + 1)]
            except Exception as error:  # Whatever a damaged file makes TFF raise.
                logging.warning("Checkpoint of round %d is damaged: %s", version, error)
                damaged[version] = error
                continue
            for later in damaged:  # Their rounds will be done, and saved, again.
                target = self._state_directory / f"damaged_{later}"
                shutil.rmtree(target, ignore_errors=True)
                (self._state_directory / f"{_PREFIX}{later}").rename(target)
            return state, records
        if damaged:
            reasons = "; ".join(f"round {r}: {error}" for r, error in damaged.items())
            raise CheckpointError(
                f"None of the checkpoints in {self._state_directory} can be read with "
                f"the records of their rounds ({reasons}). Mend them, or delete the "
                "run's directory to begin anew."
            )
        return structure, []

    def _record_path(self, round_number: int) -> pathlib.Path:
        return self._records / f"{round_number:05d}.json"

    def _read_record(self, round_number: int) -> dict[str, Any]:
        path = self._record_path(round_number)
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
