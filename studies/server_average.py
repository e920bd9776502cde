"""What an average over rounds at the server gains, and what the global model lacks.

    python studies/server_average.py --population=scarce --seeds=0,1,2

A run of FedMPQ's default by the protocol of `mechanisms.toml`. After each of the last
six rounds these are evaluated on held-out images, as the global model and as devices
get them:

* the round's model, as sent;
* the mean of the models of the last 3 and of the last 6 rounds: weights, statistics
  and bit-widths;
* the round's global model with BatchNorm statistics of 2,000 pooled training images,
  which no federation has: a diagnosis of the statistics, not of devices.

Training is the same for all of them: only what is handed out differs. Each writes
`studies/results/server_average/<population>-<name>/seed<k>.json`, and the command ends
by writing docs/studies/server_average.md.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
import tensorflow as tf

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from studies import analysis, results  # noqa: E402
from studies.definitions import build_config, load_study  # noqa: E402
from studies.document import format_estimate  # noqa: E402
from tff_fedmpq.federated.evaluation import (  # noqa: E402
    DeviceEvaluator,
    Evaluator,
    assign_global_weights,
)
from tff_fedmpq.federated.process import build_process  # noqa: E402
from tff_fedmpq.federated.runtime import (  # noqa: E402
    local_runtime,
    threads_per_client,
)
from tff_fedmpq.simulation import experiment, provenance  # noqa: E402
from tff_fedmpq.simulation.data.client_data import build_client_data  # noqa: E402
from tff_fedmpq.simulation.data.partitions import dirichlet_partition  # noqa: E402
from tff_fedmpq.simulation.models import build_model_fn  # noqa: E402

RESULTS = _ROOT / "studies" / "results" / "server_average"
PAGE = _ROOT / "docs" / "studies" / "server_average.md"
POPULATIONS = {
    "paper": [2, 2, 4, 4, 4, 6, 6, 6, 8, 8],
    "scarce": [2] * 10,
}
_AS_SENT, _RECALIBRATED = "as-sent", "recalibrated"
_WINDOWS = {"mean-of-3": 3, "mean-of-6": 6}
_TITLES = {
    _AS_SENT: "As sent",
    "mean-of-3": "Mean of the last 3 rounds",
    "mean-of-6": "Mean of the last 6 rounds",
    _RECALIBRATED: "Statistics of pooled training images (diagnosis)",
}
_IMAGES = 2_000


def main() -> None:
    """Runs what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--population", default="paper", choices=POPULATIONS)
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    for seed in map(int, arguments.seeds.split(",")):
        paths = {
            name: RESULTS / f"{arguments.population}-{name}" / f"seed{seed}.json"
            for name in _TITLES
        }
        if not all(path.exists() for path in paths.values()):
            heading, rounds = run(arguments.population, seed)
            for name, path in paths.items():
                measured = [record[name] for record in rounds]
                results.write_record(path, {**heading, "rounds": measured})
    PAGE.write_text(page())


