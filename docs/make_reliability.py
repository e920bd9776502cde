"""Writes `docs/reliability.md`: a table of the tests marked `faults`.

    python docs/make_reliability.py

A row is a case of a test: what goes wrong (the case's id), what is promised (the test's
name and docstring), and the test. Nothing is written by hand, so that nothing is
promised which no test holds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"

_HEAD = """# Reliability

What goes wrong, what is promised, and the test that holds the promise. `pytest -m
faults` runs them all: {cases} cases of {tests} tests. This page is written by
`python docs/make_reliability.py`; see also [limits](limits.md).

Two scripts take too long for tests. `.ci/kill_and_resume.py` kills runs thirty times;
its log is `docs/results/faults/kills.log`. `.ci/fuzz.py` fuzzes a parser for minutes;
`docs/results/faults/fuzzing.json` has seconds and counts.
"""
_AREAS = {
    "baselines": "Other schemes",
    "export": "Files for devices",
    "federated": "Rounds and clients",
    "integration": "Runs",
    "keras": "Keras layers",
    "quantization": "Codes and bits",
    "simulation": "Data and result files",
}


class _Collector:
    """A plug-in of pytest that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collect() -> list[pytest.Item]:
    """Returns all tests that are marked."""
    collector = _Collector()
    options = ["--collect-only", "-qq", "-n0", "-m", "faults", f"--rootdir={ROOT}"]
    code = pytest.main([*options, str(ROOT / "tests")], plugins=[collector])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"pytest could not collect the tests: {code!r}.")
    return collector.items


def page(items: Iterable[pytest.Item]) -> str:
    """Returns the page in Markdown, of the tests that are marked among `items`."""
    items = [item for item in items if item.get_closest_marker("faults")]
    items.sort(key=lambda item: item.location[:2])
    tests = {item.nodeid.split("[")[0] for item in items}
    lines = [_HEAD.format(cases=len(items), tests=len(tests))]
    area = ""
    for item in items:
        folder = item.location[0].split("/")[1]
        if folder != area:
            area = folder
            lines += [f"\n## {_AREAS.get(folder, folder.capitalize())}\n"]
            lines += ["| what goes wrong | promise | test |", "|---|---|---|"]
        lines.append("| " + " | ".join(_row(item)) + " |")
    return "\n".join(lines) + "\n"


def _row(item: pytest.Item) -> Iterator[str]:
    path, _, name = item.location
    name, _, case = name.partition("[")
    words = name.rpartition(".")[2].removeprefix("test_").replace("_", " ")
    doc = " ".join((getattr(item.obj, "__doc__", None) or "").split())
    yield _escape(case.removesuffix("]") or "any")
    yield _escape(f"{words[0].upper()}{words[1:]}. {doc}".strip())
    yield f"`{pathlib.PurePath(path).relative_to('tests')}::{name}`"


def _escape(text: str) -> str:
    for char in "\\|<>*[]":
        text = text.replace(char, "\\" + char)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(collect()))
