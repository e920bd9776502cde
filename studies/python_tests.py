"""Counts of the tests on each Python, from the JUnit files of pytest.

    bash .ci/python313 FOLDER -m "not slow" --junitxml=FOLDER/3.13.xml
    python studies/python_tests.py FOLDER

Files are named by their Python, `3.13.xml`, or `3.13-keras.xml` where the suite runs in
parts. Writes `studies/results/pythons/tests.json` (Python, folder, outcome, number).
"""

from __future__ import annotations

import collections
import json
import pathlib
import sys
from xml.etree import ElementTree

_OUTPUT = pathlib.Path(__file__).parent / "results" / "pythons" / "tests.json"


def main() -> None:
    """Writes the counts of the folder that the command line names."""
    paths = pathlib.Path(sys.argv[1]).glob("3.*.xml")
    _OUTPUT.write_text(json.dumps(count(paths), indent=2, sort_keys=True) + "\n")


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