def run(population: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a run's heading, and name -> measurements for each of its last rounds."""
    cells = {cell.run: cell for cell in load_study("mechanisms").cells}
    cell = cells["examples"]  # The default.
    settings = {**cell.settings, "budgets": POPULATIONS[population]}
    config = build_config(dataclasses.replace(cell, settings=settings), seed)
    dataset = experiment.load_dataset(config, None)
    partition = dirichlet_partition(
        dataset.train_labels, config.num_clients, config.alpha, seed, dataset.name
    )
    command = f"python studies/server_average.py --population={population}"
    heading = {
        "study": "server_average",
        "seed": seed,
        "command": f"{command} --seeds={seed}",
        "settings": config.as_dict(),
        **provenance.describe(),
        "commits": [provenance.find_commit()],
    }
    threads = threads_per_client(config.clients_per_round)
    with (
        tempfile.TemporaryDirectory() as directory,
        local_runtime(
            log_path=pathlib.Path(directory, "worker.log"), intra_op_threads=threads
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
        return heading, list(_rounds(process, config, dataset))


def _rounds(process: Any, config: Any, dataset: Any) -> Iterator[dict[str, Any]]:
    """Yields name -> measurements for each of the last rounds."""
    state, states = process.initialize(), collections.deque(maxlen=6)
    test = dataset.test_images, dataset.test_labels
    evaluator = Evaluator(process.global_model(state), *test)
    devices = DeviceEvaluator(process, *test)
    for number in range(1, config.rounds + 1):
        participants = experiment.sample_participants(config, number)
        state = process.next(state, participants).state
        states.append(state)
        print(f"Round {number} of {config.rounds}", flush=True)
        if number <= config.rounds - config.device_rounds:
            continue
        handed_out = {_AS_SENT: state}
        for name, window in _WINDOWS.items():
            handed_out[name] = mean_state(list(states)[-window:])
        measured = {}
        for name, one in handed_out.items():
            assign_global_weights(evaluator.model, one.global_model_weights)
            measured[name] = _record(number, evaluator, devices.evaluate(one))
        assign_global_weights(evaluator.model, state.global_model_weights)
        recalibrate(evaluator.model, dataset.train_images[:_IMAGES])
        measured[_RECALIBRATED] = _record(number, evaluator, {})
        yield measured


def _record(number: int, evaluator: Evaluator, devices: Any) -> dict[str, Any]:
    accuracy, loss = evaluator.evaluate()
    return {
        "round": number,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "devices": devices,
    }


def mean_state(states: Sequence[Any]) -> Any:
    """Returns the last state with the mean weights, statistics and bits of all."""
    weights, distributors = zip(
        *((s.global_model_weights, s.distributor) for s in states)
    )
    names = "statistics", "mean_bit_widths"
    means = {name: _mean([d[name] for d in distributors]) for name in names}
    # Pruned bits belong to the last round's average of bits.
    reductions = tf.zeros_like(distributors[-1]["bit_reductions"])
    distributor = {**distributors[-1], **means, "bit_reductions": reductions}
    return states[-1]._replace(
        global_model_weights=_mean(weights), distributor=distributor
    )


def _mean(structures: Sequence[Any]) -> Any:
    return tf.nest.map_structure(
        lambda *values: np.mean(values, axis=0, dtype=np.float32), *structures
    )


def recalibrate(model: tf.keras.Model, images: np.ndarray) -> None:
    """Sets BatchNorm's moving statistics to those of one large batch of images."""
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(tf.constant(images), training=True)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum


def page() -> str:
    """Returns the page of all result files."""
    text = [
        "<!-- Written by `python studies/server_average.py`; do not edit. -->",
        "# An average over rounds at the server",
        (
            "Quick protocol of the [mechanisms](mechanisms.md), held-out images: means "
            "over the last six rounds with 95 % intervals over seeds. Differences from "
            "the model as sent are paired by round and seed. Training is the same: "
            "only what is handed out differs. The diagnosis says what the global model "
            "lacks with statistics as sent; no federation has pooled images."
        ),
    ]
    for population in POPULATIONS:
        rows = list(_rows(population))
        if rows:
            budgets = ", ".join(f"{b:g}" for b in POPULATIONS[population])
            table = tabulate.tabulate(rows, headers="keys", tablefmt="pipe")
            text += [f"## {population} ({budgets} bits)", table]
    return "\n\n".join(text) + "\n"


def _rows(population: str) -> Iterator[Mapping[str, str]]:
    """Yields a row of accuracies and one of differences for each way."""
    runs = {
        name: {
            int(path.stem.removeprefix("seed")): json.loads(path.read_text())
            for path in sorted((RESULTS / f"{population}-{name}").glob("seed*.json"))
        }
        for name in _TITLES
    }
    for name, of_seeds in runs.items():
        if not of_seeds:
            continue
        mean, difference = {"model": _TITLES[name]}, {"model": "- difference"}
        for budget in (analysis.GLOBAL, *analysis.budgets_of(runs[_AS_SENT])):
            column = (
                "global model, %" if budget is analysis.GLOBAL else f"{budget} bits"
            )
            means = {s: _mean_accuracy(r, budget) for s, r in of_seeds.items()}
            sent = {s: _mean_accuracy(r, budget) for s, r in runs[_AS_SENT].items()}
            if None in means.values():
                continue  # A diagnosis is of the global model.
            value = analysis.estimate(list(means.values()))
            mean[column] = format_estimate(value, "accuracy")
            paired = analysis.estimate([means[s] - sent[s] for s in means])
            difference[column] = format_estimate(paired, "accuracy", "+")
        yield mean
        if name != _AS_SENT:
            yield difference


def _mean_accuracy(record: Any, budget: analysis.Budget) -> float | None:
    """Returns the mean over the rounds of a file, which has the last six alone."""
    if budget is analysis.GLOBAL:
        return float(np.mean([r["test_accuracy"] for r in record["rounds"]]))
    devices = [r["devices"].get(budget) for r in record["rounds"]]
    return None if None in devices else float(np.mean([d["accuracy"] for d in devices]))


if __name__ == "__main__":
    main()
