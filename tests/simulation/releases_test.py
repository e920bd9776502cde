"""The numbers of a run's rounds for other tools, also after an interruption."""

from __future__ import annotations

import asyncio
import csv
import glob
import json
import sys

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.simulation import releases

LAYERS = ["conv/kernel", "dense/kernel"]


def record(number):
    bits = {"codes": 8 * number, "scales": 16}
    return {
        "round": number,
        **{name: number / 8 for name in releases._RELEASED},
        "next_bit_widths": [[1, 8], [2, 8], [2, 7 + number % 2]],
        "devices": {"2": {"accuracy": 0.25}, "6.5": {"accuracy": 0.5}},
        "clients": [
            {"client": "b", "uplink_bits": bits, "downlink_bits": {"codes": 800}}
        ],
    }


def scalars_of(number):
    return {
        **{name: number / 8 for name in releases._RELEASED},
        "device_accuracy/2_bits": 0.25,
        "device_accuracy/6.5_bits": 0.5,
        "bytes_up/b": number + 2,
        "bytes_down/b": 100,
    }


def read(directory):
    with open(directory / "metrics.csv", newline="") as file:
        return [
            {name: float(value) for name, value in line.items()}
            for line in csv.DictReader(file)
        ]


def numbers(number):
    return {"round": number, **{name: number / 8 for name in releases._RELEASED}}


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
    assert read(tmp_path) == [numbers(number) for number in (1, 2, 3)]


def test_pandas_reads_the_table_in_one_line(tmp_path):
    pandas = pytest.importorskip("pandas")
    writer = releases.Releases(tmp_path)
    for number in (1, 2):
        writer.release(number, record(number))
    table = pandas.read_csv(tmp_path / "metrics.csv", index_col="round")
    assert list(table.index) == [1, 2]
    assert {dtype.kind for dtype in table.dtypes} == {"f"}
    np.testing.assert_array_equal(table["test_accuracy"], [1 / 8, 2 / 8])


def test_tensorboard_has_histograms_of_bits_and_bytes_of_clients(tmp_path):
    writer = releases.Releases(tmp_path, layers=LAYERS)
    for number in (1, 2):
        writer.release(number, record(number))
    found = {}
    for path in glob.glob(f"{tmp_path}/tensorboard/*"):
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                found[value.tag, event.step] = tf.make_ndarray(value.tensor)
    for number in (1, 2):
        for name, value in scalars_of(number).items():
            np.testing.assert_allclose(found.pop((name, number)), value)
    assert {name for name, _ in found} == {f"bits/{layer}" for layer in LAYERS}
    # Buckets of (left, right, count): all clients are in them.
    buckets = found["bits/conv/kernel", 1]
    assert buckets[:, 2].sum() == 3
    assert buckets[0, 0] == 1 and buckets[-1, 1] == 2


# --- trackers ---------------------------------------------------------------


def test_mlflow_has_the_scalars_of_an_interrupted_run(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    for number in (1, 2):  # It is made anew, as by --resume.
        settings = {"alpha": 0.5, "budgets": list(range(1000))}
        with releases.Releases(
            tmp_path, layers=LAYERS, track=["mlflow"], settings=settings
        ) as writer:
            writer.release(number, record(number))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'tff_fedmpq'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (tmp_path.name, "FINISHED")
    assert run.data.params["alpha"] == "0.5"
    assert run.data.metrics == scalars_of(2)
    history = client.get_metric_history(run.info.run_id, "bytes_up/b")
    assert [(point.step, point.value) for point in history] == [(1, 3), (2, 4)]


def test_wandb_has_all_of_it_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    logged = []
    log = wandb.sdk.wandb_run.Run.log

    def keep(self, data, step):
        logged.append((step, data))
        log(self, data, step=step)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", keep)
    with releases.Releases(
        tmp_path, layers=LAYERS, track=["wandb"], settings={"alpha": 0.5}
    ) as writer:
        writer.release(1, record(1))
    ((step, data),) = logged
    histograms = {name: data.pop(f"bits/{name}") for name in LAYERS}
    assert (step, data) == (1, scalars_of(1))
    assert sum(histograms["dense/kernel"].histogram) == 3
    wandb.teardown()  # Its service writes the file.
    (file,) = tmp_path.glob("wandb/wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0


class _Recorder:
    """Stands for a module; keeps what is called, and how."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


def test_numbers_of_any_structure_are_released(tmp_path, monkeypatch):
    """Also where the tool is not installed: what is called of Weights & Biases."""
    monkeypatch.setitem(sys.modules, "wandb", _Recorder())
    manager = releases.WandbReleaseManager(tmp_path / "new", "mine")
    value = {"train": {"loss": tf.constant(0.5), "name": "x"}, "n": np.int64(3)}
    asyncio.run(manager.release(value, 7))
    manager.close()
    calls = sys.modules["wandb"].calls
    assert [name for name, _, _ in calls] == ["init", "log", "finish"]
    assert calls[0][2]["mode"] == "offline" and calls[0][2]["name"] == "mine"
    assert calls[1][1:] == (({"train/loss": 0.5, "n": 3.0},), {"step": 7})


def test_a_tracker_that_is_missing_or_unknown_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="pip install mlflow-skinny"):
        releases.check_track(["mlflow"])
    with pytest.raises(ValueError, match="Unknown tracker 'excel'"):
        releases.check_track(["excel"])
    releases.check_track([])


def test_a_record_is_json():
    """The tests' own is of the kind that a run has."""
    assert json.loads(json.dumps(record(1))) == record(1)
