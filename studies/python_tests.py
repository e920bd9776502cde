"""Counts of the tests on each Python, from the JUnit files of pytest.

    bash .ci/python313 FOLDER -m "not slow" --junitxml=FOLDER/3.13.xml
    python studies/python_tests.py FOLDER

Files are named by their Python, `3.13.xml`, or `3.13-keras.xml` where the suite runs in
parts. Writes the commit and numbers by Python, folder and outcome into
`studies/results/pythons/tests.json`, and prints the table of `docs/installation.md`.
"""

from __future__ import annotations

import collections
import json
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import tabulate

_OUTPUT = pathlib.Path(__file__).parent / "results" / "pythons" / "tests.json"


def main() -> None:
    """Writes the counts of the folder that the command line names."""
    command = ["git", "-C", str(_OUTPUT.parent), "rev-parse", "--short", "HEAD"]
    found = {
        "commit": subprocess.check_output(command, text=True).strip(),
        "tests": count(pathlib.Path(sys.argv[1]).glob("3.*.xml")),
    }
    _OUTPUT.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(table(found["tests"]))


def table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """Returns in Markdown how many tests passed, and what else they did, by folder."""
    pythons = sorted(counts, key=lambda python: [int(n) for n in python.split(".")])
    folders = sorted({folder for of_python in counts.values() for folder in of_python})
    rows = [
        [f"`{folder}`", *(_cell(counts[python].get(folder, {})) for python in pythons)]
        for folder in folders
    ]
    totals = [
        sum(map(collections.Counter, counts[p].values()), start=collections.Counter())
        for p in pythons
    ]
    rows.append(["all", *map(_cell, totals)])
    return tabulate.tabulate(rows, ["tests", *pythons], tablefmt="github")


def _cell(outcomes: dict[str, int]) -> str:
    parts = [
        f"{outcomes[outcome]:,}" + (f" {outcome}" if outcome != "passed" else "")
        for outcome in ("passed", "skipped", "failed")
        if outcome in outcomes
    ]
    return ", ".join(parts)


def count(paths) -> dict[str, dict[str, dict[str, int]]]:
    """Returns Python -> folder of tests -> outcome -> number of tests.

    A test that two files of a Python hold counts once, as in the newer file.
    """
    outcomes = {}
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        python = path.stem.partition("-")[0]
        for case in ElementTree.parse(path).iter("testcase"):
            name = case.get("classname", ""), case.get("name")
            outcomes[python, name] = _outcome(case)
    counts: dict = collections.defaultdict(lambda: collections.defaultdict(dict))
    for (python, (module, _)), outcome in outcomes.items():
        folder = "/".join(module.split(".")[:2])
        if folder.endswith("_test"):  # Lies in no folder of its own.
            folder = "tests"
        of_folder = counts[python][folder]
        of_folder[outcome] = of_folder.get(outcome, 0) + 1
    return counts


def _outcome(case: ElementTree.Element) -> str:
    tags = {child.tag for child in case}
    if tags & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in tags else "passed"


if __name__ == "__main__":
    main()
