"""The document, from result files made by hand."""

from __future__ import annotations

import pytest

from tff_fedmpq.simulation.reproduction import (
    cells,
    deviations,
    document,
    results,
    tables,
)

FEDMPQ = "table1/cifar10/alpha0.5/fedmpq"
AQFL = "table1/cifar10/alpha0.5/aqfl"


def records_of(*records):
    return {record["id"]: record for record in records}


def table_rows(text, title):
    """Row heading -> entries, of the table below a heading."""
    _, _, rest = text.partition(f"### {title}\n\n")
    assert rest, f"no table {title!r}"
    lines = rest.split("\n\n")[0].splitlines()
    rows = [[entry.strip() for entry in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def text(make):
    """Two seeds of FedMPQ, an interrupted AQFL, a reduced FPQ8."""
    return document.build_document(
        {
            "paper": records_of(
                make.finished(f"{FEDMPQ}/seed0", [0.1, 0.64]),
                make.finished(f"{FEDMPQ}/seed1", [0.1, 0.68]),
                make.unfinished(f"{AQFL}/seed0", 12),
            ),
            "reduced": records_of(
                make.finished("table1/cifar10/alpha1/fpq8/seed0", [0.5], "reduced")
            ),
        }
    )


def test_ours_stands_beside_the_papers(text):
    rows = table_rows(text, "Table 1, CIFAR-10: heterogeneity")
    assert rows["scheme"] == [
        *("alpha 0.1, ours", "paper", "alpha 0.5, ours", "paper"),
        *("alpha 1, ours", "paper"),
    ]
    # The mean of 64 and 68, and sqrt((2^2 + 2^2) / 1).
    fedmpq = ["not run", "49.1", "66.00 +- 2.83 (2)", "67.1", "not run", "69.3"]
    assert rows["FedMPQ"] == fedmpq
    assert rows["AQFL"][2:4] == ["round 12 of 50", "58.0"]
    assert rows["FPQ8"] == ["not run", "54.5", "not run", "68.4", "not run", "70.8"]


def test_a_run_stands_in_every_table_that_asks_for_it(text):
    entry = "66.00 +- 2.83 (2)"
    table_2 = table_rows(text, "Table 2, CIFAR-10: number of clients")
    assert table_2["FedMPQ"][:2] == [entry, "67.1"]
    table_3 = table_rows(text, "Table 3, CIFAR-10: lambda and epsilon of FedMPQ")
    assert table_3["lambda 0.01"][4:6] == [entry, "67.1"]
    assert table_3["lambda 0.1"][4:6] == ["not run", "65.9"]
    table_4 = table_rows(text, "Table 4: parts of FedMPQ")
    assert table_4["all three (FedMPQ)"] == [entry, "67.1", "not run", "41.1"]
    assert table_4["AQFL"][:2] == ["round 12 of 50", "58.0"]
    figure_2 = table_rows(text, "Figure 2, CIFAR-10: local epochs")
    assert figure_2["FedMPQ"][:4] == ["not run", "-", entry, "67.1"]
    question = table_rows(text, "Question 4: share of 2-bit clients")
    assert question["20 % (2, 2, 4, 4, 4, 6, 6, 6, 8, 8)"][1] == entry


def test_reduced_runs_stand_apart_and_say_so(text):
    title = "Table 1, CIFAR-10: heterogeneity - REDUCED"
    rows = table_rows(text, title)
    assert rows["FPQ8"][4:] == ["50.00", "70.8"]
    assert "FedMPQ" not in rows  # Not run there.
    section = text.split("## A reduced protocol - REDUCED")[1]
    assert "Not the paper's protocol" in section
    assert "Training images: 20,000" in section and "30 rounds of 2 " in section
    assert "Not run: Table 1, CIFAR-100" in section
    assert "Tiny-ImageNet" not in section  # Has no network there.


def test_every_run_has_its_command_hardware_and_time(text):
    runs = text.split("## Runs")[1]
    for preset, name in (("paper", f"{FEDMPQ}/seed1"), ("paper", f"{AQFL}/seed0")):
        (line,) = (x for x in runs.splitlines() if x.startswith(f"| {preset}: {name} "))
        seed = name[-1]
        assert f"--preset={preset} --cells='{name}' --seeds={seed}" in line
    (line,) = (x for x in runs.splitlines() if f"{FEDMPQ}/seed1 |" in x)
    # Two rounds of an hour, a megabyte up and two down.
    for entry in ("68.00", "2: 25.00, 8: 50.00", "2.0", "4.0", "2.00 h", "bfloat16"):
        assert f"| {entry} |" in line
    assert "2 cores, An Abacus" in line and "tensorflow 2.14.1" in line


def test_every_deviation_is_named(text):
    section = text.split("## Deviations")[1].split("## Runs")[0]
    for deviation in deviations.DEVIATIONS:
        assert deviation.what.replace("|", "\\|") in section


def test_without_results_nothing_is_claimed():
    text = document.build_document({})
    rows = table_rows(text, "Table 1, Tiny-ImageNet: heterogeneity")
    assert all(entry == "not run" for entry in rows["FedMPQ"][::2])
    assert text.endswith("## Runs\n\nNone yet.\n")
    assert "REDUCED\n\n|" not in text


def test_what_cannot_be_run_gives_its_reason():
    grid = tables.table_1()[-1]
    assert "Tiny-ImageNet" in grid.title
    text = document.format_grid(grid, "reduced", {})
    assert text.count("n/a |") == 18
    assert text.endswith("n/a: the preset reduced has no network for tiny_imagenet.")


def test_validation_accuracy_is_not_beside_the_papers_numbers(make):
    record = make.finished(f"{FEDMPQ}/seed0", [0.125], "tuning")
    text = document.build_document({"tuning": records_of(record)})
    section = text.split("- TUNING", 1)[1].split("\n## ")[0]
    assert "Validation accuracy" in section and "Table 1" not in section
    assert "| FedMPQ | 12.50 | not run | not run |" in section  # A finalist.


def test_rows_without_results_are_of_the_papers_protocol_only(make):
    record = make.finished(f"{FEDMPQ}/seed0", [0.5], "reduced")
    grid = tables.table_1()[0]
    reduced = document.format_grid(grid, "reduced", records_of(record))
    assert "| FedMPQ |" in reduced and "| AQFL |" not in reduced
    assert "| AQFL | not run |" in document.format_grid(grid, "paper", {})


def test_results_of_settings_that_have_changed_are_not_shown(make):
    record = make.finished(f"{FEDMPQ}/seed0", [0.5])
    record["protocol"]["scheme_options"]["lasso"] = 0.02
    text = document.build_document({"paper": records_of(record)})
    rows = table_rows(text, "Table 1, CIFAR-10: heterogeneity")
    assert rows["FedMPQ"][2] == "not run"
    assert f"have changed since: `{FEDMPQ}/seed0`" in text


def test_the_document_is_of_the_files_alone(make, tmp_path):
    cell = make.cell(f"{FEDMPQ}/seed0")
    record = make.finished(f"{FEDMPQ}/seed0", [0.5])
    results.write_record(tmp_path / "results", cell, record)
    path = tmp_path / "docs" / "document.md"
    document.write_document(tmp_path / "results", path)
    expected = document.build_document({"paper": records_of(record)})
    assert path.read_text() == expected
    assert set(cells.PRESETS) == {"paper", "reduced", "tuning"}
