import dataclasses
import json
import types

import pytest

from studies import run, time_left
from studies.definitions import load_study

STUDY = """
title = "Small"
question = "Which is better?"
seeds = [0, 1]
baselines = ["aqfl"]

[protocol]
rounds = 3

[[runs]]
name = "fedmpq"
title = "FedMPQ"
scheme = "fedmpq"

[[runs]]
name = "aqfl"
title = "AQFL"
scheme = "aqfl"

[claims]
margin = "FedMPQ at least 1 point above AQFL."
"""
PROVENANCE = {
    "versions": {"tensorflow": "2.14.1"},
    "hardware": {"processor": "AMD EPYC", "cores": 2},
}
ALL = ["fedmpq/seed0", "aqfl/seed0", "fedmpq/seed1", "aqfl/seed1"]


class DivergenceError(ValueError):
    pass


@dataclasses.dataclass
class FakeConfig:
    settings: dict

    def as_dict(self):
        return self.settings


def fake_result(config):
    accuracy = 0.6 if config.settings["scheme"] == "fedmpq" else 0.5
    return {
        **PROVENANCE,
        "protocol": config.as_dict(),
        "model_weights": 100,
        "rounds": [
            {
                "round": number,
                "test_accuracy": accuracy + 0.01 * number,
                "test_loss": 1.123456789,
                "train_loss": 1.5,
                "uplink_bits": 2_000_000,
                "downlink_bits": 3_000_000,
                "mean_bit_width": 4.0,
                "devices": {"2": {"accuracy": accuracy - 0.1, "loss": 2.0}},
                "clients": ["much"],
                "commit": "abc1234",
            }
            for number in range(1, config.settings["rounds"] + 1)
        ],
    }


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A study file, directories and an experiment that records its calls."""
    (tmp_path / "small.toml").write_text(STUDY)
    calls, failures = [], {}

    def run_experiment(config, output_dir, *, data_dir=None, resume=False):
        assert resume
        name = f"{output_dir.parent.name}/{output_dir.name}"
        calls.append(name)
        if name in failures:
            raise failures[name]
        return fake_result(config)

    fake = types.SimpleNamespace(
        run_experiment=run_experiment,
        DivergenceError=DivergenceError,
        provenance=types.SimpleNamespace(describe=lambda: PROVENANCE),
    )
    monkeypatch.setattr(run, "_load_experiment", lambda: fake)
    monkeypatch.setattr(
        run,
        "build_config",
        lambda cell, seed: FakeConfig({**cell.settings, "seed": seed}),
    )

    def main(*arguments):
        return run.main(
            [
                str(tmp_path / "small.toml"),
                f"--work_dir={tmp_path}/work",
                f"--results_dir={tmp_path}/results",
                f"--docs_dir={tmp_path}/docs",
                *arguments,
            ]
        )

    return types.SimpleNamespace(
        main=main, calls=calls, failures=failures, path=tmp_path
    )


def read(world, name):
    return json.loads((world.path / f"results/small/{name}.json").read_text())


def test_result_file_holds_what_the_analysis_needs(world):
    assert world.main() == 0

    record = read(world, "fedmpq/seed1")
    assert record["state"] == "finished"
    assert record["settings"] == {"rounds": 3, "scheme": "fedmpq", "seed": 1}
    assert record["command"] == ("python studies/run.py small --runs=fedmpq --seeds=1")
    assert record["versions"] and record["hardware"]
    assert record["final"] == {"model_weights": 100}
    assert len(record["rounds"]) == 3
    assert record["rounds"][0]["test_loss"] == 1.12346
    assert record["rounds"][0]["devices"] == {"2": {"accuracy": 0.5, "loss": 2.0}}
    assert "clients" not in record["rounds"][0]


def test_finished_runs_are_not_repeated(world):
    assert world.main("--seeds=0") == 0
    assert world.main() == 0

    assert world.calls == ALL


def test_runs_can_be_selected(world):
    assert world.main("--runs=aq*", "--seeds=7") == 0
    assert world.calls == ["aqfl/seed7"]
    assert world.main("--runs=nothing") == 2


def test_list_shows_what_is_done_and_runs_nothing(world, capsys):
    world.main("--seeds=0", "--runs=aqfl")
    world.calls.clear()
    (world.path / "work/small/fedmpq/seed0/rounds").mkdir(parents=True)
    (world.path / "work/small/fedmpq/seed0/rounds/00001.json").write_text("{}")
    capsys.readouterr()

    assert world.main("--list", "--seeds=0,1") == 0

    assert world.calls == []
    assert [
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
    ] == [
        ["fedmpq/seed0", "round 1 of 3"],
        ["aqfl/seed0", "finished"],
        ["fedmpq/seed1", "not run"],
        ["aqfl/seed1", "not run"],
        ["1", "of 4 finished."],
    ]


def test_missing_data_fail_but_other_runs_go_on(world, capsys):
    world.failures["aqfl/seed0"] = ValueError("No data set cifar10.")

    assert world.main() == 1

    assert world.calls == ALL
    assert "aqfl/seed0: No data set cifar10." in capsys.readouterr().err
    assert not (world.path / "results/small/aqfl/seed0.json").exists()
    world.failures.clear()
    assert world.main() == 0
    assert world.calls[len(ALL) :] == ["aqfl/seed0"]


def test_a_run_whose_data_set_is_not_there_is_an_exit_code(tmp_path, capsys):
    """By the experiment itself, which looks for the data before it builds anything."""
    (tmp_path / "data").mkdir()
    cell = load_study("quick_populations").cells[0].id
    folders = [
        f"--{name}_dir={tmp_path}/{name}" for name in ("data", "work", "results")
    ]
    options = [f"--runs={cell}", "--seeds=0", *folders]
    assert run.main(["quick_populations", *options]) == 1
    printed = capsys.readouterr()
    assert "0 of 1 runs are finished." in printed.out
    assert f"{cell}/seed0: " in printed.err and str(tmp_path / "data") in printed.err
    assert not list(tmp_path.rglob("*.json"))


def test_divergence_is_recorded_and_not_repeated(world, capsys):
    world.failures["fedmpq/seed0"] = DivergenceError("Diverged in round 2.")

    assert world.main() == 1
    assert read(world, "fedmpq/seed0")["state"] == "diverged"
    assert read(world, "fedmpq/seed0")["error"] == "Diverged in round 2."
    assert read(world, "fedmpq/seed0")["versions"] == PROVENANCE["versions"]
    assert world.main() == 1
    assert world.calls == ALL
    world.main("--list")
    assert "fedmpq/seed0  diverged" in capsys.readouterr().out


def test_error_inside_a_round_is_shown_with_its_traceback(world, capsys):
    world.failures["aqfl/seed1"] = RuntimeError("Round 2 failed.")

    assert world.main() == 1

    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "aqfl/seed1: RuntimeError: Round 2 failed." in errors


def test_interrupt_ends_with_how_to_continue(world, capsys):
    world.failures["aqfl/seed0"] = KeyboardInterrupt()

    assert world.main() == 130
    assert "the same command continues" in capsys.readouterr().err


def test_results_of_other_settings_are_not_taken_for_finished(world, capsys):
    world.main()
    study = world.path / "small.toml"
    study.write_text(STUDY.replace("rounds = 3", "rounds = 4"))
    calls = len(world.calls)

    assert world.main() == 1

    assert len(world.calls) == calls
    assert "rounds: 3 there, 4 here" in capsys.readouterr().err


@pytest.mark.parametrize("value, code", [("nearest", 0), ("up", 1)])
def test_results_from_before_a_setting_existed(world, value, code):
    world.main()
    study, calls = world.path / "small.toml", len(world.calls)
    setting = f'[protocol]\nstep_rounding = "{value}"'
    study.write_text(STUDY.replace("[protocol]", setting))

    assert world.main() == code

    assert len(world.calls) == calls


def test_damaged_result_file_is_named(world, capsys):
    path = world.path / "results/small/aqfl/seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text("")

    assert world.main() == 2
    assert str(path) in capsys.readouterr().err


def test_document_has_the_tables_of_finished_runs_only(world):
    world.failures["aqfl/seed1"] = DivergenceError("Diverged in round 2.")
    world.main()

    assert world.main("--document") == 0

    page = (world.path / "docs/small.md").read_text()
    assert "# Small\n\nWhich is better?" in page
    assert "- **margin**: FedMPQ at least 1 point above AQFL." in page
    # Last third of three rounds: round 3, accuracy 0.63 and 0.53, devices 0.5 and 0.4.
    squeezed = " ".join(page.split())
    assert "| FedMPQ | 63.0 ± 0.0 (2) | 50.0 ± 0.0 (2) |" in squeezed
    assert "| AQFL | 53.0 (1) | 40.0 (1) |" in squeezed
    assert "| FedMPQ - AQFL | +10.0 (1) | +10.0 (1) |" in squeezed
    assert "| FedMPQ | 3.00 | 2.00 | 4.00 |" in squeezed
    assert "| AQFL | scheme = aqfl |" in squeezed
    assert "- `aqfl`, seed 1: Diverged in round 2." in page
    assert "python studies/run.py small --runs=aqfl --seeds=0" in page
    assert "processor AMD EPYC, cores 2, tensorflow 2.14.1, commit abc1234" in page


def test_document_leaves_out_what_was_not_run(world):
    world.main("--runs=fedmpq", "--seeds=0")
    world.main("--document")

    page = (world.path / "docs/small.md").read_text()
    assert "| FedMPQ |" in " ".join(page.split())
    assert "| AQFL" not in page
    assert "FedMPQ - AQFL" not in page


def test_document_without_any_result(world):
    world.main("--document")

    page = (world.path / "docs/small.md").read_text()
    assert "No run is finished yet." in page
    assert "## Commands" not in page


def test_time_left_is_printed_after_the_first_round(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time_left, "_POLL_SECONDS", 0.01)
    (tmp_path / "rounds").mkdir()
    watch = time_left.TimeLeft(tmp_path, 30, later_runs=2)

    with watch:
        (tmp_path / "rounds/00001.json").write_text("{}")
        watch._thread.join(10)

    assert capsys.readouterr().out.startswith("About 0 s left for this run")
    assert watch.describe(60, done=1) == (
        "About 29 min left for this run, 1 h 00 min for 2 more of this length."
    )


def test_durations():
    assert time_left.format_seconds(40) == "40 s"
    assert time_left.format_seconds(600) == "10 min"
    assert time_left.format_seconds(7500) == "2 h 05 min"
