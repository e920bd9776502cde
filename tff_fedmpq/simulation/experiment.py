"""A run: data, partition, process, rounds, evaluation, result.

    config -> data set -> partition -> client data -> process
           -> rounds (checkpoint, record, release) -> devices -> result.json, curves.png

`run_files` lists what a run leaves in its output directory.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
from absl import logging

from tff_fedmpq import plots
from tff_fedmpq._tff import tff
from tff_fedmpq.federated import acceptance, aggregation
from tff_fedmpq.federated.checkpoints import Checkpoints
from tff_fedmpq.federated.evaluation import (
    DeviceEvaluator,
    Evaluator,
    assign_global_weights,
)
from tff_fedmpq.federated.learning_process import FederatedProcess
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.remote_runtime import RemoteContext, remote_runtime
from tff_fedmpq.federated.runtime import local_runtime, threads_per_client
from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation import data, ledger, provenance, report, run_files
from tff_fedmpq.simulation.config import ExperimentConfig, Workers
from tff_fedmpq.simulation.data import ImageDataset
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.data.partitions import dirichlet_partition
from tff_fedmpq.simulation.models import build_model_fn
from tff_fedmpq.simulation.progress import BatchProgress
from tff_fedmpq.simulation.releases import Releases, check_track
from tff_fedmpq.simulation.samplers import ClientSampler
from tff_fedmpq.version import __version__

_CLIENTS = "clients"
_DELTA = 1e-5  # Of differential privacy.
# Constants of Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
_SERVER_OPTIMIZERS: Mapping[str, Callable[[float], Any]] = {
    "adam": lambda rate: tff.learning.optimizers.build_adam(rate, 0.9, 0.99, 1e-3),
    "momentum": lambda rate: tff.learning.optimizers.build_sgdm(rate, 0.9),
    "yogi": lambda rate: tff.learning.optimizers.build_yogi(rate, 0.9, 0.99, 1e-3),
}
# Files may change before the process's next run; the imported code does not.
_find_commit_once = functools.cache(provenance.find_commit)


class RoundError(RuntimeError):
    """Failure of a round; the error that it raised is the cause."""


class DivergenceError(ValueError):
    """Training diverged under the settings of this run."""


def run_experiment(
    config: ExperimentConfig,
    output_dir: PathLike,
    *,
    data_dir: PathLike | None = None,
    resume: bool = False,
    workers: Workers | None = None,
    track: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Runs an experiment to its end and returns the content of `result.json`.

    Args:
      config: Settings of the run.
      output_dir: Directory of the results; made where it does not exist.
      data_dir: Directory of the data set; None looks in the usual places.
      resume: Whether to continue the run in `output_dir`; a finished one is kept.
      workers: Machines that train the clients; None trains them here.
      track: Names in `releases.TRACKERS` of tools that get the rounds' numbers too.

    Raises:
      ImportError: for a tracker that is not installed.
      OutputDirectoryError: if it holds another or a damaged run or symbolic links, or
        cannot be made or written to, as when the disk is full.
      CheckpointError: if the run's checkpoints cannot be read.
      ValueError: for settings that the scheme refuses.
      DatasetError: if the data set is missing or damaged.
      DivergenceError: if a loss is not finite; earlier rounds are kept.
      NoWorkersError: if no worker is left, or one has other data.
      RoundError: if a round raises a ValueError; other errors pass unchanged.
    """
    check_track(track)
    output_dir = run_files.check_output_dir(output_dir, config, resume)
    result_path = output_dir / "result.json"
    if resume and result_path.exists():
        logging.info("%s is finished; nothing to do.", output_dir)
        return run_files.read_result(result_path)
    dataset = load_dataset(config, data_dir)
    run_files.make_directory(output_dir)
    whole = run_files.explain_disk_errors(output_dir)
    with run_files.lock_directory(output_dir), whole:
        run_files.check_output_dir(output_dir, config, resume)  # Others may have run.
        run_files.write_json(output_dir / "config.json", config.as_dict())
        run_files.check_data(output_dir / "data.json", dataset)
        result = _Run(config, dataset, output_dir, workers, track).execute()
        plots.curves(result).savefig(output_dir / "curves.png")
        shutil.rmtree(output_dir / _CLIENTS, ignore_errors=True)
        # The result last: without it, the run continues from here.
        run_files.write_result(result_path, result)
    return result


def sample_participants(config: ExperimentConfig, round_number: int) -> list[str]:
    """Returns the ids of a round's clients, ascending; a function of seed and round."""
    sampler = ClientSampler(range(config.num_clients), config.seed)
    return sampler.draw(round_number, config.clients_per_round)


