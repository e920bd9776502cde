"""The task examples: federated learning comes near training of the pooled examples."""

from __future__ import annotations

import federated_tasks
import pytest

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("regression", 0.7),
        pytest.param("multilabel", 0.7, marks=slow),
        # The LSTM takes fewer steps per client than on the pooled text.
        pytest.param("characters", 0.5, marks=slow),
        pytest.param("weighted", 0.9, marks=slow),
    ],
)
def test_a_task_is_learned(capsys, name, share):
    """By at least a share of what central training gains, on held-out examples."""
    results = federated_tasks.run(federated_tasks.TASKS[name]())
    gain = results["central"] - results["initial"]
    for model in ("global model", "device of 4 bits"):
        assert (results[model] - results["initial"]) / gain > share, results
    assert capsys.readouterr().out.count("\n") == 10  # A line per round.
