"""The table of files for devices is that of the committed result."""

from __future__ import annotations

import json

import pytest

from studies import export_files


@pytest.fixture(scope="module")
def result():
    return json.loads((export_files.RESULTS / "resnet20.json").read_text())


def test_the_page_has_the_tables_of_the_result(result):
    assert export_files.tables(result) in export_files.PAGE.read_text()


def test_packed_files_are_as_small_as_was_promised(result):
    for row in result["devices"]:
        limit = 1.01 * (row["code_bytes"] + row["other_bytes"]) + 4096
        assert row["files"]["fedmpq"]["bytes"] <= limit
        assert row["mean_bit_width"] <= row["budget"]


def test_files_are_as_accurate_as_keras(result):
    for row in result["devices"]:
        for kind, file in row["files"].items():
            assert file["accuracy"] == pytest.approx(file["keras_accuracy"], abs=0.005)
            assert file["median_difference"] < 1e-4
            if kind == "fedmpq":
                assert file["largest_difference"] == 0
