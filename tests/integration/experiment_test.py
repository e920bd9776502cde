"""Whole runs on real data, small: what they write, refuse, and repeat."""

import dataclasses
import json

import numpy as np
import pytest

from tff_fedmpq.simulation import evaluation, experiment, provenance
from tff_fedmpq.simulation.config import ExperimentConfig, config_from_preset
from tff_fedmpq.simulation.experiment import (
    DivergenceError,
    OutputDirectoryError,
    RoundError,
    run_experiment,
    sample_participants,
)

_TIMES = ("seconds", "seconds_training")

SMALL = {
    "dataset": "digits",
    "model": "resnet8",
    "train_examples": 300,
    "alpha": 0.5,
    "num_clients": 4,
    "budgets": (2, 4, 6.5, 8),
    "clients_per_round": 2,
    "rounds": 2,
    "local_epochs": 1,
    "batch_size": 32,
}


def without_times(result: dict) -> dict:
    """Returns a result without what may differ between two equal runs."""
    rounds = [
        {key: value for key, value in record.items() if key not in _TIMES}
        for record in result["rounds"]
    ]
    return {**result, "rounds": rounds}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run") / "output"
    return output_dir, run_experiment(ExperimentConfig(**SMALL), output_dir)


def test_result_file_says_everything(finished_run):
    output_dir, result = finished_run
    assert json.loads((output_dir / "result.json").read_text()) == result
    assert result["scheme"] == "fedmpq"
    assert result["dataset"] == "digits" and "embedded" in result["dataset_source"]
    assert result["protocol"]["budgets"] == [2, 4, 6.5, 8]
    assert {"tensorflow", "tensorflow_federated", "python"} <= set(result["versions"])
    assert [record["round"] for record in result["rounds"]] == [1, 2]
    for record in result["rounds"]:
        assert 0 <= record["test_accuracy"] <= 1
        assert record["train_loss"] > 0 and record["test_loss"] > 0
        assert len(record["participants"]) == 2
        assert 1 <= record["mean_bit_width"] <= 8
        assert record["seconds"] >= record["seconds_training"] > 0
        assert record["commit"] == provenance.find_commit()
    assert set(result["recalibrated"]) == {"accuracy", "loss"}
    assert set(result["tier_accuracy"]) == {"2", "4", "6.5", "8"}
    for name in ("curves.png", "metrics.csv", "partition.json", "config.json"):
        assert (output_dir / name).stat().st_size > 0
    assert not (output_dir / "clients").exists()  # A copy of the data set.


def test_bits_of_a_round_are_those_of_its_clients(finished_run):
    _, result = finished_run
    sizes = result["layers"]["sizes"]
    for record in result["rounds"]:
        for direction in ("uplink_bits", "downlink_bits"):
            per_client = [sum(c[direction].values()) for c in record["clients"]]
            assert record[direction] == sum(per_client)
        for client in record["clients"]:
            budget = result["protocol"]["budgets"][int(client["client"])]
            codes = client["downlink_bits"]["codes"]
            # A layer has at least 1 bit, and may fill up to 7 bits of its last byte.
            assert sum(sizes) <= codes <= budget * sum(sizes) + 7 * len(sizes)


def test_the_same_seed_gives_the_same_result(finished_run, tmp_path):
    _, result = finished_run
    again = run_experiment(ExperimentConfig(**SMALL), tmp_path / "again")
    assert without_times(again) == without_times(result)


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    """Its settings are the same: `auto` found other images the second time."""
    config = ExperimentConfig(**{**SMALL, "rounds": 1})
    output_dir = tmp_path / "run"

    def fail(*args, **kwargs):
        raise ValueError("no more memory")

    monkeypatch.setattr(experiment, "build_process", fail)
    with pytest.raises(ValueError, match="no more memory"):
        run_experiment(config, output_dir)
    load = experiment.load_dataset

    def load_others(*args):
        dataset = load(*args)
        return dataclasses.replace(dataset, train_labels=dataset.train_labels[::-1])

    monkeypatch.setattr(experiment, "load_dataset", load_others)
    before = (output_dir / "partition.json").read_bytes()
    with pytest.raises(OutputDirectoryError, match="another partition"):
        run_experiment(config, output_dir, resume=True)
    assert (output_dir / "partition.json").read_bytes() == before


