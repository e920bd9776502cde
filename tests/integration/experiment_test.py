"""Whole runs on real data, small: what they write, refuse, and repeat."""

import csv
import dataclasses
import errno
import json
import logging
import os
import shutil

import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

from tff_fedmpq.simulation import experiment, provenance, run_files
from tff_fedmpq.simulation.config import make_config
from tff_fedmpq.simulation.experiment import (
    DivergenceError,
    RoundError,
    run_experiment,
    sample_participants,
)
from tff_fedmpq.simulation.run_files import OutputDirectoryError

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
    "epochs": 1,
    "batch_size": 32,
}


def small_config(scheme="fedmpq", **settings):
    return make_config("paper", scheme, **{**SMALL, **settings})


@pytest.fixture(scope="module", autouse=True)
def two_layers():
    """Replaces the network by one of two layers, which is built in less time.

    `example_test.py` and `comparison_test.py` run the real ones.
    """

    def build_model_fn(name, dataset, seed):
        def model_fn():
            set_random_seed(seed)
            layers = tf.keras.layers
            return tf.keras.Sequential(
                [
                    tf.keras.Input(dataset.image_shape),
                    layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv"),
                    layers.BatchNormalization(),
                    layers.ReLU(),
                    layers.Flatten(),
                    layers.Dense(dataset.num_classes, name="classifier"),
                ]
            )

        return model_fn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build_model_fn", build_model_fn)
        yield


def without_times(result: dict) -> dict:
    """Returns a result without what may differ between two equal runs."""
    rounds = [
        {key: value for key, value in record.items() if key not in _TIMES}
        for record in result["rounds"]
    ]
    return {**result, "rounds": rounds}


def without_devices(result: dict) -> dict:
    """Returns a result without times and without its rounds' devices."""
    result = without_times(result)
    for record in result["rounds"]:
        del record["devices"]
    return result


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run") / "output"
    return output_dir, run_experiment(small_config(), output_dir)


def test_result_file_says_everything(finished_run):
    output_dir, result = finished_run
    written = json.loads((output_dir / "result.json").read_text())
    assert len(written.pop("checksum")) == 64
    assert written == result
    assert result["scheme"] == "fedmpq"
    assert result["dataset"] == "digits" and "embedded" in result["dataset_source"]
    assert result["settings"] == small_config().as_dict()
    assert result["settings"]["budgets"] == [2, 4, 6.5, 8]
    assert (result["model"], result["precision"]) == ("resnet8", "v/v/4")
    assert {"tensorflow", "tensorflow_federated", "python"} <= set(result["versions"])
    assert [record["round"] for record in result["rounds"]] == [1, 2]
    for record in result["rounds"]:
        assert 0 <= record["test_accuracy"] <= 1
        assert record["train_loss"] > 0 and record["test_loss"] > 0
        assert len(record["participants"]) == 2
        assert 1 <= record["mean_bit_width"] <= 8
        assert record["seconds"] >= record["seconds_training"] > 0
        assert record["commit"] == provenance.find_commit()
    assert set(result["devices"]) == {"2", "4", "6.5", "8"}
    for name in ("curves.png", "metrics.csv", "partition.json", "config.json"):
        assert (output_dir / name).stat().st_size > 0
    assert not (output_dir / "clients").exists()  # A copy of the data set.


