"""The comparison of two Pythons is that of the committed records, and the page's."""

import copy
import json
import pathlib

import pytest

from studies import pythons

_ROOT = pathlib.Path(__file__).parents[2]
_FOLDER = _ROOT / "studies/results/pythons"


@pytest.fixture
def records():
    return [
        json.loads((_FOLDER / f"python{version}.json").read_text())
        for version in ("3.11", "3.13")
    ]


def test_the_comparison_is_that_of_the_records(records):
    committed = json.loads((_FOLDER / "comparison.json").read_text())
    assert pythons.compare(*records) == committed


def test_a_difference_is_found(records):
    first, second = records
    second = copy.deepcopy(second)
    second["rounds"][3]["uplink_bits"] += 8
    second["rounds"][5]["test_accuracy"] -= 0.5
    found = pythons.compare(first, second)
    assert found["equal"]["uplink_bits"] is False
    assert found["largest_difference"]["test_accuracy"] == pytest.approx(0.5, abs=0.05)


def test_other_settings_are_refused(records):
    first, second = records
    second["settings"]["seed"] += 1
    with pytest.raises(ValueError, match="same settings"):
        pythons.compare(first, second)


def test_the_page_says_what_the_comparison_says(records):
    found = pythons.compare(*records)
    page = (_ROOT / "docs/installation.md").read_text()
    assert all(found["equal"].values())
    assert set(found["largest_difference"].values()) == {0}
    assert f"and training loss in each of {found['rounds']} rounds" in page
