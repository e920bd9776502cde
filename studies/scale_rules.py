"""Rules of scales on the task examples: do layers outgrow their initial range?

    uv run studies/scale_rules.py --tasks=characters,multilabel --seeds=0,1,2

Each run of `examples/federated_tasks.py` adds a line to
`studies/results/scale_rules/tasks.jsonl`; runs that are there are not repeated. Keras's
initial weights, which these models have, are uniform and fill the range of their codes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "examples")]

import federated_tasks  # noqa: E402

from tff_fedmpq.simulation import provenance  # noqa: E402

RESULTS = _ROOT / "studies" / "results" / "scale_rules" / "tasks.jsonl"
RULES = "widening", "least_squares"


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", default=",".join(federated_tasks.TASKS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    commit = provenance.find_commit()
    done = [json.loads(line)["run"] for line in lines]
    seeds = map(int, arguments.seeds.split(","))
    for seed, name, rule in itertools.product(seeds, arguments.tasks.split(","), RULES):
        run = {"task": name, "rule": rule, "seed": seed, "rounds": arguments.rounds}
        if run not in done:
            task = federated_tasks.TASKS[name]()
            metrics = federated_tasks.run(
                task, arguments.rounds, seed=seed, scale_rule=rule
            )
            record = {"run": run, "metric": task.metric.name, "value": metrics}
            source = {"commit": commit, **provenance.describe()}
            with RESULTS.open("a") as file:
                print(json.dumps({**record, **source}), file=file)


if __name__ == "__main__":
    main()
