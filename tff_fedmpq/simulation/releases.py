"""Metrics per round for other tools: CSV and TensorBoard, by TFF's release managers."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.waiting import wait_for

_RELEASED = (
    "test_accuracy",
    "test_loss",
    "train_loss",
    "train_accuracy",
    "uplink_bits",
    "downlink_bits",
    "mean_bit_width",
    "seconds",
)


class Releases:
    """Writes the numbers of each round to `metrics.csv` and `tensorboard/`."""

    def __init__(self, directory: str | os.PathLike[str]):
        """Uses the files of a run's output directory, old rounds kept."""
        directory = pathlib.Path(directory)
        self._managers = (
            tff.program.CSVFileReleaseManager(
                str(directory / "metrics.csv"),
                save_mode=tff.program.CSVSaveMode.APPEND,
                key_fieldname="round",
            ),
            tff.program.TensorBoardReleaseManager(str(directory / "tensorboard")),
        )

    def release(self, round_number: int, record: Mapping[str, Any]) -> None:
        """Writes one round.

        Of an interrupted run, the CSV file loses this round and later ones first;
        TensorBoard shows what came last.

        Args:
          round_number: from 1.
          record: of the round, as it stands in `result.json`.
        """
        values = {name: np.float64(record[name]) for name in _RELEASED}
        for manager in self._managers:
            wait_for(manager.release(values, round_number))