def test_metrics_are_those_of_the_result(finished_run):
    output_dir, result = finished_run
    with open(output_dir / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(result["rounds"])
    for line, record in zip(lines, result["rounds"]):
        for name in ("round", "test_accuracy", "train_loss", "uplink_bits"):
            assert float(line[name]) == pytest.approx(record[name])
    assert any((output_dir / "tensorboard").iterdir())


def test_devices_are_those_of_each_budget(finished_run):
    """What they received last is what the records say; what they store is less."""
    _, result = finished_run
    for budget, device in result["devices"].items():
        client = result["settings"]["budgets"].index(float(budget))
        assert device["client"] == str(client)
        assert 0 <= device["accuracy"] <= 1 and device["loss"] > 0
        assert device["mean_bit_width"] <= float(budget)
        assert 0 < device["num_bytes"] < 4 * result["model_weights"]
        received = [
            sum(record["downlink_bits"].values()) // 8
            for round_record in result["rounds"]
            for record in round_record["clients"]
            if record["client"] == device["client"]
        ]
        assert device["bytes_down"] == (received[-1] if received else None)


def test_devices_are_evaluated_after_the_last_rounds(finished_run, tmp_path):
    """By default after the last one only; all else is the same, by the same seed."""
    _, result = finished_run
    found = [sorted(record["devices"]) for record in result["rounds"]]
    assert found == [[], ["2", "4", "6.5", "8"]]
    both = run_experiment(small_config(device_rounds=2), tmp_path / "both")
    first, last = (record["devices"] for record in both["rounds"])
    assert first.keys() == last.keys() and first != last
    assert last == result["rounds"][-1]["devices"]
    for budget, device in result["devices"].items():
        assert {**last[budget], "bytes_down": device["bytes_down"]} == device
    assert both["settings"].pop("device_rounds") == 2
    expected = {**result, "settings": dict(result["settings"])}
    assert expected["settings"].pop("device_rounds") == 1
    assert without_devices(both) == without_devices(expected)


def test_bits_of_a_round_are_those_of_its_clients(finished_run):
    _, result = finished_run
    sizes = result["layers"]["sizes"]
    for record in result["rounds"]:
        for direction in ("uplink_bits", "downlink_bits"):
            per_client = [sum(c[direction].values()) for c in record["clients"]]
            assert record[direction] == sum(per_client)
        for client in record["clients"]:
            budget = result["settings"]["budgets"][int(client["client"])]
            codes = client["downlink_bits"]["codes"]
            # A layer has at least 1 bit, and may fill up to 7 bits of its last byte.
            assert sum(sizes) <= codes <= budget * sum(sizes) + 7 * len(sizes)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("part", "change"),
    [("train_labels", lambda labels: labels[::-1]), ("test_images", lambda x: 255 - x)],
)
def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch, part, change):
    """Its settings are the same: `auto` found other images the second time."""
    config = small_config(rounds=1)
    output_dir = tmp_path / "run"

    def fail(*args, **kwargs):
        raise ValueError("no more memory")

    monkeypatch.setattr(experiment, "build_process", fail)
    with pytest.raises(ValueError, match="no more memory"):
        run_experiment(config, output_dir)
    load = experiment.load_dataset

    def load_others(*args):
        dataset = load(*args)
        return dataclasses.replace(dataset, **{part: change(getattr(dataset, part))})

    monkeypatch.setattr(experiment, "load_dataset", load_others)
    before = (output_dir / "partition.json").read_bytes()
    with pytest.raises(OutputDirectoryError, match="data.json is of other data"):
        run_experiment(config, output_dir, resume=True)
    assert (output_dir / "partition.json").read_bytes() == before


def test_an_error_in_a_round_is_not_taken_for_a_users(tmp_path, monkeypatch):
    def fail(*args):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(experiment, "assign_global_weights", fail)
    with pytest.raises(RoundError, match="Round 1 failed") as error:
        run_experiment(small_config(), tmp_path / "run")
    assert "shapes" in str(error.value.__cause__)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        pytest.param("fedmpq", {"float_learning_rate": 1e30}, marks=pytest.mark.slow),
        # By its only step, before which the clients' loss is taken.
        ("fedavg", {"learning_rate": 1e38, "rounds": 1, "batch_size": 300}),
    ],
)
def test_a_run_that_diverges_says_so_and_leaves_no_result(tmp_path, scheme, settings):
    config = small_config(scheme, **settings)
    with pytest.raises(DivergenceError, match="diverged in round .*learning_rate"):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_finished_run_is_not_redone(finished_run):
    output_dir, result = finished_run
    before = (output_dir / "result.json").stat().st_mtime_ns
    again = run_experiment(small_config(), output_dir, resume=True)
    assert again == result
    assert (output_dir / "result.json").stat().st_mtime_ns == before


def test_an_output_directory_serves_one_run(finished_run, tmp_path):
    output_dir, _ = finished_run
    with pytest.raises(OutputDirectoryError, match="--resume"):
        run_experiment(small_config(), output_dir)
    other = small_config(alpha=0.1)
    with pytest.raises(OutputDirectoryError, match="alpha: 0.5 there, 0.1 requested"):
        run_experiment(other, output_dir, resume=True)
    (tmp_path / "mine.txt").write_text("not a run")
    with pytest.raises(OutputDirectoryError, match="choose another"):
        run_experiment(small_config(), tmp_path)


