"""The process and the state of a run, read again from its output directory."""

from __future__ import annotations

import pathlib
import tempfile
from typing import NamedTuple

import tensorflow as tf

from tff_fedmpq.federated.checkpoints import Checkpoints
from tff_fedmpq.federated.learning_process import FederatedProcess
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.runtime import local_runtime
from tff_fedmpq.federated.server import State
from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation import run_files
from tff_fedmpq.simulation.config import ExperimentConfig, make_config
from tff_fedmpq.simulation.data import ImageDataset
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.data.partitions import Partition
from tff_fedmpq.simulation.experiment import load_dataset
from tff_fedmpq.simulation.models import build_model_fn


class FinishedRun(NamedTuple):
    """A run after its last round."""

    config: ExperimentConfig
    dataset: ImageDataset
    process: FederatedProcess
    state: State

    def device_model(self, budget: float) -> tf.keras.Model:
        """Returns the model of the first device of a budget; ValueError without one."""
        budgets = self.process.budgets.tolist()
        if budget not in budgets:
            known = sorted(set(budgets))
            raise ValueError(f"No device has {budget} bits; budgets are {known}.")
        client_id = self.process.client_ids[budgets.index(budget)]
        return self.process.device_model(self.state, client_id)


def load_run(output_dir: PathLike, data_dir: PathLike | None = None) -> FinishedRun:
    """Reads a run of the examples from its output directory.

    Args:
      output_dir: Directory of a run with at least one finished round.
      data_dir: Directory of the data set; None looks in the usual places.

    Raises:
      OutputDirectoryError: if the directory holds no run, or a damaged one.
      CheckpointError: if the run's checkpoints cannot be read.
    """
    folder = pathlib.Path(output_dir).expanduser()
    if not (folder / "config.json").exists():
        raise run_files.OutputDirectoryError(f"{folder} holds no run.")
    settings = run_files.read_json(folder / "config.json")
    scheme, dataset_name = settings.pop("scheme"), settings.pop("dataset")
    config = make_config("paper", scheme, dataset=dataset_name, **settings)
    dataset = load_dataset(config, data_dir)
    with tempfile.TemporaryDirectory() as clients, local_runtime():
        process = build_process(
            build_model_fn(config.model or dataset.model, dataset, config.seed),
            {str(i): budget for i, budget in enumerate(config.budgets)},
            build_client_data(
                clients, dataset, Partition.load(folder / "partition.json")
            ),
            config.scheme,
            seed=config.seed,
        )
        state, records = Checkpoints(folder).load_latest(process.initialize())
    if not records:
        raise run_files.OutputDirectoryError(f"{folder} has no finished round.")
    return FinishedRun(config, dataset, process, state)
