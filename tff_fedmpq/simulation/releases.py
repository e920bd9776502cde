"""Metrics per round for other tools: CSV and TensorBoard, by TFF's release managers."""

import os
from collections.abc import Mapping, Sequence
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
    """Appends the numbers of each round to `metrics.csv` and `tensorboard/`.

    `metrics.csv` is written anew from the `records` of rounds that are done: the file
    of an interrupted run may be damaged.
    """

    def __init__(self, directory: PathLike, records: Sequence[Mapping[str, Any]] = ()):
        table = os.path.join(directory, "metrics.csv")
        board = os.path.join(directory, "tensorboard")
        if os.path.exists(table):
            os.remove(table)
        csv = tff.program.CSVFileReleaseManager(table, key_fieldname="round")
        for record in records:
            wait_for(csv.release(_numbers(record), record["round"]))
        self._managers = csv, tff.program.TensorBoardReleaseManager(board)

    def release(self, round_number: int, record: Mapping[str, Any]) -> None:
        """Writes a round, counted from 1, from its record in `result.json`.

        TensorBoard shows what came last.
        """
        for manager in self._managers:
            wait_for(manager.release(_numbers(record), round_number))


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.float64(record[name]) for name in _RELEASED}
