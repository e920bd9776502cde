"""The study: placeholders filled in from result files made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tff_fedmpq.simulation.reproduction import results, study, study_document

AQFL = "table1/cifar10/alpha0.5/aqfl"
FEDMPQ = "table1/cifar10/alpha0.5/fedmpq"


@pytest.fixture
def records(make):
    """Two seeds of both, reduced; the last five rounds count."""
    accuracies = {
        f"{AQFL}/seed0": [0.9, 0.4, 0.4, 0.4, 0.4, 0.4],
        f"{AQFL}/seed1": [0.9, 0.3, 0.4, 0.5, 0.4, 0.6],  # Mean 0.44.
        f"{FEDMPQ}/seed0": [0.1, 0.5, 0.5, 0.5, 0.5, 0.5],
        f"{FEDMPQ}/seed1": [0.1, 0.6, 0.6, 0.6, 0.6, 0.6],
    }
    reduced = [make.finished(n, a, "reduced") for n, a in accuracies.items()]
    reduced.append(make.unfinished("study/literal/aqfl/seed0", 12, "reduced"))
    return {"reduced": {record["id"]: record for record in reduced}}


def build(text, records):
    return study_document.build_study(text, records)


def test_mean_is_over_seeds_of_the_last_five_rounds(records):
    # 40 and 44: mean 42, standard deviation sqrt(2^2 + 2^2).
    found = build(f"AQFL reached {{{{ mean: reduced/{AQFL} }}}} %.", records)
    assert found == "AQFL reached 42.0 ± 2.8 (2) %."


def test_difference_is_paired_by_seed(records):
    # 50 - 40 = 10 and 60 - 44 = 16.
    text = f"{{{{ difference: reduced/{FEDMPQ}, reduced/{AQFL} }}}}"
    assert build(text, records) == "+13.0 ± 4.2 (2)"
    del records["reduced"][f"{AQFL}/seed1"]
    assert build(text, records) == "+10.0 (1)"


def test_what_is_not_finished_is_not_run(records):
    assert build("{{ mean: reduced/study/literal/aqfl }}", records) == "not run"
    assert build(f"{{{{ mean: paper/{AQFL} }}}}", records) == "not run"


def test_table_shows_both_and_their_difference(records):
    lines = build("{{ table: repairs }}", records).splitlines()
    assert lines[0] == "| reading | AQFL | FedMPQ | FedMPQ - AQFL |"
    (literal,) = (line for line in lines if line.startswith("| the paper, literally"))
    assert literal.split("|")[2:] == [" not run ", " not run ", " not run ", ""]
    row = "sign and magnitude planes, saturating pruning"
    assert f"| {row} |  | not run |  |" in lines
    expected = "| 42.0 ± 2.8 (2) | 55.0 ± 7.1 (2) | +13.0 ± 4.2 (2) |"
    assert f"| all repairs: our defaults {expected}" in lines


def test_devices_are_by_budget(records):
    for record in records["reduced"].values():
        record["tier_accuracy"] = None  # As of FP32, which has no such devices.
    assert len(build("{{ devices: repairs }}", records).splitlines()) == 2
    for seed, accuracy in enumerate((0.25, 0.75)):
        records["reduced"][f"{AQFL}/seed{seed}"]["tier_accuracy"] = {
            "2": {"accuracy": accuracy, "accuracy_aggregated_statistics": 0.125},
            "8": {"accuracy": 0.75, "accuracy_aggregated_statistics": 0.5},
        }
    heads, _, line = build("{{ devices: repairs }}", records).splitlines()
    assert heads == "| reading |  | global | 2 bits | 8 bits |"
    last = 50 * sum(
        records["reduced"][f"{AQFL}/seed{seed}"]["rounds"][-1]["test_accuracy"]
        for seed in (0, 1)
    )
    row, tiers = "| all repairs: our defaults | AQFL", "50.0 / 12.5 | 75.0 / 50.0 |"
    assert line == f"{row} | - / {last:.1f} (2) | {tiers}"
    for seed, accuracy in enumerate((0.25, 0.625)):
        # Not the mean of those alone that recorded it.
        assert "| - /" in build("{{ devices: repairs }}", records)
        records["reduced"][f"{AQFL}/seed{seed}"]["recalibrated"] = {
            "accuracy": accuracy
        }
    line = build("{{ devices: repairs }}", records).splitlines()[-1]
    assert line == f"{row} | 43.8 / {last:.1f} (2) | {tiers}"


def test_a_run_that_two_places_ask_for_has_one_line_of_devices(make):
    record = make.finished("study/literal/aqfl/seed0", [0.5], "reduced")
    record["tier_accuracy"] = {
        "2": {"accuracy": 0.5, "accuracy_aggregated_statistics": 0.25}
    }
    records = {"reduced": {record["id"]: record}}
    assert "| both weigh clients by \\|D_n\\| | 50.0 (1)" in build(
        "{{ table: repairs }}", records
    )
    assert len(build("{{ devices: repairs }}", records).splitlines()) == 3


def test_a_question_at_another_preset(make):
    record = make.finished("study/two-bit100/fedmpq/seed0", [0.5], "tuning")
    records = {"tuning": {record["id"]: record}}
    assert "50.0 (1)" in build("{{ table: outer_layers @ tuning }}", records)
    assert "Not run" in build("{{ table: outer_layers }}", records)


def test_difference_of_devices_is_from_least_to_greatest(make):
    records = {"reduced": {}}
    for scheme, accuracies in (("aqfl", (0.25, 0.5)), ("fedmpq", (0.375, 0.4375))):
        record = make.finished(f"study/literal/{scheme}/seed0", [0.5], "reduced")
        record["tier_accuracy"] = {
            bits: {
                "accuracy": accuracy,
                "accuracy_aggregated_statistics": accuracy**2,
            }
            for bits, accuracy in zip("28", accuracies)
        }
        records["reduced"][record["id"]] = record
    names = "reduced/study/literal/fedmpq, reduced/study/literal/aqfl"
    placeholder = f"{{{{ devices_difference: {names} }}}}"
    assert build(placeholder, records) == "-6.2 to +12.5 (1)"
    assert build(placeholder, {}) == "not run"
    # 0.375^2 - 0.25^2 = 0.078125, 0.4375^2 - 0.5^2 = -0.05859375.
    placeholder = f"{{{{ sent_devices_difference: {names} }}}}"
    assert build(placeholder, records) == "-5.9 to +7.8 (1)"
    del record["tier_accuracy"]["2"]
    with pytest.raises(ValueError, match="literal/fedmpq.*other budgets"):
        build(placeholder, records)


def test_recalibrated_accuracy_is_of_seeds_that_recorded_it(make):
    records = {"reduced": {}}
    for scheme, accuracies in (("aqfl", (0.25, 0.5)), ("fedmpq", (0.375, 0.75))):
        for seed, accuracy in enumerate(accuracies):
            name = f"study/literal/{scheme}/seed{seed}"
            record = make.finished(name, [0.875, 0.5], "reduced")
            record["recalibrated"] = {"accuracy": accuracy}
            records["reduced"][record["id"]] = record
    names = "reduced/study/literal/fedmpq, reduced/study/literal/aqfl"
    placeholder = f"{{{{ recalibrated_difference: {names} }}}}"
    assert build(placeholder, records) == "+18.8 ± 8.8 (2)"  # +12.5 and +25.
    recalibration = "{{ recalibration: reduced/study/literal/aqfl }}"
    assert build(recalibration, records) == "-12.5 ± 17.7 (2)"  # -25 and 0.
    del records["reduced"]["study/literal/aqfl/seed0"]["recalibrated"]
    assert build(placeholder, records) == "+25.0 (1)"
    assert build(recalibration, records) == "+0.0 (1)"
    assert build(placeholder, {}) == build(recalibration, {}) == "not run"


def test_swing_is_the_deviation_within_the_last_rounds(make):
    accuracies = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    record = make.finished("study/literal/aqfl/seed0", accuracies, "reduced")
    placeholder = "{{ swing: reduced/study/literal/aqfl }}"
    found = build(placeholder, {"reduced": {record["id"]: record}})
    assert found == f"{np.std([10, 20, 30, 40, 50], ddof=1):.1f}"
    assert build(placeholder, {}) == "not run"


def test_rounds_with_pruning_send_up_less_than_down(make):
    record = make.finished("study/literal/fedmpq/seed0", [0.5] * 4, "reduced")
    for pruned, entry in zip((0, 32, 0, 7), record["rounds"]):
        entry.update(downlink_bits=10_480, uplink_bits=10_000 - pruned)
    placeholder = "{{ pruned: reduced/study/literal/fedmpq }}"
    records = {"reduced": {record["id"]: record}}
    assert build(placeholder, records) == "2 of 4"
    assert build(placeholder, {}) == "not run"


def test_layers_with_full_planes_are_of_the_last_rounds(make):
    record = make.finished("study/literal/fedmpq/seed0", [0.5] * 7, "reduced")
    record["layers"]["sizes"] = [30, 60, 10]
    late = [(0.9, 0.3, 1.0), *2 * [(0.85, 0.3, 1.0)], *2 * [(0.95, 0.3, 1.0)]]
    for entry, densities in zip(record["rounds"], [*2 * [(0.0, 1.0, 0.0)], *late]):
        entry["top_plane_densities"] = list(densities)
    placeholder = "{{ full_planes: reduced/study/literal/fedmpq }}"
    records = {"reduced": {record["id"]: record}}
    assert build(placeholder, records) == "2 of 3 layers (40 % of the weights)"
    assert build(placeholder, {}) == "not run"


@pytest.mark.parametrize("name", study.QUESTIONS)
def test_every_question_has_a_table_of_even_rows(name):
    grid = study.QUESTIONS[name]()
    table = study_document.format_table(grid, "reduced", {}).split("\n\n")[0]
    lines = table.replace("\\|", "").splitlines()  # Escaped, it ends no entry.
    assert len(lines) == 2 + len(grid.rows)
    assert len({line.count("|") for line in lines}) == 1


def test_a_question_without_results_is_a_line():
    assert build("{{ table: local_epochs }}", {}) == (
        "(Not run: none of its 6 runs per seed is finished.)"
    )


FIGURE = (
    f"{{{{ figure: both | AQFL = reduced/{AQFL} | FedMPQ = reduced/{FEDMPQ}\n"
    "| literal = reduced/study/literal/aqfl }}"
)


def test_figure_shows_what_has_results(records):
    link = "![Accuracy by round: AQFL; FedMPQ](figures/both.svg)"
    assert build(FIGURE, records) == link
    assert build(FIGURE, {}) == "(figure: not run)"


def test_protocol_is_in_words(records):
    assert "30 rounds of 2 local epochs" in build("{{ protocol: reduced }}", records)


@pytest.mark.parametrize(
    ("placeholder", "message"),
    [
        ("{{ median: reduced/x }}", "Unknown placeholder"),
        ("{{ table: x }}", "Unknown table 'x'"),
        ("{{ protocol: x }}", "Unknown preset 'x'"),
        ("{{ mean: reduced/x }}", "no group of runs"),
        ("{{ figure: name | AQFL = reduced/x }}", "no group of runs"),
        ("{{ figure: name | AQFL }}", "no group of runs"),
        (f"{{{{ mean: {AQFL} }}}}", "no group of runs"),
    ],
)
def test_a_placeholder_that_is_not_understood(placeholder, message, records):
    with pytest.raises(ValueError, match=message):
        build(placeholder, records)


def test_writes_the_document(tmp_path):
    template, path = tmp_path / "template.md", tmp_path / "study.md"
    template.write_text(f"Nothing: {{{{ mean: reduced/{AQFL} }}}}.\n")
    study_document.write_study(tmp_path / "results", template, path)
    assert path.read_text() == "Nothing: not run.\n"


def test_writes_the_figures_the_same_for_the_same_results(tmp_path, records):
    folder = tmp_path / "results" / "reduced"
    for name, record in records["reduced"].items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.format_record(record))
    template = tmp_path / "template.md"
    template.write_text(FIGURE)
    drawn = []
    for attempt in ("first", "second"):
        path = tmp_path / attempt / "study.md"
        path.parent.mkdir()
        study_document.write_study(tmp_path / "results", template, path)
        drawn.append((path.parent / "figures" / "both.svg").read_bytes())
    assert drawn[0].startswith(b"<?xml") and drawn[0] == drawn[1]
