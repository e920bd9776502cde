"""Schemes side by side: what runs share, what the table says, what is not redone."""

from __future__ import annotations

import csv
import json

import comparison
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tff_fedmpq.simulation import data
from tff_fedmpq.simulation.config import make_config
from tff_fedmpq.simulation.experiment import DivergenceError
from tff_fedmpq.simulation.models import build_model_fn

SMALL = {
    "dataset": "digits",
    "model": "resnet8",
    "train_examples": 80,
    "num_clients": 3,
    "budgets": (2, 4, 8),
    "clients_per_round": 2,
    "rounds": 1,
    "epochs": 1,
    "batch_size": 16,
    "augment": False,
}


def make_configs(schemes, seeds=(0,), own=None, **settings):
    """Returns the configurations of a comparison; `own` are a scheme's settings."""
    return {
        scheme: [
            make_config(
                "paper",
                scheme,
                **{**SMALL, **settings, **(own or {}).get(scheme, {}), "seed": seed},
            )
            for seed in seeds
        ]
        for scheme in schemes
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
    row = comparison.summarise("aqfl_literal", runs)
    assert row == {
        "scheme": "aqfl_literal",
        "precision": "v/v/4",
        "seeds": 2,
        "accuracy": pytest.approx(60),
        "accuracy_std": pytest.approx(20 / np.sqrt(2)),
        # Bytes of the seeds: 1000 + 2000 and 2000 + 3000 up, 2000 + 2000 down.
        "uplink_megabytes": pytest.approx(0.004),
        "downlink_megabytes": pytest.approx(0.004),
        # Two rounds of three clients, a thousand weights of four bytes, both ways.
        "compression": pytest.approx(48_000 / 8_000),
        "seconds": pytest.approx((20 + 22) / 2),
    }


def test_one_seed_has_no_deviation():
    row = comparison.summarise("aqfl", [make_run("aqfl", [0.25])])
    assert (row["seeds"], row["accuracy"], row["accuracy_std"]) == (1, 25, None)


@pytest.fixture
def rows():
    runs = [make_run("fedmpq", [0.25], seed) for seed in range(3)]
    return [
        comparison.summarise("fedavg", [make_run("fedavg", [0.5])]),
        comparison.summarise("fedmpq", runs),
    ]


def test_the_table_has_a_line_per_scheme(rows):
    lines = comparison.format_table(rows).splitlines()
    headers = ("scheme", "bits u/w/a", "accuracy, %", "std", "up, MB", "down, MB")
    assert all(header in lines[0] for header in (*headers, "compression", "seconds"))
    # Of one seed no deviation is known. Bytes: 1000 up, 2000 down; 24000 in float32.
    assert lines[2].split() == [
        "fedavg", "v/v/4", "1", "50.00", "-", "0.001", "0.002", "8.00", "10"
    ]  # fmt: skip
    assert lines[3].split() == [
        "fedmpq", "v/v/4", "3", "25.00", "0.00", "0.002", "0.002", "6.00", "11"
    ]  # fmt: skip
    assert len({len(line.rstrip()) for line in lines}) == 1


def test_the_table_is_aligned_for_long_names_too(rows):
    long = {**rows[0], "scheme": "fedmpq_literal"}
    lines = comparison.format_table([long, *rows]).splitlines()
    assert len({len(line.rstrip()) for line in lines}) == 1


def test_tables_are_written_in_every_form(rows, tmp_path):
    comparison.write_tables(rows, tmp_path)
    text = (tmp_path / "table.txt").read_text()
    assert text == comparison.format_table(rows) + "\n"
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    with open(tmp_path / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["scheme"] for line in lines] == ["fedavg", "fedmpq"]
    assert [float(line["accuracy"]) for line in lines] == [50, 25]
    assert [line["accuracy_std"] for line in lines] == ["", "0.0"]
    assert lines[0].keys() == rows[0].keys()


# --- the figure -------------------------------------------------------------


# Two rounds; the second scheme with two seeds.
RESULTS = {
    "fedavg": [make_run("fedavg", [0.25, 0.5])],
    "fedmpq": [make_run("fedmpq", [0.125, 0.375 + 0.25 * s], s) for s in range(2)],
}


@pytest.fixture
def figure(monkeypatch):
    """The figure of `RESULTS`, which is not written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **kw: figures.append(self))
    comparison.plot_comparison(RESULTS, "nowhere.png")
    return figures[0]


def test_the_figure_is_written(tmp_path):
    comparison.plot_comparison(RESULTS, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figure_has_two_labelled_panels(figure):
    by_round, by_size = figure.axes
    assert (by_round.get_xlabel(), by_round.get_ylabel()) == (
        "round", "test accuracy, %"
    )  # fmt: skip
    assert by_size.get_xlabel() == "MB sent, both directions, all clients"
    assert by_size.get_xscale() == "log"
    # One legend and one scale of accuracy serve both.
    assert [text.get_text() for text in by_round.get_legend().get_texts()] == [
        "fedavg", "fedmpq"
    ]  # fmt: skip
    assert by_round.get_ylim() == by_size.get_ylim()
    colours = [[line.get_color() for line in axes.lines] for axes in figure.axes]
    assert colours[0] == colours[1] and len(set(colours[0])) == 2


def test_the_figure_shows_means_over_seeds(figure):
    by_round, by_size = figure.axes
    found = [line.get_xydata().tolist() for line in by_round.lines]
    assert found == [[[1, 25], [2, 50]], [[1, 12.5], [2, 50]]]
    # Kilobytes, both ways: 1 + 2, 2 + 2; and of the seeds' mean 1.5 + 2, 2.5 + 2.
    sizes = [line.get_xdata() for line in by_size.lines]
    np.testing.assert_allclose(sizes, [[0.003, 0.007], [0.0035, 0.008]])
    accuracies = [line.get_ydata().tolist() for line in by_size.lines]
    assert accuracies == [[25, 50], [12.5, 50]]


def test_all_data_is_inside_its_panel(figure):
    for axes in figure.axes:
        for line in axes.lines:
            limits = (axes.get_xlim(), axes.get_ylim())
            for values, (low, high) in zip(line.get_data(), limits):
                assert np.all((low <= values) & (values <= high))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, frame = canvas.get_renderer(), figure.bbox
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert not boxes[0].overlaps(boxes[1])


# --- runs -------------------------------------------------------------------


@pytest.fixture
def no_run(monkeypatch):
    """Makes a run an error."""

    def run(*args, **kwargs):
        raise AssertionError("a run was started")

    monkeypatch.setattr(comparison, "run_experiment", run)


def test_every_run_gets_its_configuration_and_directory(tmp_path, monkeypatch):
    runs = {}

    def run(config, output_dir, *, data_dir, resume):
        assert resume and data_dir == tmp_path
        output_dir.mkdir(parents=True)
        runs[output_dir] = config
        return make_run(config.scheme.name, [0.5], config.seed)

    monkeypatch.setattr(comparison, "run_experiment", run)
    configs = make_configs(["fedpaq", "aqfl"], [3, 7], {"fedpaq": {"norm": "l2"}})
    lines = []
    rows = comparison.run_comparison(
        configs, tmp_path, data_dir=tmp_path, announce=lines.append
    )
    assert runs == {
        tmp_path / scheme / f"seed{config.seed}": config
        for scheme, of_scheme in configs.items()
        for config in of_scheme
    }
    assert [(row["scheme"], row["seeds"]) for row in rows] == [
        ("fedpaq", 2), ("aqfl", 2)
    ]  # fmt: skip
    assert lines == [
        "== fedpaq, seed 3", "== fedpaq, seed 7", "== aqfl, seed 3", "== aqfl, seed 7"
    ]  # fmt: skip
    for name in ("table.txt", "table.csv", "table.json", "comparison.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_literal_reading_and_ours_are_two_rows(tmp_path, monkeypatch):
    def run(config, output_dir, *, data_dir, resume):
        output_dir.mkdir(parents=True)
        return make_run(config.scheme.name, [0.5], config.seed)

    monkeypatch.setattr(comparison, "run_experiment", run)
    rows = comparison.run_comparison(
        make_configs(["fedmpq", "fedmpq_literal"]), tmp_path
    )
    assert [row["scheme"] for row in rows] == ["fedmpq", "fedmpq_literal"]


def test_what_diverges_is_left_out_of_the_table(tmp_path, monkeypatch):
    def run(config, output_dir, *, data_dir, resume):
        if config.scheme.name in diverging:
            raise DivergenceError("Its loss is nan.")
        return make_run(config.scheme.name, [0.5], config.seed)

    monkeypatch.setattr(comparison, "run_experiment", run)
    diverging, lines = {"fedpaq"}, []

    def compare():
        return comparison.run_comparison(
            make_configs(["fedpaq", "aqfl"], [0, 1]), tmp_path, announce=lines.append
        )

    assert [(row["scheme"], row["seeds"]) for row in compare()] == [("aqfl", 2)]
    assert lines.count("Left out of the table: Its loss is nan.") == 2
    diverging.add("aqfl")
    with pytest.raises(DivergenceError, match="All runs diverged"):
        compare()


def test_a_run_of_other_settings_is_found_before_any_is_run(tmp_path, no_run):
    directory = tmp_path / "fedavg" / "seed0"
    directory.mkdir(parents=True)
    (begun,) = make_configs(["fedavg"], rounds=9)["fedavg"]
    (directory / "config.json").write_text(json.dumps(begun.as_dict()))
    with pytest.raises(ValueError, match="rounds: 9 there, 1 requested"):
        comparison.run_comparison(make_configs(["aqfl", "fedavg"]), tmp_path)


def test_initial_weights_are_the_same_for_every_scheme():
    """And others for another seed."""
    dataset = data.load("digits", None)
    configs = make_configs(["fedavg", "fpq8", "fedmpq"], [4])
    models = [
        config.scheme.compose().build_global_model(
            build_model_fn(config.model, dataset, config.seed)()
        )
        for (config,) in configs.values()
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
    schemes = ["fedavg", "aqfl"]
    configs = make_configs(schemes)
    rows = comparison.run_comparison(configs, tmp_path)
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
    assert [row["precision"] for row in rows] == ["32/32/32", "v/v/4"]
    assert rows[0]["compression"] == pytest.approx(1, rel=1e-3)
    assert rows[1]["compression"] > 3
    for name in ("table.txt", "table.csv", "table.json", "comparison.png"):
        assert (tmp_path / name).stat().st_size > 0

    def build(*args, **kwargs):
        raise AssertionError("a finished run was redone")

    monkeypatch.setattr("tff_fedmpq.simulation.experiment.build_process", build)
    written = (tmp_path / "aqfl/seed0/result.json").stat().st_mtime_ns
    assert comparison.run_comparison(configs, tmp_path) == rows
    assert (tmp_path / "aqfl/seed0/result.json").stat().st_mtime_ns == written
