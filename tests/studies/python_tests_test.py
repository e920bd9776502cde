"""Counts of tests from pytest's files."""

import os

from studies import python_tests

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
