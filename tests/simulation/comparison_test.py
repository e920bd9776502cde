"""Schemes side by side: what runs share, what the table says, what is not redone."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json

import numpy as np
import pytest

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.simulation import comparison, datasets
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.experiment import DivergenceError, build_config_scheme
from tff_fedmpq.simulation.models import build_model_fn
from tff_fedmpq.simulation.data.partitions import Partition

SMALL = {
    "dataset": "digits",
    "model": "resnet8",
    "train_examples": 80,
    "num_clients": 3,
    "budgets": (2, 4, 8),
    "clients_per_round": 2,
    "rounds": 1,
    "local_epochs": 1,
    "batch_size": 16,
    "augment": False,
}


def make_run(scheme, accuracies, seed=0):
    """A result of a run as `run_experiment` returns it, as far as tables go."""
    return {
        "scheme": scheme,
        "precision": "v/v/4",
        "model_weights": 1_000,
        "seed": seed,
        "rounds": [
            {
                "test_accuracy": accuracy,
                "uplink_bits": 8_000 * (number + 1 + seed),
                "downlink_bits": 16_000,
                "seconds": 10.0 + seed,
                "clients": [{}, {}, {}],
            }
            for number, accuracy in enumerate(accuracies)
        ],
    }


# --- the table --------------------------------------------------------------


def test_a_row_is_of_all_seeds():
    runs = [make_run("aqfl", [0.1, 0.5]), make_run("aqfl", [0.2, 0.7], seed=1)]
    row = comparison.summarise(runs)
    assert (row.scheme, row.precision, row.seeds) == ("aqfl", "v/v/4", 2)
    assert row.accuracy == pytest.approx(60)
    assert row.accuracy_std == pytest.approx(20 / np.sqrt(2))
    # Bytes of the seeds: 1000 + 2000 and 2000 + 3000 up, 2000 + 2000 down.
    assert row.uplink_megabytes == pytest.approx(0.004)
    assert row.uplink_megabytes_per_round == pytest.approx(0.002)
    assert row.downlink_megabytes == pytest.approx(0.004)
    assert row.downlink_megabytes_per_round == pytest.approx(0.002)
    # Two rounds of three clients, a thousand weights of four bytes.
    assert row.compression == pytest.approx(24_000 / 4_000)
    assert row.seconds == pytest.approx((20 + 22) / 2)


def test_one_seed_has_no_deviation():
    row = comparison.summarise([make_run("aqfl", [0.25])])
    assert (row.seeds, row.accuracy, row.accuracy_std) == (1, 25, 0)


@pytest.fixture
def rows():
    return [
        comparison.summarise([make_run("fedavg", [0.5])]),
        comparison.summarise([make_run("fedmpq", [0.25], s) for s in range(3)]),
    ]


def test_the_table_has_a_line_per_scheme(rows):
    lines = comparison.format_table(rows).splitlines()
    assert "accuracy" in lines[0] and "ratio" in lines[0]
    assert lines[2].startswith("fedavg") and "50.00" in lines[2]
    assert "+-" not in lines[2]  # Of one seed nothing is known.
    assert lines[3].startswith("fedmpq") and "25.00 +- 0.00" in lines[3]
    assert len({len(line) for line in lines[:4]}) == 1


def test_the_table_is_aligned_for_long_names_too(rows):
    long = dataclasses.replace(rows[0], scheme="fedmpq_literal")
    lines = comparison.format_table([long, *rows]).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1


def test_tables_are_written_in_every_form(rows, tmp_path):
    comparison.write_tables(rows, tmp_path)
    text = (tmp_path / "table.txt").read_text()
    assert text == comparison.format_table(rows) + "\n"
    records = json.loads((tmp_path / "table.json").read_text())
    assert [comparison.ComparisonRow(**record) for record in records] == rows
    with open(tmp_path / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["scheme"] for line in lines] == ["fedavg", "fedmpq"]
    assert [float(line["accuracy"]) for line in lines] == [50, 25]


def test_the_figure_is_drawn(tmp_path):
    results = {
        "fedavg": [make_run("fedavg", [0.2, 0.5])],
        "fedmpq": [make_run("fedmpq", [0.1, 0.4], seed) for seed in range(2)],
    }
    comparison.plot_comparison(results, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"


# --- what is refused --------------------------------------------------------


@pytest.mark.parametrize("schemes", [["fedavg", "fedprox"], [], ["FedMPQ"]])
def test_unknown_schemes_are_refused_with_those_that_exist(schemes):
    with pytest.raises(ValueError, match="Unknown schemes") as error:
        comparison.check_schemes(schemes)
    assert all(name in str(error.value) for name in SCHEMES)


def test_a_scheme_stands_once():
    comparison.check_schemes(list(SCHEMES))
    with pytest.raises(ValueError, match="twice"):
        comparison.check_schemes(["aqfl", "fedavg", "aqfl"])


@pytest.mark.parametrize(
    ("schemes", "options", "words"),
    [
        (["fedavg", "fedprox"], {}, "fedprox"),
        (["fedavg", "uveqfed"], {"uveqfed": {"lasso": 0.1}}, "lasso"),
        (["fedavg", "fedpaq"], {"fedpaq": {"norm": "l1"}}, "Unknown norm"),
    ],
)
def test_nothing_is_run_before_everything_is_checked(
    tmp_path, monkeypatch, schemes, options, words
):
    def run(*args, **kwargs):
        raise AssertionError("a run was started")

    monkeypatch.setattr(comparison, "run_experiment", run)
    with pytest.raises(ValueError, match=words):
        comparison.run_comparison(
            functools.partial(ExperimentConfig, **SMALL),
            schemes,
            [0],
            tmp_path / "output",
            scheme_options=options,
        )
    assert not (tmp_path / "output").exists()


def test_budgets_are_checked_before_anything_is_run(tmp_path, monkeypatch):
    started = []

    def run(config, *args, **kwargs):
        started.append(config.scheme)
        raise ValueError("as build_process says of budgets below 2")

    monkeypatch.setattr(comparison, "run_experiment", run)
    config = functools.partial(ExperimentConfig, **{**SMALL, "budgets": (1, 4, 8)})
    with pytest.raises(ValueError):
        comparison.run_comparison(config, ["fedavg", "fedpaq"], [0], tmp_path / "x")
    assert not started


# --- runs -------------------------------------------------------------------


def test_every_run_gets_its_scheme_seed_and_options(tmp_path, monkeypatch):
    runs = []

    def run(config, output_dir, *, data_dir, resume):
        runs.append((config, output_dir))
        assert resume and data_dir == tmp_path
        output_dir.mkdir(parents=True)
        return make_run(config.scheme, [0.5], config.seed)

    monkeypatch.setattr(comparison, "run_experiment", run)
    rows = comparison.run_comparison(
        functools.partial(ExperimentConfig, **SMALL),
        ["fedpaq", "aqfl"],
        [3, 7],
        tmp_path,
        scheme_options={"fedpaq": {"norm": "l2"}},
        data_dir=tmp_path,
    )
    found = {(c.scheme, c.seed): (c.scheme_options.get("norm"), p) for c, p in runs}
    assert found == {
        (scheme, seed): (norm, tmp_path / scheme / f"seed{seed}")
        for seed in (3, 7)
        for scheme, norm in (("fedpaq", "l2"), ("aqfl", None))
    }
    # What is a scheme's own is not taken from another.
    assert {(c.scheme, c.learning_rate_decay) for c, _ in runs} == {
        *(("fedpaq", "none"), ("aqfl", "cosine"))
    }
    assert {c.compute for c, _ in runs if c.scheme == "fedpaq"} == {"float32"}
    settings = [c.as_dict() for c, _ in runs]
    for own in ("scheme", "seed", "scheme_options", "learning_rate_decay", "compute"):
        for setting in settings:
            del setting[own]
    assert all(setting == settings[0] for setting in settings)
    assert [(row.scheme, row.seeds) for row in rows] == [("fedpaq", 2), ("aqfl", 2)]


def test_what_diverges_is_left_out_of_the_table(tmp_path, monkeypatch):
    def run(config, output_dir, *, data_dir, resume):
        if config.scheme in diverging:
            raise DivergenceError("Its loss is nan.")
        return make_run(config.scheme, [0.5], config.seed)

    monkeypatch.setattr(comparison, "run_experiment", run)
    diverging, lines = {"fedpaq"}, []
    compare = functools.partial(
        comparison.run_comparison,
        functools.partial(ExperimentConfig, **SMALL),
        ["fedpaq", "aqfl"],
        [0, 1],
        tmp_path,
        announce=lines.append,
    )
    assert [(row.scheme, row.seeds) for row in compare()] == [("aqfl", 2)]
    assert sum("fedpaq, seed" in line and "nan" in line for line in lines) == 2
    diverging.add("aqfl")
    with pytest.raises(DivergenceError, match="All runs diverged"):
        compare()


def test_runs_of_several_data_sets_are_refused_before_any_is_run(tmp_path, monkeypatch):
    """As where CIFAR-10 was found the first time, and is gone."""
    directory = tmp_path / "fedavg" / "seed0"
    directory.mkdir(parents=True)
    partition = Partition((np.arange(3),), alpha=0.5, seed=0, dataset="cifar10")
    partition.save(directory / "partition.json")

    def run(*args, **kwargs):
        raise AssertionError("something was run")

    monkeypatch.setattr(comparison, "run_experiment", run)
    make_config = functools.partial(ExperimentConfig, **SMALL)
    with pytest.raises(ValueError, match="on cifar10, and the others .* on digits"):
        comparison.run_comparison(make_config, ["aqfl", "fedavg"], [0], tmp_path)


def test_a_run_of_other_settings_is_found_before_any_is_run(tmp_path, monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("something was run")

    monkeypatch.setattr(comparison, "run_experiment", run)
    directory = tmp_path / "fedavg" / "seed0"
    directory.mkdir(parents=True)
    begun = ExperimentConfig(**{**SMALL, "rounds": 9}, scheme="fedavg")
    (directory / "config.json").write_text(json.dumps(begun.as_dict()))
    make_config = functools.partial(ExperimentConfig, **SMALL)
    with pytest.raises(ValueError, match="rounds: 9 there, 1 asked for"):
        comparison.run_comparison(make_config, ["aqfl", "fedavg"], [0], tmp_path)


def test_initial_weights_are_the_same_for_every_scheme():
    """And others for another seed."""
    dataset = datasets.load("digits", None)
    schemes = ("fedavg", "fpq8", "fedmpq")
    configs = [ExperimentConfig(**SMALL, scheme=scheme, seed=4) for scheme in schemes]
    models = [
        build_config_scheme(config).build_global_model(
            build_model_fn(config.model, dataset, config.seed)
        )
        for config in configs
    ]
    first = models[0].get_weights()
    for model in models[1:]:
        weights = model.get_weights()
        assert len(weights) == len(first)
        for a, b in zip(weights, first):
            np.testing.assert_array_equal(a, b)
    other = build_model_fn("resnet8", dataset, 5)().get_weights()
    assert any(np.any(a != b) for a, b in zip(other, first))


@pytest.mark.slow
def test_two_schemes_from_one_command(tmp_path, monkeypatch):
    """Real runs: what they share, the table, and that nothing is done twice."""
    make_config = functools.partial(ExperimentConfig, **SMALL)
    schemes = ["fedavg", "aqfl"]
    rows = comparison.run_comparison(make_config, schemes, [0], tmp_path)
    results = {
        scheme: json.loads((tmp_path / scheme / "seed0/result.json").read_text())
        for scheme in schemes
    }
    partitions = [
        (tmp_path / scheme / "seed0/partition.json").read_bytes() for scheme in schemes
    ]
    assert partitions[0] == partitions[1]
    records = [results[scheme]["rounds"][0] for scheme in schemes]
    assert records[0]["participants"] == records[1]["participants"]
    assert [result["model_weights"] for result in results.values()] == 2 * [
        results["fedavg"]["model_weights"]
    ]
    assert [row.precision for row in rows] == ["32/32/32", "v/v/4"]
    assert rows[0].compression == pytest.approx(1, rel=1e-3)
    assert rows[1].compression > 3
    for name in ("table.txt", "table.csv", "table.json", "comparison.png"):
        assert (tmp_path / name).stat().st_size > 0

    def build(*args, **kwargs):
        raise AssertionError("a finished run was redone")

    monkeypatch.setattr("tff_fedmpq.simulation.experiment.build_process", build)
    written = (tmp_path / "aqfl/seed0/result.json").stat().st_mtime_ns
    assert comparison.run_comparison(make_config, schemes, [0], tmp_path) == rows
    assert (tmp_path / "aqfl/seed0/result.json").stat().st_mtime_ns == written
