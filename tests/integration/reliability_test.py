"""The page of faults is that of the present tests."""

from __future__ import annotations

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
sys.path.append(str(PAGE.parent))

import make_reliability  # noqa: E402  Of `docs`.


def test_the_page_of_faults_is_up_to_date(all_tests):
    files = {item.path for item in all_tests}
    if not files.issuperset(ROOT.glob("tests/**/*_test.py")):
        pytest.skip("a part of the tests was collected")
    mend = "Run `python docs/make_reliability.py`."
    page = PAGE.read_text()
    assert make_reliability.page(all_tests) == page, mend
    assert page.count("\n| ") - page.count("\n| what goes") >= 90