class _Run:
    """One run in one output directory."""

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: ImageDataset,
        output_dir: pathlib.Path,
        workers: Workers | None,
        track: Sequence[str],
    ):
        self._config, self._dataset, self._output_dir = config, dataset, output_dir
        self._track = track
        self._workers, self._clients_dir = workers, output_dir / _CLIENTS
        if workers and workers.clients_dir:
            self._clients_dir = pathlib.Path(workers.clients_dir).expanduser()
        draw = config.num_clients, config.alpha, config.seed
        self._partition = dirichlet_partition(dataset.train_labels, *draw, dataset.name)
        run_files.save_partition(self._partition, output_dir / "partition.json")
        self._code = {"version": __version__, "commit": _find_commit_once()}

    def execute(self) -> Mapping[str, Any]:
        """Runs all rounds that are left and returns the result."""
        config, dataset = self._config, self._dataset
        steps = [self._count_steps(r) for r in range(1, config.rounds + 1)]
        progress = BatchProgress(self._output_dir / "progress.log", sum(steps))
        with self._runtime() as context:
            process = self._build_process(progress)
            checkpoints = Checkpoints(self._output_dir)
            state, records = checkpoints.load_latest(process.initialize())
            self._say_other_code(records)
            releases = Releases(
                self._output_dir,
                records,
                layers=process.spec.kernel_names,
                track=self._track,
                settings=config.as_dict(),
            )
            test = dataset.test_images, dataset.test_labels
            self._evaluator = Evaluator(process.global_model(state), *test)
            self._device_evaluator = DeviceEvaluator(process, *test)
            with progress, releases:
                progress.skip(sum(steps[: len(records)]))
                for round_number in range(len(records) + 1, config.rounds + 1):
                    progress.set_round(round_number, config.rounds)
                    try:
                        state, record = self._run_round(process, state, round_number)
                    except ValueError as error:  # Settings were checked before.
                        raise RoundError(
                            f"Round {round_number} failed: {error}"
                        ) from error
                    _check_loss(record)
                    # Released first: a round that is saved is not run again.
                    releases.release(round_number, record)
                    checkpoints.save(round_number, state, record)
                    records.append(record)
                    if isinstance(context, RemoteContext):
                        run_files.append_workers(
                            self._output_dir, round_number, context.report
                        )
                        progress.skip(sum(steps[: len(records)]))
                    progress.write(report.describe_round(record, config.rounds))
            return self._result(process, records, state)

    def _runtime(self) -> Any:
        """Returns the runtime: workers on other machines, or one here."""
        log_path, workers = self._output_dir / "worker.log", self._workers
        if workers is None:
            threads = threads_per_client(self._config.clients_per_round)
            return local_runtime(log_path=log_path, intra_op_threads=threads)
        self._clients_dir.mkdir(parents=True, exist_ok=True)
        return remote_runtime(
            workers.addresses,
            tls_dir=workers.tls_dir,
            insecure=workers.insecure,
            data_dir=self._clients_dir,
            log_path=log_path,
        )

    def _build_process(self, progress: BatchProgress) -> FederatedProcess:
        config, dataset = self._config, self._dataset
        client_ids = [str(client) for client in range(config.num_clients)]
        return build_process(
            build_model_fn(config.model or dataset.model, dataset, config.seed),
            dict(zip(client_ids, config.budgets)),
            build_client_data(
                self._clients_dir,
                dataset,
                self._partition,
                relative=self._workers is not None,
            ),
            config.scheme,
            augment=dataset.augment if config.augment else None,
            dtype_policy=config.dtype_policy,
            **_server_options(config),
            # Other machines' files are not read here.
            on_step=None if self._workers else progress.report,
            seed=config.seed,
        )

    def _count_steps(self, round_number: int) -> int:
        """Returns the number of local steps of all participants of a round."""
        sizes, training = self._partition.sizes, self._config.scheme
        return sum(
            -(-int(sizes[int(client)]) // training.batch_size) * training.epochs
            for client in sample_participants(self._config, round_number)
        )

    def _run_round(
        self, process: FederatedProcess, state: Any, round_number: int
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the next state, and the round's record, ready for JSON."""
        started = time.perf_counter()
        participants = sample_participants(self._config, round_number)
        output = process.next(state, participants)
        trained = time.perf_counter()
        assign_global_weights(self._evaluator.model, output.state.global_model_weights)
        evaluated = self._evaluator.evaluate()
        devices = {}
        if round_number > self._config.rounds - self._config.device_rounds:
            devices = self._device_evaluator.evaluate(output.state)
        return output.state, {
            "round": round_number,
            "test_accuracy": evaluated.accuracy,
            "test_loss": evaluated.loss,
            "devices": devices,
            "participants": participants,
            **_measured(process, output.metrics),
            "seconds": time.perf_counter() - started,
            "seconds_training": trained - started,
            **self._code,  # A run may continue with other code.
        }

    def _say_other_code(self, records: list[dict[str, Any]]) -> None:
        """Warns if the last round was run by another version or commit."""
        if records:
            last = {name: records[-1].get(name) for name in self._code}
            if last != self._code:
                logging.warning(
                    "Rounds to %d were run by %s, the next ones are by %s; each "
                    "round's record says which.",
                    len(records),
                    last,
                    self._code,
                )

    def _result(
        self, process: FederatedProcess, records: list[dict[str, Any]], state: Any
    ) -> Mapping[str, Any]:
        dataset, spec = self._dataset, process.spec
        privacy, differing = {}, {}
        if dataset.differing_files:
            differing = {"dataset_differing_files": list(dataset.differing_files)}
        if self._config.noise_multiplier:
            epsilon = aggregation.epsilon(state, _DELTA)
            privacy = {"privacy": {"epsilon": epsilon, "delta": _DELTA}}
        return {
            "scheme": process.scheme.name,
            "precision": process.scheme.precision_of(process.budgets),
            "dataset": dataset.name,
            "dataset_source": dataset.source,
            **differing,
            "settings": self._config.as_dict(),
            "model": self._config.as_dict()["model"] or dataset.model,
            **provenance.describe(),
            "layers": {
                "names": list(spec.kernel_names),
                "sizes": spec.layer_sizes.tolist(),
            },
            "model_weights": spec.num_weights,
            "client_examples": self._partition.sizes.tolist(),
            **privacy,
            "rounds": records,
            "devices": {
                budget: {**device, "bytes_down": ledger.bytes_down(records, device)}
                for budget, device in records[-1]["devices"].items()
            },
        }


def _server_options(config: ExperimentConfig) -> dict[str, Any]:
    """Returns what `build_process` takes for settings of the server."""
    aggregator: Any = config.aggregator
    if callable(aggregator):
        aggregator = aggregator()
    if config.noise_multiplier is not None:
        private = tff.aggregators.DifferentiallyPrivateFactory
        noise = float(config.noise_multiplier), float(config.clients_per_round)
        # Without zeroing, which would follow clients' norms without noise.
        if config.clipping_norm is None:
            aggregator = private.gaussian_adaptive(*noise)
        else:
            aggregator = private.gaussian_fixed(*noise, float(config.clipping_norm))
    optimizer = None
    if config.server_optimizer is not None and config.server_learning_rate is not None:
        build = _SERVER_OPTIMIZERS[config.server_optimizer]
        optimizer = build(config.server_learning_rate)
    return {"aggregator": aggregator, "server_optimizer_fn": optimizer}


def _measured(process: FederatedProcess, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a round's measurements, ready for JSON."""
    train = metrics["client_work"]["train"]
    clients = ledger.client_records(metrics, process.client_ids)
    bit_widths = np.asarray(metrics["mean_bit_widths"], np.float64)
    sizes = process.spec.layer_sizes
    return {
        "train_loss": float(train["loss"]),
        "train_accuracy": float(train["accuracy"]),
        **ledger.total_bits(clients),
        # 32 bits for a float model.
        "mean_bit_width": float(bit_widths @ sizes / sizes.sum()) if len(sizes) else 32,
        "bit_widths": bit_widths.tolist(),
        "msb_densities": metrics["msb_densities"].tolist(),
        "next_bit_widths": metrics["bit_widths"].tolist(),
        "clients": clients,
        "rejected": acceptance.describe(metrics["rejected"], process.client_ids),
        "num_rejected": int(metrics["num_rejected"]),
        "abandoned": bool(metrics["abandoned"]),
    }


def _check_loss(record: Mapping[str, Any]) -> None:
    """Raises an error if training diverged, which codes cannot show."""
    reasons = set(record["rejected"].values())
    if record["abandoned"] and reasons & acceptance.OF_DIVERGENCE:
        raise DivergenceError(
            f"Training diverged in round {record['round']}: all was left out, as of a "
            f"client {min(reasons)}. Lower learning_rate or float_learning_rate."
        )
    # Both: clients compute theirs before each step, without the effect of the last.
    for name in ("train_loss", "test_loss"):
        if not math.isfinite(record[name]):
            raise DivergenceError(
                f"Training diverged in round {record['round']}: {name} is "
                f"{record[name]}. Lower learning_rate or float_learning_rate."
            )


def load_dataset(config: ExperimentConfig, data_dir: PathLike | None) -> ImageDataset:
    """Returns a run's data set, with as many training images as it uses.

    With `validation_examples`, its test images are held-out training images; ValueError
    if these would be all. `DatasetError` if the data set is missing or damaged.
    """
    dataset = data.load(config.dataset, data_dir)
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
    images, labels = dataset.train_images, dataset.train_labels
    chosen = np.sort(order[:used])
    subset: Any = {"train_images": images[chosen], "train_labels": labels[chosen]}
    if held_out:
        chosen = np.sort(order[-held_out:])
        subset |= {"test_images": images[chosen], "test_labels": labels[chosen]}
    return dataclasses.replace(dataset, **subset)
