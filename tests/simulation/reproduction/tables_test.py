"""The paper's tables as grids: their numbers, protocols and sizes."""

from __future__ import annotations

import collections

import pytest

from tff_fedmpq.federated.schemes import SCHEMES
from tff_fedmpq.simulation.reproduction import cells, paper, tables

NUMBER_OF_SLOTS = {
    "table1": 6 * 3 * 3,
    "table2": 6 * 2 * 3,
    "table3": 3 * 5,
    "table4": 6 * 2,
    "figure2": 4 * 5,
}
TIERS = {2: 0.2, 4: 0.3, 6: 0.3, 8: 0.2}


def slots_of(table):
    return [s for grid in cells.TABLES[table]() for s in grid.slots.values()]


def configs_of(table):
    """Group -> configuration, at the paper's protocol."""
    return {
        slot.group: cells.build_config(slot, "paper", seed=0, compute="float32")
        for slot in slots_of(table)
    }


@pytest.mark.parametrize("table", NUMBER_OF_SLOTS)
def test_a_table_has_all_its_places(table):
    groups = [slot.group for slot in slots_of(table)]
    assert len(groups) == len(set(groups)) == NUMBER_OF_SLOTS[table]
    assert all(group.startswith(f"{table}/") for group in groups)
    for grid in cells.TABLES[table]():
        assert len(grid.slots) == len(grid.rows) * len(grid.columns)


@pytest.mark.parametrize("table", NUMBER_OF_SLOTS)
def test_what_the_papers_runs_have_in_common(table):
    """Section 5 of the paper: what no table varies."""
    for config in configs_of(table).values():
        assert (config.rounds, config.batch_size) == (50, 64)
        assert (config.float_learning_rate, config.momentum) == (0.1, 0.9)
        assert config.weight_decay == 5e-4
        assert config.train_examples is None
        assert config.clients_per_round * 2 == config.num_clients
        counts = collections.Counter(config.budgets)
        assert counts == {b: round(s * config.num_clients) for b, s in TIERS.items()}
        is_tiny = config.dataset == "tiny_imagenet"
        assert config.model == ("resnet44" if is_tiny else "resnet20")
        assert table == "figure2" or config.local_epochs == 5
        assert table == "table1" or config.alpha == 0.5
        assert table == "table2" or config.num_clients == 10


def test_table_1_is_every_scheme_data_set_and_alpha():
    configs = configs_of("table1")
    found = {(c.dataset, c.alpha, c.scheme) for c in configs.values()}
    datasets = ("cifar10", "cifar100", "tiny_imagenet")
    assert found == {
        (d, a, s) for d in datasets for a in (0.1, 0.5, 1.0) for s in SCHEMES
    }
    assert configs["table1/cifar100/alpha0.5/aqfl"].dataset == "cifar100"


@pytest.mark.parametrize("clients", [10, 20, 40])
def test_table_2_varies_the_number_of_clients(clients):
    config = configs_of("table2")[f"table2/cifar10/clients{clients}/aqfl"]
    assert (config.num_clients, config.clients_per_round) == (clients, clients // 2)


def test_table_3_varies_lambda_and_epsilon():
    for group, config in configs_of("table3").items():
        options = config.scheme_options
        assert config.scheme == "fedmpq"
        assert group == (
            f"table3/cifar10/lambda{options['lasso']:g}"
            f"/epsilon{options['pruning_threshold']:g}"
        )


def test_table_4_leaves_parts_out():
    parts = ("lasso", "pruning_threshold", "allocation")
    found = {
        group.split("/")[2]: tuple(config.scheme_options[part] for part in parts)
        for group, config in configs_of("table4").items()
        if config.dataset == "cifar10"
    }
    assert found == {
        "aqfl": (0.0, None, "keep"),
        "lasso": (0.01, None, "keep"),
        "msb": (0.0, 0.03, "keep"),
        "msb+lasso": (0.01, 0.03, "keep"),
        "msb+alg2": (0.0, 0.03, "rate_distortion"),
        "all": (0.01, 0.03, "rate_distortion"),
    }


def test_figure_2_varies_local_epochs():
    found = {(c.local_epochs, c.scheme) for c in configs_of("figure2").values()}
    schemes = ("fedavg", "fpq8", "aqfl", "fedmpq")
    assert found == {(e, s) for e in (1, 5, 10, 15, 20) for s in schemes}


@pytest.mark.parametrize(
    ("group", "number"),
    [
        ("table1/cifar10/alpha0.1/fedavg", 60.3),
        ("table1/cifar10/alpha0.5/fedmpq", 67.1),
        ("table1/tiny_imagenet/alpha1/aqfl", 25.3),
        ("table2/cifar100/clients40/uveqfed", 34.1),
        ("table3/cifar10/lambda0.001/epsilon0.02", 70.0),
        ("table4/cifar100/msb+alg2", 40.1),
        ("figure2/epochs5/fpq8", 68.4),
        ("figure2/epochs20/fpq8", None),
    ],
)
def test_the_papers_numbers_stand_in_their_places(group, number):
    slots = {slot.group: slot for table in NUMBER_OF_SLOTS for slot in slots_of(table)}
    assert slots[group].paper == number


def test_the_papers_tables_agree_where_they_overlap():
    """The same run stands in several of them."""
    for dataset, by_scheme in paper.TABLE_2.items():
        for scheme, numbers in by_scheme.items():
            assert numbers[0] == paper.TABLE_1[dataset][scheme][1]
        for row, scheme in (("aqfl", "aqfl"), ("all", "fedmpq")):
            assert paper.TABLE_4[dataset][row] == by_scheme[scheme][0]
    assert paper.TABLE_3[0.01][2] == paper.TABLE_1["cifar10"]["fedmpq"][1]
    assert list(tables.ABLATION) == list(paper.TABLE_4["cifar10"])