def test_an_error_in_a_round_is_not_taken_for_a_users(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(evaluation, "assign_global_weights", fail)
    with pytest.raises(RoundError, match="Round 1 failed") as error:
        run_experiment(ExperimentConfig(**SMALL), tmp_path / "run")
    assert "shapes" in str(error.value.__cause__)


@pytest.mark.parametrize(
    "settings",
    [
        {"float_learning_rate": 1e30},
        # By its only step, before which the clients' loss is taken.
        {
            "scheme": "fedavg",
            "float_learning_rate": 1e38,
            "rounds": 1,
            "batch_size": 300,
        },
    ],
)
def test_a_run_that_diverges_says_so_and_leaves_no_result(tmp_path, settings):
    config = ExperimentConfig(**{**SMALL, **settings})
    with pytest.raises(DivergenceError, match="diverged in round .*float_learning_"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_finished_run_is_not_redone(finished_run):
    output_dir, result = finished_run
    before = (output_dir / "result.json").stat().st_mtime_ns
    again = run_experiment(ExperimentConfig(**SMALL), output_dir, resume=True)
    assert again == result
    assert (output_dir / "result.json").stat().st_mtime_ns == before


def test_an_output_directory_serves_one_run(finished_run, tmp_path):
    output_dir, _ = finished_run
    with pytest.raises(OutputDirectoryError, match="--resume"):
        run_experiment(ExperimentConfig(**SMALL), output_dir)
    other = ExperimentConfig(**{**SMALL, "alpha": 0.1})
    with pytest.raises(OutputDirectoryError, match="alpha: 0.5 there, 0.1 asked for"):
        run_experiment(other, output_dir, resume=True)
    (tmp_path / "mine.txt").write_text("not a run")
    with pytest.raises(OutputDirectoryError, match="choose another"):
        run_experiment(ExperimentConfig(**SMALL), tmp_path)


@pytest.mark.parametrize("content", ["", '{"alpha": 0.', "[]"])
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_damaged_files_are_named(finished_run, tmp_path, name, content):
    config = (finished_run[0] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputDirectoryError, match=f"{name} is damaged"):
        run_experiment(ExperimentConfig(**SMALL), tmp_path, resume=True)


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputDirectoryError, match="Cannot make .*file/run"):
        run_experiment(ExperimentConfig(**SMALL), tmp_path / "file" / "run")


def test_a_missing_data_directory_leaves_nothing_behind(tmp_path):
    config = ExperimentConfig(**{**SMALL, "dataset": "cifar10"})
    with pytest.raises(ValueError, match="nowhere"):
        run_experiment(
            config, tmp_path / "output", data_dir=tmp_path / "nowhere", resume=False
        )
    assert not (tmp_path / "output").exists()


def test_clients_without_examples_take_part(tmp_path):
    config = ExperimentConfig(
        **{**SMALL, "alpha": 0.001, "num_clients": 12, "clients_per_round": 12,
           "budgets": (), "rounds": 1}
    )  # fmt: skip
    result = run_experiment(config, tmp_path / "output")
    assert 0 in result["client_examples"]
    assert len(result["rounds"][0]["clients"]) == 12


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("budgets", (2, 4, 6, 9), "1 to 8 bits"),
        ("budgets", (2, 4, 6, float("nan")), "1 to 8 bits"),
        ("budgets", ("2", "4", "six", "8"), "have to be numbers"),
        ("budgets", (2, 4, 6), "one number per client, 4"),
        ("alpha", 0.0, "alpha has to be above 0"),
        ("alpha", float("nan"), "alpha has to be above 0"),
        ("clients_per_round", 5, "at most the number of clients, 4"),
        ("rounds", 0, "rounds has to be a whole number of at least 1"),
        ("local_epochs", 2.5, "local_epochs has to be a whole number"),
        ("train_examples", 0, "train_examples has to be a whole number"),
        ("augment", "no", "augment has to be true or false"),
        ("model", "vgg", "model has to be one of"),
        ("compute", "float8", "compute has to be one of"),
        ("seed", -1, "seed has to be 0 or more"),
        ("scheme_options", {"learning_rate": 0.3}, "without settings.*learning_rate"),
        ("scheme_options", {"epochs": 3}, "without settings of a run.*epochs"),
    ],
)
def test_bad_settings_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=message) as error:
        ExperimentConfig(**{**SMALL, setting: value})
    assert "\n" not in str(error.value)


def test_budgets_are_any_sequence_of_numbers():
    budgets = np.array(SMALL["budgets"])
    of_array = ExperimentConfig(**{**SMALL, "budgets": budgets})
    assert of_array == ExperimentConfig(**SMALL)


def test_presets_take_overrides():
    config = config_from_preset("quick", alpha=0.1, rounds=None)
    assert config.alpha == 0.1
    assert config.rounds == config_from_preset("quick").rounds
    with pytest.raises(ValueError, match="preset has to be one of"):
        config_from_preset("quickest")


def test_paper_preset_is_the_papers_protocol():
    config = config_from_preset("paper")
    assert config.budgets == (2, 2, 4, 4, 4, 6, 6, 6, 8, 8)
    assert (config.rounds, config.local_epochs, config.batch_size) == (50, 5, 64)
    assert (config.num_clients, config.clients_per_round) == (10, 5)
    assert (config.momentum, config.weight_decay) == (0.9, 5e-4)


def test_participants_are_a_function_of_seed_and_round():
    config = ExperimentConfig(**SMALL)
    draws = [tuple(sample_participants(config, r)) for r in range(1, 30)]
    assert draws == [tuple(sample_participants(config, r)) for r in range(1, 30)]
    assert len(set(draws)) > 1
    assert all(len(set(draw)) == 2 for draw in draws)
    assert {client for draw in draws for client in draw} == {"0", "1", "2", "3"}
