"""Running cells: plans, going on after an interruption, what is left behind."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.datasets import DatasetNotFoundError
from tff_fedmpq.simulation.experiment import DivergenceError, OutputDirectoryError
from tff_fedmpq.simulation.reproduction import document, results, runner
from tff_fedmpq.simulation.reproduction.cells import Cell
from tff_fedmpq.simulation.reproduction.cost import CostEstimator, Speed

NAME = "table1/cifar10/alpha0.5/fedmpq/seed0"


class FixedEstimator:
    """Ten seconds for every round that is left; no Tiny-ImageNet."""

    def seconds(self, config, rounds_done):
        if config.dataset == "tiny_imagenet":
            raise DatasetNotFoundError("nowhere")
        return 10.0 * (config.rounds - rounds_done)


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "runs", tmp_path / "results"


def plan(make, names, folders):
    found = [make.cell(name) for name in names]
    return runner.plan(found, *folders, FixedEstimator())


def save_rounds(directory, config, count):
    """Leaves the trace of a run that was killed while it saved another round."""
    for name in (count - 1, count, f"{count + 1}_temp123"):
        (directory / "checkpoints" / f"round_{name}").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.as_dict()))


def run(planned, folders, **callbacks):
    callbacks = {"announce": lambda _: None, "on_result": lambda: None, **callbacks}
    runner.run_cells(planned, *folders, data_dir="data", **callbacks)


def test_a_plan_says_what_is_to_do_and_how_long_it_takes(make, folders):
    names = [
        "table1/cifar10/alpha0.1/aqfl/seed0",
        "table1/cifar10/alpha1/aqfl/seed0",
        NAME,
        "table2/cifar10/clients10/aqfl/seed0",
        "table1/cifar10/alpha0.5/aqfl/seed0",
        "table1/tiny_imagenet/alpha1/aqfl/seed0",
    ]
    results.write_record(folders[1], make.cell(NAME), make.finished(NAME, [0.5]))
    begun = make.cell(names[1])
    save_rounds(runner.run_dir(folders[0], begun), begun.config, 12)
    planned = plan(make, names, folders)
    assert [entry.state for entry in planned] == [
        "not run",
        "round 12 of 50",
        "finished",
        "not run",
        "the same run as table2/cifar10/clients10/aqfl/seed0",
        "cannot be run",
    ]
    assert [entry.seconds for entry in planned] == [500, 380, 0, 500, 0, 0]
    assert [entry.is_to_run for entry in planned] == [e.seconds > 0 for e in planned]
    lines = runner.format_plan(planned).splitlines()
    assert lines[1].endswith("round 12 of 50, about 6 min")
    assert lines[3].endswith("= table1/cifar10/alpha0.5/aqfl/seed0")
    assert lines[5].endswith("(1)") and lines[6] == "(1) nowhere"
    assert lines[-1] == "3 of 6 cells to run, about 23 min in all."


def test_runs_follow_the_order_and_leave_their_results(make, folders, monkeypatch):
    names = ["table4/cifar10/lasso/seed0", "table2/cifar10/clients10/aqfl/seed0"]
    started, lines, written = [], [], []

    def run_experiment(config, output_dir, *, data_dir, resume):
        assert resume and data_dir == "data"
        started.append((config, output_dir))
        return make.result(config, [0.25, 0.5])

    monkeypatch.setattr(runner, "run_experiment", run_experiment)
    planned = plan(make, names, folders)
    run(planned, folders, announce=lines.append, on_result=lambda: written.append(1))
    owners = ["table4/cifar10/lasso/seed0", "table1/cifar10/alpha0.5/aqfl/seed0"]
    assert started == [
        (make.cell(name).config, folders[0] / "paper" / owner)
        for name, owner in zip(names, owners)
    ]
    assert [name in line for name, line in zip(names, lines)] == [True, True]
    assert "(2 of 2, not run, about 8 min)" in lines[1]
    assert len(written) == 2
    assert list(results.read_records(folders[1], "paper")) == sorted(owners)
    assert not any(entry.is_to_run for entry in plan(make, names, folders))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_run_says_how_far_it_got(make, folders, monkeypatch, error):
    def run_experiment(config, output_dir, **kwargs):
        save_rounds(output_dir, config, 7)
        raise error("enough")

    monkeypatch.setattr(runner, "run_experiment", run_experiment)
    written = []
    with pytest.raises(error):
        run(plan(make, [NAME], folders), folders, on_result=lambda: written.append(1))
    path = folders[1] / "paper" / f"{NAME}.json"
    record = json.loads(path.read_text())
    assert (record["finished"], record["rounds_done"]) == (False, 7)
    assert written
    (entry,) = plan(make, [NAME], folders)
    assert (entry.state, entry.seconds) == ("round 7 of 50", 430)


def test_a_run_that_diverges_is_recorded_and_the_others_run(make, folders, monkeypatch):
    names = [NAME, "table1/cifar10/alpha1/aqfl/seed0"]

    def run_experiment(config, output_dir, **kwargs):
        if config.scheme == "aqfl":
            return make.result(config, [0.5])
        save_rounds(output_dir, config, 7)
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(runner, "run_experiment", run_experiment)
    lines = []
    run(plan(make, names, folders), folders, announce=lines.append)
    assert "the loss is nan" in lines
    planned = plan(make, names, folders)
    states = [entry.state for entry in planned]
    assert states == ["diverged in round 8 of 50", "finished"]
    assert not any(entry.is_to_run for entry in planned)
    records = results.read_records(folders[1], "paper")
    text = document.build_document({"paper": records})
    assert f"| paper: {NAME} | diverged in round 8 of 50 |" in text


def test_a_run_that_diverges_in_its_first_round_is_recorded(make, folders, monkeypatch):
    def run_experiment(config, output_dir, **kwargs):
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(runner, "run_experiment", run_experiment)
    run(plan(make, [NAME], folders), folders)
    (entry,) = plan(make, [NAME], folders)
    assert (entry.state, entry.is_to_run) == ("diverged in round 1 of 50", False)


def former_defaults(make):
    """The cell as it was when a default was another one, and its result."""
    cell = make.cell(NAME)
    former = dataclasses.replace(cell.config, learning_rate=1.0)
    former_cell = dataclasses.replace(cell, config=former)
    result = make.result(former, [0.5])
    return former_cell, results.finished_record(result, former_cell, former)


def test_a_result_of_former_defaults_is_left_alone(make, folders):
    cell, record = former_defaults(make)
    results.write_record(folders[1], cell, record)
    (entry,) = plan(make, [NAME], folders)
    assert (entry.state, entry.is_to_run) == ("cannot be run", False)
    assert f"paper/{NAME}.json among the results is of other settings" in entry.obstacle


def test_a_directory_of_former_defaults_is_left_alone(make, folders):
    planned_before = plan(make, [NAME], folders)
    cell, _ = former_defaults(make)
    save_rounds(runner.run_dir(folders[0], cell), cell.config, 50)
    (entry,) = plan(make, [NAME], folders)
    assert (entry.state, entry.is_to_run) == ("cannot be run", False)
    assert "another configuration (learning_rate: 1.0 there" in entry.obstacle
    with pytest.raises(OutputDirectoryError, match="another configuration"):
        run(planned_before, folders)
    assert results.read_records(folders[1], "paper") == {}


def test_an_interrupted_run_goes_on_under_the_id_that_it_began_with(make, folders):
    cell = make.cell(NAME)
    former = dataclasses.replace(cell, result_id="study/once/seed0")
    record = {**make.unfinished(NAME, 20), "id": former.result_id}
    results.write_record(folders[1], former, record)
    save_rounds(runner.run_dir(folders[0], former), cell.config, 20)
    (entry,) = plan(make, [NAME], folders)
    assert entry.cell.result_id == former.result_id
    assert (entry.state, entry.is_to_run) == ("round 20 of 50", True)
    # By the id that it has now: the other may be no cell any more.
    assert f"--cells='{NAME}'" in results.command_of(entry.cell, cell.config)


def test_a_run_that_never_began_leaves_nothing(make, folders, monkeypatch):
    def run_experiment(config, output_dir, **kwargs):
        raise ValueError("no data")

    monkeypatch.setattr(runner, "run_experiment", run_experiment)
    with pytest.raises(ValueError, match="no data"):
        run(plan(make, [NAME], folders), folders)
    assert not folders[1].exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (90, "2 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_can_be_read(seconds, text):
    assert runner.format_seconds(seconds) == text


@pytest.mark.slow
def test_a_real_cell(tmp_path):
    """From the estimate to the result file."""
    config = ExperimentConfig(
        dataset="digits",
        model="resnet8",
        train_examples=100,
        num_clients=4,
        clients_per_round=2,
        rounds=1,
        local_epochs=1,
        batch_size=16,
    )
    name = "table1/digits/seed0"
    cell = Cell(name, name, "reduced", config)
    folders = tmp_path / "runs", tmp_path / "results"
    estimator = CostEstimator(speed=Speed(100, 100))
    planned = runner.plan([cell], *folders, estimator)
    run_dir = runner.run_dir(folders[0], cell)
    runner.run_cells(
        planned,
        *folders,
        data_dir=None,
        announce=lambda _: None,
        on_result=lambda: None,
    )
    record = results.read_records(folders[1], "reduced")[name]
    result = json.loads((run_dir / "result.json").read_text())
    assert record["finished"] and record["tier_accuracy"] == result["tier_accuracy"]
    assert runner.count_rounds_done(run_dir) == 1
    # The estimate is of the partition that the run had.
    passes = sum(
        result["client_examples"][int(c)] for c in result["rounds"][0]["participants"]
    )
    evaluated = 360 * (1 + 1 + 2 * len(set(config.budgets)))
    assert planned[0].seconds == pytest.approx((passes + evaluated) / 100)
    assert name in document.build_document({"reduced": {name: record}})
