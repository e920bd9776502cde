"""How long a cell will take, told before it starts.

    seconds = image passes / training speed + evaluated images / evaluation speed

Image passes are exact: the examples of every round's participants times the epochs.
Speeds are measured by a short training with the cell's own model, scheme, batch size
and compute dtype, on this machine, now. What is left out (building the computation,
starting TFF's worker, packing, checkpoints) is seconds per round.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated.local_training import LocalTrainer
from tff_fedmpq.federated.messages import QuantizedWeights, quantize_weights
from tff_fedmpq.federated.model_spec import ModelFn, ModelSpec
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.simulation import datasets, experiment
from tff_fedmpq.simulation.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.evaluation import Evaluator
from tff_fedmpq.simulation.files import PathLike
from tff_fedmpq.simulation.models import build_model_fn
from tff_fedmpq.simulation.partition import dirichlet_partition

_STEPS = 15
_EVALUATED_IMAGES = 1000
_BIT_WIDTH = 4  # Speed does not depend on it.


@dataclasses.dataclass(frozen=True)
class Speed:
    """Images per second.

    Attributes:
      training: of local training.
      evaluation: of the evaluation after each round.
    """

    training: float
    evaluation: float


def count_image_passes(
    config: ExperimentConfig, sizes: np.ndarray, rounds_done: int = 0
) -> int:
    """Returns the images that clients train on in the rounds that are left.

    Args:
      config: of the run.
      sizes: int64[N], examples of each client.
      rounds_done: rounds that are not counted.
    """
    return sum(
        int(sizes[int(client)]) * config.local_epochs
        for round_number in range(rounds_done + 1, config.rounds + 1)
        for client in experiment.sample_participants(config, round_number)
    )


def count_evaluated_images(
    config: ExperimentConfig, num_test: int, rounds_done: int = 0
) -> int:
    """Returns the test images that are evaluated in what is left of a run.

    After each round the global model; at the end it once more, recalibrated, and each
    tier of devices twice.
    """
    scheme = experiment.build_config_scheme(config)
    tiers = 0
    if scheme.weights is not None:
        tiers = len(np.unique(scheme.effective_budgets(config.budgets)))
    return num_test * (config.rounds - rounds_done + 1 + 2 * tiers)


class CostEstimator:
    """Estimates seconds of runs; measures each kind of training once."""

    def __init__(self, data_dir: PathLike | None = None, speed: Speed | None = None):
        """Initializes the estimator.

        Args:
          data_dir: where data sets lie.
          speed: is taken instead of measured ones.
        """
        self._data_dir = data_dir
        self._speed = speed
        self._speeds: dict[Any, Speed] = {}
        self._labels: dict[Any, tuple[np.ndarray, int, str]] = {}
        self._missing: dict[str, datasets.DatasetNotFoundError] = {}

    def seconds(self, config: ExperimentConfig, rounds_done: int = 0) -> float:
        """Returns how long the rest of a run will take.

        Raises:
          datasets.DatasetError: if its data set is not there.
        """
        labels, num_test, name = self._read_labels(config)
        sizes = dirichlet_partition(
            labels, config.num_clients, config.alpha, config.seed, name
        ).sizes
        speed = self._speed or self._measured(config)
        passes = count_image_passes(config, sizes, rounds_done)
        evaluated = count_evaluated_images(config, num_test, rounds_done)
        return passes / speed.training + evaluated / speed.evaluation

    def _read_labels(self, config: ExperimentConfig) -> tuple[np.ndarray, int, str]:
        """Returns training labels, number of test images, and the data set's name."""
        subset = None  # All examples, whatever the seed.
        if config.train_examples or config.validation_examples:
            subset = (config.train_examples, config.validation_examples, config.seed)
        key = (config.dataset, subset)
        if config.dataset in self._missing:  # Looked for once: that can take long.
            raise self._missing[config.dataset]
        if key not in self._labels:
            try:
                dataset = experiment.load_dataset(config, self._data_dir)
            except datasets.DatasetNotFoundError as error:
                self._missing[config.dataset] = error
                raise
            labels = dataset.train_labels.copy()
            self._labels[key] = (labels, len(dataset.test_labels), dataset.name)
        return self._labels[key]

    def _measured(self, config: ExperimentConfig) -> Speed:
        scheme = experiment.build_config_scheme(config)
        # All that the time of a local step depends on.
        key = (
            config.dataset,
            config.model,
            config.batch_size,
            config.compute,
            config.augment,
            scheme.weights and scheme.weights.representation.name,
            scheme.activation_bits,
            scheme.lasso > 0,
            scheme.training.code_update,
        )
        if key not in self._speeds:
            dataset = experiment.load_dataset(config, self._data_dir)
            self._speeds[key] = measure_speed(config, dataset)
        return self._speeds[key]


def measure_speed(
    config: ExperimentConfig, dataset: datasets.ImageDataset, steps: int = _STEPS
) -> Speed:
    """Trains and evaluates for a moment.

    Args:
      config: says model, scheme, batch size and compute dtype.
      dataset: whose images are used.
      steps: local steps that are timed, after as many to warm up.
    """
    model_fn = build_model_fn(config.model, dataset, config.seed)
    global_model = experiment.build_config_scheme(config).build_global_model(model_fn)
    images = dataset.test_images[:_EVALUATED_IMAGES]
    evaluator = Evaluator(global_model, images, dataset.test_labels[:_EVALUATED_IMAGES])
    train = _build_training(config, dataset, model_fn, global_model, steps)
    return Speed(
        steps * config.batch_size / _time_second(train),
        len(images) / _time_second(evaluator.evaluate),
    )


def _build_training(
    config: ExperimentConfig,
    dataset: datasets.ImageDataset,
    model_fn: ModelFn,
    global_model: tf.keras.Model,
    steps: int,
) -> Callable[[], Any]:
    """Returns a function that trains for some steps as a client does."""
    scheme = experiment.build_config_scheme(config)
    client_model = scheme.build_client_model(model_fn, config.dtype_policy)
    trainer = LocalTrainer(
        client_model,
        dataclasses.replace(scheme.training, epochs=1),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        random_crop_and_flip if config.augment else None,
    )
    weights = _initial_weights(scheme, client_model, global_model)
    chosen = np.arange(steps * config.batch_size) % len(dataset.train_labels)
    images = tf.constant(dataset.train_images[chosen])
    labels = tf.constant(dataset.train_labels[chosen])
    seed = tf.constant([0, 1])
    # Fetching the loss waits until all is done.
    return lambda: trainer.train(weights, images, labels, seed)[1].loss.numpy()


def _initial_weights(
    scheme: Scheme, client_model: tf.keras.Model, global_model: tf.keras.Model
) -> QuantizedWeights:
    """Returns a new model's weights as a client receives them."""
    spec = ModelSpec.from_model(client_model)
    weights = spec.weights_of(global_model)
    if scheme.weights is None:
        nothing = tf.zeros([0], tf.int32)
        return QuantizedWeights((), tf.zeros([0]), nothing, weights.rest)
    bit_widths = tf.fill([len(spec.kernel_names)], _BIT_WIDTH)
    return quantize_weights(
        weights, bit_widths, scheme.weights.representation, scheme.weights.scale_rule
    )


def _time_second(function: Callable[[], Any]) -> float:
    """Returns the seconds of a second call; the first one builds graphs."""
    function()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
