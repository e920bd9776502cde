"""The table of a run's rounds, also after an interruption."""

from __future__ import annotations

import csv

import pytest

from tff_fedmpq.simulation import releases


def record(number):
    return {"round": number} | {name: number / 8 for name in releases._RELEASED}


def read(directory):
    with open(directory / "metrics.csv", newline="") as file:
        return [
            {name: float(value) for name, value in line.items()}
            for line in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    "content", [None, "", "round,test_loss\n1,", "\0\0\0\n\0", "x"]
)
def test_the_table_is_that_of_the_records(tmp_path, content):
    """Whatever a killed run, or another process, has left of the file."""
    first = releases.Releases(tmp_path)
    for number in (1, 2, 3):
        first.release(number, record(number))
    assert [line["round"] for line in read(tmp_path)] == [1, 2, 3]
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    # Round 3 was released and not saved.
    again = releases.Releases(tmp_path, [record(1), record(2)])
    again.release(3, record(3))
    lines = read(tmp_path)
    assert lines == [record(number) for number in (1, 2, 3)]
