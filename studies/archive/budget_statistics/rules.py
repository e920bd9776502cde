"""Rules by which BatchNorm statistics of budgets become those of a device.

    PYTHONPATH=. python studies/archive/budget_statistics/rules.py paper 0

At commit 5d7375f, in the repository's root. Training does not depend on the rule, so
one run is evaluated with each of them, after each of its last six rounds, on held-out
training images.
"""

import collections
import dataclasses
import json
import pathlib
import sys
import tempfile

import numpy as np

from studies.definitions import build_config, load_study
from tff_fedmpq.federated import similar_budgets
from tff_fedmpq.federated.evaluation import (
    DeviceEvaluator,
    Evaluator,
    assign_global_weights,
)
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.runtime import local_runtime, threads_per_client
from tff_fedmpq.simulation import experiment
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.data.partitions import dirichlet_partition
from tff_fedmpq.simulation.models import build_model_fn

POPULATIONS = {
    "paper": [2, 2, 4, 4, 4, 6, 6, 6, 8, 8],
    "fractional": [1.2, 1.5, 1.5, 1.8, 2.0, 2.3, 2.6, 2.9, 3.2, 3.5],
}


def kernel(tau):
    """Weighs budgets by the distance of their errors."""

    def shares(budgets, others, weights):
        del weights
        difference = similar_budgets._distortion(others)
        difference = difference - similar_budgets._distortion(budgets)[:, np.newaxis]
        return np.exp(-np.square(difference / tau) / 2)

    return shares


def ridge(rho):
    """Reads a line through the statistics, by their errors, at a budget."""

    def shares(budgets, others, weights):
        p = weights / weights.sum()
        errors = similar_budgets._distortion(others)
        mean = p @ errors
        spread = p @ np.square(errors - mean)
        slopes = (similar_budgets._distortion(budgets) - mean) / (spread + rho**2)
        return np.maximum(1 + np.outer(slopes, errors - mean), 0)

    return shares


RULES = {
    **{f"kernel, tau {tau}": kernel(tau) for tau in (0.03, 0.06, 0.1)},
    # The ridge was given as rho = 1 / (c sqrt(10)), for c of 5, 8.5, 15 and 30.
    **{
        f"ridge, rho {1 / c / 10**0.5:.3f}": ridge(1 / c / 10**0.5)
        for c in (5, 8.5, 15, 30)
    },
}


def main(population: str, seed: int) -> None:
    """Trains, evaluates, and writes <population>-seed<seed>.json."""
    cell = {cell.run: cell for cell in load_study("mechanisms").cells}["examples"]
    settings = {**cell.settings, "budgets": POPULATIONS[population]}
    config = build_config(dataclasses.replace(cell, settings=settings), seed)
    dataset = experiment.load_dataset(config, None)
    partition = dirichlet_partition(
        dataset.train_labels, config.num_clients, config.alpha, seed, dataset.name
    )
    found = {name: [] for name in RULES}
    with (
        tempfile.TemporaryDirectory() as directory,
        local_runtime(
            log_path=pathlib.Path(directory, "worker.log"),
            intra_op_threads=threads_per_client(config.clients_per_round),
        ),
    ):
        process = build_process(
            build_model_fn(config.model or dataset.model, dataset, seed),
            dict(zip(map(str, range(config.num_clients)), config.budgets)),
            build_client_data(pathlib.Path(directory), dataset, partition),
            config.scheme,
            augment=dataset.augment if config.augment else None,
            dtype_policy=config.dtype_policy,
            seed=seed,
        )
        state = process.initialize()
        images = dataset.test_images, dataset.test_labels
        evaluator = Evaluator(process.global_model(state), *images)
        devices = DeviceEvaluator(process, *images)
        for number in range(1, config.rounds + 1):
            participants = experiment.sample_participants(config, number)
            state = process.next(state, participants).state
            if number > config.rounds - 6:
                for name, rule in RULES.items():
                    measured = evaluate(
                        process._server, state, rule, evaluator, devices
                    )
                    found[name].append({"round": number, **measured})
    path = pathlib.Path(__file__).with_name(f"{population}-seed{seed}.json")
    heading = {"population": population, "seed": seed, "commit": "5d7375f"}
    path.write_text(json.dumps({**heading, "rules": found}, indent=1, default=float))


def evaluate(server, state, rule, evaluator, devices):
    """Returns accuracies and losses of the global and the devices' models."""
    bits = state.distributor
    levels, rows = server.levels, bits["statistics"]
    weights = np.asarray(bits["statistics_weights"], float)

    def mean(budgets):
        shares = rule(budgets, levels, weights) * weights
        shares /= shares.sum(axis=1, keepdims=True)
        return [np.tensordot(shares, row, 1).astype(np.float32) for row in rows]

    # One budget's rows at a time: so the server sends them as they are.
    model = state.global_model_weights
    common = [value[0] for value in mean(np.array([np.inf]))]
    model = type(model)(model.trainable, common)
    assign_global_weights(evaluator.model, model)
    accuracy, loss = evaluator.evaluate()
    similar_budgets._TOLERANCE = 1e-9
    sent = collections.OrderedDict(bits, statistics=mean(levels))
    measured = devices.evaluate(
        state._replace(global_model_weights=model, distributor=sent)
    )
    similar_budgets._TOLERANCE = 0.03
    return {"global": {"accuracy": accuracy, "loss": loss}, "devices": measured}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
