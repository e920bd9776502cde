"""Counts of tests from pytest's files."""

import json
import os
import pathlib

from studies import python_tests

_ROOT = pathlib.Path(__file__).parents[2]
_FILE = """<testsuites><testsuite>
<testcase classname="tests.keras.layers_test" name="a">{outcome}</testcase>
<testcase classname="tests.keras.layers_test" name="b"><skipped/></testcase>
<testcase classname="tests.import_test" name="a"/>
</testsuite></testsuites>"""


def test_a_test_that_ran_again_counts_once_as_it_ended(tmp_path):
    for time, name, outcome in ((1, "3.13-b", "<failure/>"), (2, "3.13-a", "")):
        path = tmp_path / f"{name}.xml"
        path.write_text(_FILE.format(outcome=outcome))
        os.utime(path, (time, time))
    (tmp_path / "3.9.xml").write_text(_FILE.format(outcome="<error/>"))
    root = {"passed": 1}
    assert python_tests.count(tmp_path.glob("*.xml")) == {
        "3.13": {"tests/keras": {"passed": 1, "skipped": 1}, "tests": root},
        "3.9": {"tests/keras": {"failed": 1, "skipped": 1}, "tests": root},
    }


def test_the_table_has_what_did_not_pass_and_sums():
    counts = {
        "3.13": {"tests": {"passed": 3}, "tests/keras": {"passed": 2000, "failed": 1}},
        "3.9": {"tests": {"passed": 4, "skipped": 2}},
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in python_tests.table(counts).splitlines()
    ]
    assert [rows[0], *rows[2:]] == [
        ["tests", "3.9", "3.13"],
        ["`tests`", "4, 2 skipped", "3"],
        ["`tests/keras`", "", "2,000, 1 failed"],
        ["all", "4, 2 skipped", "2,003, 1 failed"],
    ]


def test_the_documentation_has_the_table():
    path = _ROOT / "studies/results/pythons/tests.json"
    page = (_ROOT / "docs/installation.md").read_text()
    assert python_tests.table(json.loads(path.read_text())["tests"]) in page
