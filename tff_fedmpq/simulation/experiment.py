"""A whole run: data, partition, process, rounds, evaluation, results.

    config -> data set -> partition -> client data -> process
           -> rounds (checkpoint, record, release) -> tiers -> result.json, curves.png

Everything a run writes lies in its output directory:

    config.json       the settings; a directory serves one configuration only
    partition.json    which client has which training images
    rounds/           a record per round
    checkpoints/      the latest states
    metrics.csv, tensorboard/   per round, through TFF's release managers
    clients/          each client's images, until the end (`client_data`)
    worker.log, progress.log    for a look while it runs, or when it fails
    result.json, curves.png     at the end
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from tff_fedmpq.federated.model_spec import ModelSpec
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.schemes import build_scheme
from tff_fedmpq.simulation import datasets, evaluation, ledger, provenance, report
from tff_fedmpq.simulation.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.checkpoints import Checkpoints
from tff_fedmpq.simulation.client_data import build_client_data
from tff_fedmpq.simulation.config import ExperimentConfig, complete_protocol
from tff_fedmpq.simulation.files import write_atomically
from tff_fedmpq.simulation.models import build_model_fn
from tff_fedmpq.simulation.partition import Partition, dirichlet_partition
from tff_fedmpq.simulation.progress import BatchProgress
from tff_fedmpq.simulation.releases import Releases
from tff_fedmpq.simulation.runtime import local_runtime, threads_per_client

_CALIBRATION_IMAGES = 2048
_CLIENTS = "clients"
# Files may change before a process's next run; the code that was imported does not.
_find_commit_once = functools.lru_cache(maxsize=None)(provenance.find_commit)


class OutputDirectoryError(ValueError):
    """The output directory cannot be used for this run."""


class RoundError(RuntimeError):
    """A round failed; what failed in it is the cause."""


class DivergenceError(ValueError):
    """Training diverged under the settings of this run."""


def run_experiment(
    config: ExperimentConfig,
    output_dir: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Mapping[str, Any]:
    """Runs an experiment to its end, or goes on with an interrupted one.

    Args:
      config: what to run.
      output_dir: where results go; made where it does not exist.
      data_dir: where the data set lies; None looks in the usual places.
      resume: whether to go on with what `output_dir` holds. A finished run is not
        redone; its result is returned.

    Returns:
      The content of `result.json`.

    Raises:
      OutputDirectoryError: if the directory holds another run, one of other data or
        a damaged one, or cannot be made.
      CheckpointError: if what was saved of the run cannot be read.
      ValueError: for settings that the scheme refuses.
      datasets.DatasetError: if the data set is missing or damaged.
      DivergenceError: if the loss of the clients, or of the global model, is infinite
        or NaN. The rounds before are kept, and the run would diverge again.
      RoundError: if a round raises a ValueError, which is no user's by then; others
        (TensorFlow's, the worker's) come as they are.
    """
    output_dir = pathlib.Path(output_dir).expanduser()
    check_output_dir(output_dir, config, resume)
    result_path = output_dir / "result.json"
    if resume and result_path.exists():
        logging.info("%s is finished; nothing to do.", output_dir)
        return _read_json(result_path)
    # Both before anything is written.
    scheme = build_config_scheme(config)
    dataset = load_dataset(config, data_dir)
    _make_directory(output_dir)
    _write_json(output_dir / "config.json", config.as_dict())
    result = _Run(config, scheme, dataset, output_dir).execute()
    report.plot_curves(result, output_dir / "curves.png")
    shutil.rmtree(output_dir / _CLIENTS)
    # The result last: while there is none, the run goes on from here.
    _write_json(result_path, result)
    return result


def check_output_dir(
    output_dir: pathlib.Path, config: ExperimentConfig, resume: bool
) -> None:
    """Checks that a run may write into a directory.

    Args:
      output_dir: of the run.
      config: of the run.
      resume: whether to go on with a run of that configuration, if there is one.

    Raises:
      OutputDirectoryError: if it may not.
    """
    config_path = output_dir / "config.json"
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputDirectoryError(f"{output_dir} is no directory; choose another.")
    if not config_path.exists():
        if output_dir.exists() and any(output_dir.iterdir()):
            raise OutputDirectoryError(
                f"{output_dir} holds files that are not of a run; choose another."
            )
        return
    if not resume:
        raise OutputDirectoryError(
            f"{output_dir} holds a run already: go on with it by --resume, or choose "
            "another directory."
        )
    present = complete_protocol(_read_json(config_path))
    wanted = _as_json(config.as_dict())
    differing = sorted(k for k in wanted if present.get(k) != wanted[k])
    if differing:
        details = "; ".join(
            f"{k}: {present.get(k)!r} there, {wanted[k]!r} asked for" for k in differing
        )
        raise OutputDirectoryError(
            f"{output_dir} holds a run of another configuration ({details})."
        )


def sample_participants(config: ExperimentConfig, round_number: int) -> list[str]:
    """Returns the ids of a round's clients, ascending; a function of seed and round."""
    rng = np.random.default_rng([config.seed, round_number])
    chosen = rng.choice(config.num_clients, config.clients_per_round, replace=False)
    return [str(client) for client in sorted(chosen)]