@pytest.mark.faults
def test_two_processes_do_not_share_an_output_directory(finished_run, tmp_path):
    """The second one, with or without resume, changes nothing."""
    config = (finished_run[0] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with run_files.lock_directory(tmp_path):
        with pytest.raises(OutputDirectoryError, match="in use by another process"):
            run_experiment(small_config(), tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with run_files.lock_directory(tmp_path):
        pass  # The lock ends with its block.


@pytest.mark.faults
@pytest.mark.parametrize("content", ["", '{"alpha": 0.', "[]"])
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_damaged_files_are_named(finished_run, tmp_path, name, content):
    config = (finished_run[0] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    (tmp_path / name).write_text(content)
    with pytest.raises(OutputDirectoryError, match=f"{name} is damaged"):
        run_experiment(small_config(), tmp_path, resume=True)


@pytest.mark.faults
@pytest.mark.parametrize("change", ["accuracy", "empty"])
def test_a_changed_result_is_not_believed(finished_run, tmp_path, change):
    output_dir, result = finished_run
    assert run_experiment(small_config(), output_dir, resume=True) == result
    shutil.copy(output_dir / "config.json", tmp_path)
    content = json.loads((output_dir / "result.json").read_text())
    content["rounds"][-1]["test_accuracy"] = 1.0
    content = content if change == "accuracy" else {}
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(OutputDirectoryError, match="checksum does not fit"):
        run_experiment(small_config(), tmp_path, resume=True)


@pytest.mark.faults
def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputDirectoryError, match="Cannot make .*file/run"):
        run_experiment(small_config(), tmp_path / "file" / "run")


def test_a_missing_data_directory_leaves_nothing_behind(tmp_path):
    config = small_config(dataset="cifar10")
    with pytest.raises(ValueError, match="nowhere"):
        run_experiment(
            config, tmp_path / "output", data_dir=tmp_path / "nowhere", resume=False
        )
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_clients_without_examples_take_part(tmp_path):
    config = small_config(
        alpha=0.001, num_clients=12, clients_per_round=12, budgets=(), rounds=1
    )
    result = run_experiment(config, tmp_path / "output")
    assert 0 in result["client_examples"]
    assert len(result["rounds"][0]["clients"]) == 12


@pytest.mark.faults
def test_a_run_goes_on_after_the_disk_was_full(
    finished_run, tmp_path, monkeypatch, caplog
):
    """One line; then the same result, which says that the code was another."""

    def save(self, round_number, state, record):
        if round_number == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saves(self, round_number, state, record)

    saves = experiment.Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(experiment.Checkpoints, "save", save)
        patch.setattr(experiment, "_find_commit_once", lambda: "0ther")
        with pytest.raises(OutputDirectoryError, match="Cannot write to .*run: No sp"):
            run_experiment(small_config(), tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        result = run_experiment(small_config(), tmp_path / "run", resume=True)
    assert "Rounds to 1 were run by" in caplog.text
    first, second = result["rounds"]
    assert (first["commit"], second["commit"]) == ("0ther", provenance.find_commit())
    first["commit"] = second["commit"]
    assert without_times(result) == without_times(finished_run[1])


@pytest.mark.faults
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_directory_that_cannot_be_written_to_is_one_line(
    tmp_path, monkeypatch, number
):
    def fail(*_):
        raise OSError(number, os.strerror(number), "somewhere/.config.json.tmp")

    monkeypatch.setattr(run_files, "write_atomically", fail)
    with pytest.raises(OutputDirectoryError, match=os.strerror(number)) as error:
        run_experiment(small_config(), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["progress.log", "curves.png", "worker.log", "rounds"])
def test_nothing_is_written_through_symbolic_links(finished_run, tmp_path, name):
    target, output_dir = tmp_path / "target", tmp_path / "run"
    target.write_text("another file")
    output_dir.mkdir()
    shutil.copy(finished_run[0] / "config.json", output_dir)
    (output_dir / name).symlink_to(target)
    with pytest.raises(OutputDirectoryError, match=f"symbolic links, .'{name}'"):
        run_experiment(small_config(), output_dir, resume=True)
    assert target.read_text() == "another file"


def test_participants_are_a_function_of_seed_and_round():
    config = small_config()
    draws = [tuple(sample_participants(config, r)) for r in range(1, 30)]
    assert draws == [tuple(sample_participants(config, r)) for r in range(1, 30)]
    assert len(set(draws)) > 1
    assert all(len(set(draw)) == 2 for draw in draws)
    assert {client for draw in draws for client in draw} == {"0", "1", "2", "3"}
