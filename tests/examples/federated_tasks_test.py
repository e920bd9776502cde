"""The task examples, small: on held-out examples they come near central training."""

from __future__ import annotations

from typing import Any, NamedTuple

import federated_tasks
import numpy as np
import pytest


class Small(NamedTuple):
    """A short run of a task, and the share of central training's gain that it needs."""

    rounds: int
    share: float
    settings: dict[str, Any] = {}
    examples: int | None = None
    learning_rate: float | None = None


SMALL = {
    "regression": Small(3, 0.8),
    "multilabel": Small(3, 0.75),
    "emnist": Small(6, 0.5),
    # An LSTM needs many steps, and a client takes a third of those on the pooled text.
    "characters": Small(5, 0.12, {"epochs": 6, "learning_rate_floor": 0.3}, 600, 3.0),
    "weighted": Small(10, 0.9),
}


def best_constant(labels: np.ndarray) -> float:
    """Returns the metric of the best answer that does not look at the inputs."""
    if labels.dtype == np.int32:  # The most frequent class.
        return np.bincount(labels.ravel()).max() / labels.size
    if labels.shape[1] == 1:
        return np.abs(labels - np.median(labels)).mean()
    return np.maximum(labels.mean(0), 1 - labels.mean(0)).mean()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "weighted" else name
        for name in federated_tasks.TASKS
    ],
)
def test_a_task_is_learned(capsys, name):
    """Its gain is over the best constant answer, which needs no inputs."""
    task, small = federated_tasks.TASKS[name](), SMALL[name]
    task = task._replace(
        examples=tuple(array[: small.examples] for array in task.examples),
        learning_rate=small.learning_rate or task.learning_rate,
    )
    start = best_constant(task.examples[1])
    results = federated_tasks.run(task, small.rounds, **small.settings)
    for model in ("global model", "device of 4 bits"):
        gain = (results[model] - start) / (results["central"] - start)
        assert gain > small.share, results
    assert capsys.readouterr().out.count("\n") == small.rounds  # A line per round.