class _Run:
    """One run in one output directory."""

    def __init__(
        self,
        config: ExperimentConfig,
        scheme: Scheme,
        dataset: datasets.ImageDataset,
        output_dir: pathlib.Path,
    ):
        self._config = config
        self._scheme = scheme
        self._dataset = dataset
        self._output_dir = output_dir
        self._model_fn = build_model_fn(config.model, dataset, config.seed)
        self._partition = dirichlet_partition(
            dataset.train_labels,
            config.num_clients,
            config.alpha,
            config.seed,
            dataset.name,
        )
        _save_partition(self._partition, output_dir / "partition.json")
        self._commit = _find_commit_once()
        self._client_ids = [str(client) for client in range(config.num_clients)]
        client_model = self._scheme.build_client_model(self._model_fn)
        self._spec = ModelSpec.from_model(client_model)

    def execute(self) -> Mapping[str, Any]:
        """Runs all rounds that are left and returns the result."""
        config = self._config
        steps = [self._count_steps(r) for r in range(1, config.rounds + 1)]
        progress = BatchProgress(self._output_dir / "progress.log", sum(steps))
        threads = threads_per_client(config.clients_per_round)
        log_path = self._output_dir / "worker.log"
        with local_runtime(log_path=log_path, intra_op_threads=threads):
            process = self._build_process(progress)
            checkpoints = Checkpoints(self._output_dir)
            state, records = checkpoints.load_latest(process.initialize())
            releases = Releases(self._output_dir)
            evaluator = self._build_evaluator()
            with progress:
                progress.skip(sum(steps[: len(records)]))
                for round_number in range(len(records) + 1, config.rounds + 1):
                    progress.set_round(round_number, config.rounds)
                    try:
                        state, record = self._run_round(
                            process, state, round_number, evaluator
                        )
                    except ValueError as error:  # No user's error by now.
                        raise RoundError(f"Round {round_number} failed.") from error
                    _check_loss(record)
                    # Released first: a round that is saved is not run again.
                    releases.release(round_number, record)
                    checkpoints.save(round_number, state, record)
                    records.append(record)
                    progress.write(report.describe_round(record, config.rounds))
            weights = process.get_model_weights(state)
        return self._result(records, state, weights, evaluator)

    def _build_process(self, progress: BatchProgress):
        config, dataset = self._config, self._dataset
        client_data = build_client_data(
            self._output_dir / _CLIENTS, dataset, self._partition
        )
        return build_process(
            self._model_fn,
            dict(zip(self._client_ids, config.budgets)),
            client_data,
            self._scheme,
            augment=random_crop_and_flip if config.augment else None,
            dtype_policy=config.dtype_policy,
            on_step=progress.report,
            seed=config.seed,
        )

    def _build_evaluator(self) -> evaluation.Evaluator:
        return evaluation.Evaluator(
            self._scheme.build_global_model(self._model_fn),
            self._dataset.test_images,
            self._dataset.test_labels,
        )

    def _count_steps(self, round_number: int) -> int:
        """Returns the local steps of all participants of a round."""
        sizes = self._partition.sizes
        return sum(
            -(-int(sizes[int(client)]) // self._config.batch_size)
            * self._config.local_epochs
            for client in sample_participants(self._config, round_number)
        )

    def _run_round(
        self, process, state, round_number: int, evaluator: evaluation.Evaluator
    ) -> tuple[Any, dict[str, Any]]:
        started = time.perf_counter()
        participants = sample_participants(self._config, round_number)
        output = process.next(state, participants)
        trained = time.perf_counter()
        weights = process.get_model_weights(output.state)
        evaluation.assign_global_weights(evaluator.model, weights)
        evaluated = evaluator.evaluate()
        return output.state, {
            "round": round_number,
            "test_accuracy": evaluated.accuracy,
            "test_loss": evaluated.loss,
            "participants": participants,
            **self._measured(output.metrics),
            "seconds": time.perf_counter() - started,
            "seconds_training": trained - started,
            "commit": self._commit,  # A run may go on with other code.
        }

    def _measured(self, measurements: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a round's measurements, ready for JSON."""
        train = measurements["client_work"]["train"]
        clients = ledger.client_records(measurements, self._client_ids)
        bit_widths = np.asarray(measurements["mean_bit_widths"], np.float64)
        return {
            "train_loss": float(train["loss"]),
            "train_accuracy": float(train["accuracy"]),
            **ledger.total_bits(clients),
            "mean_bit_width": self._mean_bit_width(bit_widths),
            "bit_widths": bit_widths.tolist(),
            "top_plane_densities": measurements["top_plane_densities"].tolist(),
            "next_bit_widths": measurements["bit_widths"].tolist(),
            "clients": clients,
        }

    def _mean_bit_width(self, bit_widths: np.ndarray) -> float:
        """Returns the average over weights; 32 for a float model."""
        if not bit_widths.size:
            return 32.0
        sizes = self._spec.layer_sizes
        return float(bit_widths @ sizes / sizes.sum())

    def _result(
        self,
        records: list[dict[str, Any]],
        state: Any,
        weights: Any,
        evaluator: evaluation.Evaluator,
    ) -> Mapping[str, Any]:
        calibration = self._calibration_images()
        recalibrated = evaluation.evaluate_recalibrated(evaluator, weights, calibration)
        return {
            "scheme": self._scheme.name,
            "precision": self._scheme.precision,
            "dataset": self._dataset.name,
            "dataset_source": self._dataset.source,
            "protocol": self._config.as_dict(),
            "seed": self._config.seed,
            **provenance.describe(),
            "layers": {
                "names": list(self._spec.kernel_names),
                "sizes": self._spec.layer_sizes.tolist(),
            },
            "model_weights": self._spec.num_weights,
            "client_examples": self._partition.sizes.tolist(),
            "rounds": records,
            "recalibrated": recalibrated._asdict(),
            "tier_accuracy": self._evaluate_tiers(state, weights, calibration),
        }

    def _calibration_images(self) -> np.ndarray:
        rng = np.random.default_rng(self._config.seed)
        train_images = self._dataset.train_images
        count = min(_CALIBRATION_IMAGES, len(train_images))
        return train_images[rng.permutation(len(train_images))[:count]]

    def _evaluate_tiers(
        self, state: Any, weights: Any, calibration: np.ndarray
    ) -> Mapping[str, Any] | None:
        if self._scheme.weights is None:
            return None
        return evaluation.evaluate_tiers(
            self._scheme,
            self._model_fn,
            self._spec.split(tuple(weights.trainable), tuple(weights.non_trainable)),
            state.distributor["bit_widths"],
            self._scheme.effective_budgets(self._config.budgets),
            self._dataset.test_images,
            self._dataset.test_labels,
            calibration,
        )


def _check_loss(record: Mapping[str, Any]) -> None:
    """Codes cannot show that training diverged: any byte is a valid one.

    Nor can the clients' loss, which is of before each step, show what the last did.
    """
    for name in ("train_loss", "test_loss"):
        if not math.isfinite(record[name]):
            raise DivergenceError(
                f"Training diverged in round {record['round']}: {name} is "
                f"{record[name]}. Lower learning_rate or float_learning_rate."
            )


def _save_partition(partition: Partition, path: pathlib.Path) -> None:
    """Saves a run's partition, or checks that it is the one that it began with."""
    if path.exists() and Partition.load(path) != partition:
        raise OutputDirectoryError(
            f"{path} is another partition, perhaps of another data set than this one, "
            f"{partition.dataset}; the run can go on with the data that it began with."
        )
    partition.save(path)


def build_config_scheme(config: ExperimentConfig) -> Scheme:
    """Returns the scheme that a configuration names, with its settings.

    Raises:
      ValueError: for an unknown scheme, or an option or budget that it cannot serve.
    """
    options = {
        "epochs": config.local_epochs,
        "batch_size": config.batch_size,
        "float_learning_rate": config.float_learning_rate,
        "float_learning_rate_decay": config.float_learning_rate_decay,
        "rounds": config.rounds,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        **config.scheme_options,
    }
    if build_scheme(config.scheme, {}).weights is not None:
        options["learning_rate"] = config.learning_rate
        options["learning_rate_decay"] = config.learning_rate_decay
    scheme = build_scheme(config.scheme, options)
    scheme.effective_budgets(config.budgets)  # Whether it can serve them.
    return scheme


def load_dataset(
    config: ExperimentConfig, data_dir: str | os.PathLike[str] | None
) -> datasets.ImageDataset:
    """Returns a run's data set, with as many training images as it uses.

    With `validation_examples`, its test images are training images that are held out.

    Args:
      config: of the run.
      data_dir: where data sets lie; None looks in the usual places.

    Raises:
      datasets.DatasetError: if it is missing or damaged.
      ValueError: if all its training images are to be held out.
    """
    dataset = datasets.load(config.dataset, data_dir)
    total, held_out = len(dataset.train_labels), config.validation_examples or 0
    if held_out >= total:
        raise ValueError(
            f"validation_examples: expected fewer than the {total} training images of "
            f"{dataset.name}, found {held_out}."
        )
    used = min(config.train_examples or total, total - held_out)
    if used == total:
        return dataset
    order = np.random.default_rng(config.seed).permutation(total)
    trained = np.sort(order[:used])
    images, labels = dataset.train_images, dataset.train_labels
    subset = dataclasses.replace(
        dataset, train_images=images[trained], train_labels=labels[trained]
    )
    if not held_out:
        return subset
    validated = np.sort(order[-held_out:])
    return dataclasses.replace(
        subset, test_images=images[validated], test_labels=labels[validated]
    )


def _as_json(value: Any) -> Any:
    """Returns a value as it is after a way through JSON (tuples are lists)."""
    return json.loads(json.dumps(value))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns what `_write_json` wrote, or says that it is damaged."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise OutputDirectoryError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise OutputDirectoryError(f"{path} is damaged: it holds {content!r}.")
    return content


def _make_directory(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirectoryError(f"Cannot make {path}: {error}.") from None


def _write_json(path: pathlib.Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
