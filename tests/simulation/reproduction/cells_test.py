"""Cells: ids, presets, runs that several tables share, selection by patterns."""

from __future__ import annotations

import pytest

from tff_fedmpq.simulation.experiment import build_config_scheme
from tff_fedmpq.simulation.reproduction import cells

every_table = pytest.mark.parametrize("table", list(cells.TABLES))
every_preset = pytest.mark.parametrize("preset", list(cells.PRESETS))


@every_table
@every_preset
def test_ids_are_unique_and_results_have_one_owner(table, preset):
    found = cells.expand(table, preset, [0, 1])
    assert len({cell.id for cell in found}) == len(found)
    by_owner = {}
    for cell in found:
        assert cell.id.endswith(("/seed0", "/seed1"))
        if cell.config:
            assert by_owner.setdefault(cell.result_id, cell.config) == cell.config
    configs = [str(config.as_dict()) for config in by_owner.values()]
    assert len(set(configs)) == len(configs)


@every_table
@every_preset
def test_an_owner_is_a_cell_of_its_table(table, preset):
    for cell in cells.expand(table, preset, [3]):
        if cell.config:
            (owner,) = cells.select(
                cells.expand(cell.result_id.split("/")[0], preset, [3]),
                [cell.result_id],
            )
            assert (owner.id, owner.config) == (cell.result_id, cell.config)


@every_table
def test_every_scheme_takes_its_options(table):
    for cell in cells.expand(table, "paper", [0]):
        if cell.config:
            assert build_config_scheme(cell.config).name == cell.config.scheme


def test_ids_can_be_read():
    ids = {
        cell.id for table in cells.TABLES for cell in cells.expand(table, "paper", [0])
    }
    assert {
        "table1/cifar10/alpha0.5/fedmpq/seed0",
        "table2/cifar10/clients20/aqfl/seed0",
        "table3/cifar10/lambda0.001/epsilon0.03/seed0",
        "table4/cifar100/msb+alg2/seed0",
        "figure2/epochs15/fpq8/seed0",
        "study/literal+scales/aqfl/seed0",
    } <= ids


def test_seeds_follow_each_other_and_reach_the_runs():
    found = cells.expand("table4", "paper", [4, 2, 4])
    seeds = [cell.config.seed for cell in found]
    assert seeds == 12 * [4] + 12 * [2]
    assert [cell.id.replace("seed4", "seed2") for cell in found[:12]] == [
        cell.id for cell in found[12:]
    ]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_compute_reaches_the_runs(compute):
    for cell in cells.expand("table1", "reduced", [0], compute):
        assert cell.config is None or cell.config.compute == compute


def test_the_reduced_preset_replaces_and_the_table_comes_first():
    settings = cells.PRESETS["reduced"].settings
    for cell in cells.expand("figure2", "reduced", [0]):
        assert cell.config.rounds == settings["rounds"] < 50
        assert cell.config.train_examples == settings["train_examples"]
        assert f"/epochs{cell.config.local_epochs}/" in cell.id
    (cell, *_) = cells.expand("table2", "reduced", [0])
    assert cell.config.local_epochs == settings["local_epochs"]
    assert (cell.config.model, cell.config.num_clients) == ("resnet20", 10)


def test_what_a_preset_cannot_express_says_so():
    found = cells.expand("table1", "reduced", [0])
    for cell in found:
        assert (cell.config is None) == bool(cell.obstacle)
        assert bool(cell.obstacle) == ("tiny_imagenet" in cell.id)
    assert "no network for tiny_imagenet" in found[-1].obstacle


def test_cells_are_selected_by_patterns():
    found = cells.expand("table1", "paper", [0])
    chosen = cells.select(found, ["*/alpha0.5/fedmpq/*", "*cifar10/alpha1/*"])
    assert len(chosen) == 3 + 6
    assert [c.id for c in chosen] == [c.id for c in found if c in chosen]
    assert cells.select(found, []) == found


def test_a_pattern_without_a_seed_selects_all_seeds():
    found = cells.expand("table1", "paper", [0, 1])
    group = "table1/cifar10/alpha0.5/fedmpq"
    chosen = cells.select(found, [group])
    assert [cell.id for cell in chosen] == [f"{group}/seed0", f"{group}/seed1"]


@pytest.mark.parametrize("patterns", [["table2/*"], ["*", "*/seed7"]])
def test_a_pattern_that_matches_nothing_is_refused(patterns):
    found = cells.expand("table1", "paper", [0])
    with pytest.raises(ValueError, match="No cell matches.*table1/cifar10.*--list"):
        cells.select(found, patterns)


def test_unknown_tables_and_presets_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="Unknown table 'table5'.*figure2, study"):
        cells.expand("table5", "paper", [0])
    with pytest.raises(ValueError, match="Unknown preset 'quick'.*paper, reduced"):
        cells.expand("table1", "quick", [0])
