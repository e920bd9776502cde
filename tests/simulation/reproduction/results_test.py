"""Result files: what is kept, how they are written, and to whom they belong."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from tff_fedmpq.simulation.reproduction import results

NAME = "table1/cifar10/alpha0.5/fedmpq/seed0"


def test_a_finished_result_keeps_what_the_document_needs(make):
    cell = make.cell(NAME)
    result = make.result(cell.config, [0.25, 0.5])
    before = copy.deepcopy(result)
    record = results.finished_record(result, cell, cell.config)
    assert result == before
    assert (record["id"], record["preset"]) == (NAME, "paper")
    assert (record["finished"], record["rounds_done"]) == (True, 2)
    assert record["command"] == (
        f"python examples/reproduce.py table1 --preset=paper --cells='{NAME}' "
        "--seeds=0 --compute=bfloat16"
    )
    for key in ("protocol", "versions", "hardware", "seed", "tier_accuracy"):
        assert record[key] == result[key]
    for kept, given in zip(record["rounds"], result["rounds"]):
        assert set(given) - set(kept) == {"clients", "next_bit_widths"}
        assert all(kept[key] == given[key] for key in kept)


def test_densities_go_where_a_file_would_be_large(make, monkeypatch):
    cell = make.cell(NAME)
    result = make.result(cell.config, 50 * [0.25])
    monkeypatch.setattr(results, "MAX_BYTES", 1000)
    record = results.finished_record(result, cell, cell.config)
    assert all("top_plane_densities" not in r for r in record["rounds"])
    assert all("bit_widths" in r for r in record["rounds"])


def test_a_real_sized_result_is_small(make):
    cell = make.cell("table2/cifar10/clients40/fedmpq/seed0")
    result = make.result(cell.config, 50 * [0.123456789], num_clients=40)
    for record in result["rounds"]:
        record["bit_widths"] = 46 * [1 / 3]
        record["top_plane_densities"] = 46 * [1 / 3]
    text = results.format_record(results.finished_record(result, cell, cell.config))
    assert len(text) <= results.MAX_BYTES


def test_a_record_is_json_with_a_line_per_round(make):
    record = make.finished(NAME, [0.25, 0.5])
    text = results.format_record(record)
    assert json.loads(text) == record
    assert len(text.splitlines()) == len(record) + 2 + 3


def test_records_are_found_again(make, tmp_path):
    cell = make.cell(NAME)
    record = make.finished(NAME, [0.25])
    results.write_record(tmp_path, cell, record)
    path = tmp_path / "paper/table1/cifar10/alpha0.5/fedmpq/seed0.json"
    assert json.loads(path.read_text()) == record
    assert results.read_records(tmp_path, "paper") == {NAME: record}
    assert results.read_records(tmp_path, "reduced") == {}
    assert [p.name for p in path.parent.iterdir()] == ["seed0.json"]


def test_a_shared_run_has_one_file(make):
    records = {NAME: make.finished(NAME, [0.25])}
    for name in ("table2/cifar10/clients10/fedmpq/seed0", "table4/cifar10/all/seed0"):
        assert results.find_record(records, make.cell(name).config) == NAME
    other = make.cell("table2/cifar10/clients20/fedmpq/seed0")
    assert results.find_record(records, other.config) is None


def test_a_result_is_found_under_the_id_of_a_former_owner(make):
    """Who owns a run depends on the defaults, what it was a run of does not."""
    record = {**make.finished(NAME, [0.25]), "id": "study/once/seed0"}
    records = {"study/once/seed0": record}
    assert results.find_record(records, make.cell(NAME).config) == "study/once/seed0"


def test_a_finished_result_comes_before_an_unfinished_one(make):
    begun, done = make.unfinished(NAME, 3), make.finished(NAME, [0.25])
    records = {"a": begun, "b": done, "c": begun}
    assert results.find_record(records, make.cell(NAME).config) == "b"
    del records["b"]
    assert results.find_record(records, make.cell(NAME).config) == "a"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"compute": "float32"}, True),
        ({"rounds": 49}, False),
        ({"seed": 1}, False),
        ({"float_learning_rate_decay": "cosine"}, False),
        ({"budgets": (4,) * 10}, False),
        ({"scheme_options": {"lasso": 0.02}}, False),
        ({"scheme_options": {"low_bit_damping": 0.5}}, False),
    ],
)
def test_a_result_is_of_its_settings(make, changes, same):
    config = make.cell(NAME).config
    record = make.finished(NAME, [0.25])
    options = {**config.scheme_options, **changes.get("scheme_options", {})}
    other = dataclasses.replace(config, **{**changes, "scheme_options": options})
    found = results.find_record({NAME: record}, other)
    assert (found == NAME) == same


def test_what_a_run_did_not_know_of_it_cannot_be_a_result_of(make):
    config, record = make.cell(NAME).config, make.finished(NAME, [0.25])
    assert results.find_record({NAME: record}, config) == NAME
    del record["protocol"]["scheme_options"]["lasso"]
    assert results.find_record({NAME: record}, config) is None


def test_the_first_runs_learned_alike_at_all_bit_widths_and_rounds(make):
    """Their files mention neither."""
    record = make.finished(NAME, [0.25])
    del record["protocol"]["scheme_options"]["low_bit_damping"]
    del record["protocol"]["float_learning_rate_decay"]
    assert results.find_record({NAME: record}, make.cell(NAME).config) == NAME


@pytest.mark.parametrize("content", ["", "[]", '{"finished": true}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/bad.json").write_text(content)
    with pytest.raises(ValueError, match="bad.json is no result file"):
        results.read_records(tmp_path, "paper")


@pytest.mark.parametrize(("scheme", "same"), [("fedavg", True), ("fpq8", False)])
def test_the_rate_of_codes_counts_where_there_are_codes(make, scheme, same):
    record = make.finished(f"table1/cifar10/alpha0.5/{scheme}/seed0", [0.5])
    config = make.cell(record["id"]).config
    other = dataclasses.replace(config, learning_rate=2.0, learning_rate_decay="cosine")
    records = {record["id"]: record}
    assert results.find_record(records, config)
    assert bool(results.find_record(records, other)) == same


def test_the_command_names_a_cell_of_its_table(make):
    """Though another table owns the result."""
    cell = make.cell("study/finalists/alpha0.5/aqfl/seed0", "tuning")
    command = results.command_of(cell, cell.config)
    assert cell.result_id.startswith("table1/")
    assert "reproduce.py study " in command and f"--cells='{cell.id}'" in command
