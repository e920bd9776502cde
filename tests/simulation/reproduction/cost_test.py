"""Cost: exact counts on toy partitions, speeds that are measured once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tff_fedmpq.simulation import datasets
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.partition import dirichlet_partition
from tff_fedmpq.simulation.reproduction import cost

CONFIG = ExperimentConfig(
    dataset="digits",
    model="resnet8",
    num_clients=4,
    budgets=(2, 4, 4, 8),
    clients_per_round=2,
    rounds=6,
    local_epochs=3,
    train_examples=200,
    compute="float32",
    seed=5,
)
SPEED = cost.Speed(training=100.0, evaluation=1000.0)


def oracle(sizes, rounds):
    """Straight from the definition of who takes part."""
    total = 0
    for number in rounds:
        rng = np.random.default_rng([5, number])
        for client in rng.choice(4, 2, replace=False):
            total += 3 * sizes[client]
    return total


@pytest.mark.parametrize("rounds_done", [0, 1, 5, 6])
def test_image_passes_are_exact(rounds_done):
    sizes = np.array([7, 0, 100, 13])
    passes = cost.count_image_passes(CONFIG, sizes, rounds_done)
    assert passes == oracle(sizes, range(rounds_done + 1, 7))


def test_passes_of_everyone_in_every_round():
    config = dataclasses.replace(CONFIG, clients_per_round=4)
    assert cost.count_image_passes(config, np.array([7, 0, 100, 13])) == 6 * 3 * 120


def test_a_data_set_that_is_missing_is_looked_for_once(monkeypatch):
    looked_for = []

    def load(config, data_dir):
        looked_for.append(config.dataset)
        raise datasets.DatasetNotFoundError("nowhere")

    monkeypatch.setattr(cost.experiment, "load_dataset", load)
    estimator = cost.CostEstimator(speed=SPEED)
    for seed in (0, 1):
        with pytest.raises(datasets.DatasetNotFoundError, match="nowhere"):
            estimator.seconds(dataclasses.replace(CONFIG, seed=seed))
    assert looked_for == ["digits"]


def test_evaluated_images_are_of_rounds_recalibration_and_tiers():
    assert cost.count_evaluated_images(CONFIG, 10) == 10 * 7 + 10 * 2 * 3
    assert cost.count_evaluated_images(CONFIG, 10, rounds_done=4) == 10 * 3 + 10 * 2 * 3
    of_floats = dataclasses.replace(CONFIG, scheme="fedavg", scheme_options={})
    assert cost.count_evaluated_images(of_floats, 10) == 10 * 7
    of_8_bits = dataclasses.replace(CONFIG, scheme="fpq8", scheme_options={})
    assert cost.count_evaluated_images(of_8_bits, 10) == 10 * 7 + 10 * 2 * 1


def test_seconds_are_of_the_runs_own_partition():
    dataset = datasets.load("digits", None)
    chosen = np.sort(np.random.default_rng(5).permutation(1437)[:200])
    labels = dataset.train_labels[chosen]
    sizes = dirichlet_partition(labels, 4, CONFIG.alpha, 5, "digits").sizes
    passes, evaluated = oracle(sizes, range(3, 7)), 360 * (4 + 1 + 2 * 3)
    seconds = cost.CostEstimator(speed=SPEED).seconds(CONFIG, rounds_done=2)
    assert seconds == pytest.approx(passes / 100 + evaluated / 1000)


def test_speed_is_measured_once_for_each_kind_of_training(monkeypatch):
    measured = []

    def measure(config, dataset):
        measured.append(config)
        return SPEED

    monkeypatch.setattr(cost, "measure_speed", measure)
    estimator = cost.CostEstimator()
    for scheme in ("fedavg", "fedpaq", "aqfl", "fedmpq", "aqfl"):
        for seed in (0, 1):
            config = dataclasses.replace(
                CONFIG, scheme=scheme, scheme_options={}, seed=seed
            )
            estimator.seconds(config)
    assert [config.scheme for config in measured] == ["fedavg", "aqfl", "fedmpq"]
    estimator.seconds(dataclasses.replace(CONFIG, compute="bfloat16"))
    assert len(measured) == 4


@pytest.mark.parametrize(
    "scheme", ["fedavg", pytest.param("fedmpq", marks=pytest.mark.slow)]
)
def test_a_short_training_is_measured(scheme):
    config = dataclasses.replace(CONFIG, scheme=scheme, scheme_options={}, batch_size=8)
    speed = cost.measure_speed(config, datasets.load("digits", None), steps=2)
    assert speed.training > 0 and speed.evaluation > 0
