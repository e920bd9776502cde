"""Metrics per round for other tools: CSV and TensorBoard, by TFF's release managers."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.waiting import wait_for
from tff_fedmpq.files import PathLike

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
    """Appends the numbers of each round to `metrics.csv` and `tensorboard/`."""

    def __init__(self, directory: PathLike):
        table = os.path.join(directory, "metrics.csv")
        board = os.path.join(directory, "tensorboard")
        self._managers = (
            tff.program.CSVFileReleaseManager(table, key_fieldname="round"),
            tff.program.TensorBoardReleaseManager(board),
        )

    def release(self, round_number: int, record: Mapping[str, Any]) -> None:
        """Writes a round, counted from 1, from its record in `result.json`.

        Of an interrupted run, the CSV file loses this round and later ones first;
        TensorBoard shows what came last.
        """
        values = {name: np.float64(record[name]) for name in _RELEASED}
        for manager in self._managers:
            wait_for(manager.release(values, round_number))
