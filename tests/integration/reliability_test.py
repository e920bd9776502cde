"""The page of faults is that of the present tests."""

from __future__ import annotations

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
SHOW = "import make_reliability as m, sys; sys.stderr.write(m.page(m.collect()))"


def test_the_page_of_faults_is_up_to_date():
    """In a process of its own, as pytest cannot collect within a test."""
    shown = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    mend = "Run `python docs/make_reliability.py`."
    page = PAGE.read_text()
    assert shown.stderr.endswith(page), mend
    assert page.count("\n| ") - page.count("\n| what goes") >= 90
