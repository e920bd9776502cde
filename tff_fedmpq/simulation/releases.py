"""Numbers of each round for other tools, by TFF's release managers and two more.

    metrics.csv     scalars; `pandas.read_csv` reads it
    tensorboard/    and histograms of bits per layer, clients' bytes, devices' accuracy
    mlflow/         MLflow, scalars of the same        (pip install mlflow-skinny)
    wandb/          Weights & Biases, offline, all of it       (pip install wandb)

The last two are written where a run's `track` names them. Both managers also serve
programs without `run_experiment`, such as `tff.learning.programs.train_model`.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tree

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.waiting import wait_for
from tff_fedmpq.files import PathLike
from tff_fedmpq.lookup import check_name

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


class MLflowReleaseManager(tff.program.ReleaseManager):
    """Releases the scalars of a structure as metrics of an MLflow run.

    Names are paths such as "bytes_up/watch", the key is the step. A run of the name
    that is there already goes on.
    """

    def __init__(
        self,
        directory: PathLike,
        run_name: str,
        settings: Mapping[str, Any] | None = None,
    ):
        mlflow = _import("mlflow", "mlflow-skinny")
        uri = pathlib.Path(directory).resolve().as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        name = "tff_fedmpq"
        experiment = self._client.get_experiment_by_name(name)
        number = (
            experiment.experiment_id
            if experiment
            else (self._client.create_experiment(name))
        )
        runs = self._client.search_runs([number])
        known = {run.info.run_name: run.info.run_id for run in runs}
        self._run_id = known.get(run_name)
        if self._run_id is None:
            run = self._client.create_run(number, run_name=run_name)
            self._run_id = run.info.run_id
            for key, value in (settings or {}).items():
                self._client.log_param(self._run_id, key, str(value)[:250])

    async def release(self, value: Any, key: int) -> None:
        for name, array in await _named_arrays(value):
            if not array.ndim:
                self._client.log_metric(self._run_id, name, float(array), step=int(key))

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run_id)


class WandbReleaseManager(tff.program.ReleaseManager):
    """Releases the scalars, and histograms of arrays, to Weights & Biases, offline.

    Names are paths such as "bytes_up/watch", the key is the step. `wandb sync` uploads
    what is in the directory; parts of an interrupted run are one run there.
    """

    def __init__(
        self,
        directory: PathLike,
        run_name: str,
        settings: Mapping[str, Any] | None = None,
    ):
        self._wandb = _import("wandb", "wandb")
        os.makedirs(directory, exist_ok=True)
        self._run = self._wandb.init(
            project="tff_fedmpq",
            name=run_name,
            id=run_name,
            dir=os.fspath(directory),
            config=dict(settings or {}),
            mode="offline",
            settings={"console": "off", "silent": True},
        )

    async def release(self, value: Any, key: int) -> None:
        histogram = self._wandb.Histogram
        logged = {
            name: histogram(array) if array.ndim else float(array)
            for name, array in await _named_arrays(value)
        }
        self._run.log(logged, step=int(key))

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


TRACKERS: Mapping[str, Callable[..., Any]] = {
    "mlflow": MLflowReleaseManager,
    "wandb": WandbReleaseManager,
}


class Releases:
    """Writes the numbers of each round, in a directory.

    `metrics.csv` is written anew from the `records` of rounds that are done: the file
    of an interrupted run may be damaged.
    """

    def __init__(
        self,
        directory: PathLike,
        records: Sequence[Mapping[str, Any]] = (),
        *,
        layers: Sequence[str] = (),
        track: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ):
        self._layers, folder = layers, pathlib.Path(directory)
        table = folder / "metrics.csv"
        table.unlink(missing_ok=True)
        self._csv = tff.program.CSVFileReleaseManager(table, key_fieldname="round")
        for record in records:
            wait_for(self._csv.release(_numbers(record), record["round"]))
        board = tff.program.TensorBoardReleaseManager(os.fspath(folder / "tensorboard"))
        run_name = folder.resolve().name
        self._trackers = [TRACKERS[n](folder / n, run_name, settings) for n in track]
        self._managers = [board, *self._trackers]

    def __enter__(self) -> Releases:
        return self

    def __exit__(self, *exception: object) -> None:
        for tracker in self._trackers:
            tracker.close()

    def release(self, round_number: int, record: Mapping[str, Any]) -> None:
        """Writes a round, counted from 1, from its record in `result.json`.

        TensorBoard shows what came last.
        """
        numbers = _numbers(record)
        wait_for(self._csv.release(numbers, round_number))
        details = {**numbers, **_details(record, self._layers)}
        for manager in self._managers:
            wait_for(manager.release(details, round_number))


def check_track(track: Sequence[str]) -> None:
    """Raises ValueError or ImportError unless all trackers are known and installed."""
    for name in track:
        check_name(name, TRACKERS, "tracker")
        _import(name, {"mlflow": "mlflow-skinny"}.get(name, name))


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.float64(record[name]) for name in _RELEASED}


def _details(record: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Any]:
    """Returns bits of all clients by layer, bytes by client, accuracy by budget."""
    table = np.array(record["next_bit_widths"])
    details: dict[str, Any] = {
        "bits": {layer: table[:, column] for column, layer in enumerate(layers)},
        "device_accuracy": {
            f"{budget}_bits": device["accuracy"]
            for budget, device in record["devices"].items()
        },
    }
    for way in ("up", "down"):
        details[f"bytes_{way}"] = {
            client["client"]: sum(client[f"{way}link_bits"].values()) / 8
            for client in record["clients"]
        }
    return details


async def _named_arrays(value: Any) -> list[tuple[str, np.ndarray]]:
    """Returns what of a structure is a number or an array of them, by its path."""

    def named() -> Iterator[tuple[str, np.ndarray]]:
        for path, leaf in tree.flatten_with_path(materialized):
            array = np.asarray(leaf)
            if array.dtype.kind in "biuf" and array.size:
                yield "/".join(map(str, path)), array

    materialized = await tff.program.materialize_value(value)
    return list(named())


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The tracker {module} needs its package: pip install {package}."
        ) from error
