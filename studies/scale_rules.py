"""Rules of scales on the task examples: do layers outgrow their initial range?

    uv run studies/scale_rules.py --tasks=characters,multilabel --seeds=0,1,2

Each run of `examples/federated_tasks.py` adds a line to
`studies/results/scale_rules/tasks.jsonl`; runs that are there are not repeated. Keras's
initial weights, which these models have, are uniform and fill the range of their codes.
At the end the tables of docs/ranges.md, and of docs/tasks.md for the default rule, are
written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys

import tabulate

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "examples")]

import federated_tasks  # noqa: E402

from studies import analysis, pages  # noqa: E402
from studies.document import format_estimate  # noqa: E402
from tff_fedmpq.simulation import provenance  # noqa: E402

RESULTS = _ROOT / "studies" / "results" / "scale_rules" / "tasks.jsonl"
RULES = "widening", "least_squares"
PAGE, TASKS_PAGE = _ROOT / "docs" / "ranges.md", _ROOT / "docs" / "tasks.md"
_MODELS = {
    "initial": "before",
    "global model": "global model",
    "device of 4 bits": "4 bits",
    "central": "Keras, pooled",
}


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
    rows = read_rows()
    pages.put(PAGE, "tasks", table(rows))
    pages.put(TASKS_PAGE, "tasks", table(rows, rule="widening"))


def read_rows() -> list[dict[str, str]]:
    """Returns a row for each task and rule: means over seeds, accuracies in %."""
    groups: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for record in map(json.loads, RESULTS.read_text().splitlines()):
        run = record["run"]
        group = run["task"], record["metric"].replace("_", " "), run["rule"]
        groups.setdefault(group, []).append(record["value"])
    rows = []
    for group, values in sorted(groups.items()):
        row = dict(zip(("task", "metric", "rule"), group))
        for model, title in _MODELS.items():
            found = analysis.estimate([value[model] for value in values])
            row[title] = format_estimate(found, row["metric"])
        rows.append(row)
    return rows


def table(rows: list[dict[str, str]], rule: str | None = None) -> str:
    """Returns the Markdown table of all rules, or of one without its name."""
    if rule is not None:
        chosen = (dict(row) for row in rows)
        rows = [row for row in chosen if row.pop("rule") == rule]
    return tabulate.tabulate(rows, "keys", tablefmt="pipe")


if __name__ == "__main__":
    main()
