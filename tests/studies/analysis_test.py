import pytest

from studies.analysis import (
    budgets_of,
    estimate,
    last_third,
    mean_over_seeds,
    pair_devices,
    paired_difference,
)


def make_result(accuracies, devices=None):
    """Returns a result whose loss is 1 - accuracy."""
    devices = devices or {}
    return {
        "rounds": [
            {
                "round": number,
                "test_accuracy": accuracy,
                "test_loss": 1 - accuracy,
                "devices": {
                    budget: {"accuracy": accuracy + gain, "loss": 0.5}
                    for budget, gain in devices.items()
                },
            }
            for number, accuracy in enumerate(accuracies, 1)
        ]
    }


def test_last_third_is_rounded_up_to_whole_rounds():
    assert last_third(make_result([0.1, 0.2, 0.3]), "accuracy") == {3: 0.3}
    assert last_third(make_result([0.1, 0.2, 0.3, 0.4]), "accuracy") == {3: 0.3, 4: 0.4}
    assert last_third(make_result([0.1]), "loss") == {1: 0.9}
    assert last_third({"rounds": []}, "loss") is None


def test_devices_may_be_measured_in_the_last_third_only():
    result = make_result([0.1, 0.2, 0.3], {"2": 0.1})
    del result["rounds"][0]["devices"]

    assert last_third(result, "accuracy", "2") == {3: pytest.approx(0.4)}
    assert last_third(result, "accuracy", "4") is None


def test_estimate_by_hand():
    # Mean 2, standard deviation 1, t(0.975, 2) = 4.302653, over sqrt(3).
    mean, half_width, seeds = estimate([1.0, 2.0, 3.0])
    assert (mean, seeds) == (2.0, 3)
    assert half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    # t(0.975, 1) = 12.706205, standard deviation sqrt(2), over sqrt(2).
    assert estimate([0.0, 2.0])[1] == pytest.approx(12.706205, rel=1e-6)


def test_one_seed_has_no_interval_and_none_no_mean():
    assert estimate([0.5]) == (0.5, None, 1)
    assert estimate([]) is None


def test_mean_over_seeds():
    results = {0: make_result([0.0, 0.0, 0.5]), 1: make_result([0.9, 0.9, 0.7])}

    mean, half_width, seeds = mean_over_seeds(results, "accuracy")

    assert (mean, seeds) == (pytest.approx(0.6), 2)
    assert half_width == pytest.approx(12.706205 * 0.1, rel=1e-6)


def test_difference_is_paired_by_round_and_seed():
    ours = {
        0: make_result([0.0] * 4 + [0.5, 0.7]),
        1: make_result([0.0] * 4 + [0.2, 0.4]),
        2: make_result([0.0] * 4 + [0.9, 0.9]),
    }
    theirs = {
        0: make_result([0.0] * 4 + [0.4, 0.4]),  # Differences 0.1 and 0.3.
        1: make_result([0.0] * 4 + [0.2, 0.2]),  # 0 and 0.2.
        3: make_result([0.0] * 4 + [0.0, 0.0]),
    }

    mean, half_width, seeds = paired_difference(ours, theirs, "accuracy")

    assert (mean, seeds) == (pytest.approx(0.15), 2)
    assert half_width == pytest.approx(12.706205 * 0.05, rel=1e-6)
    assert paired_difference(ours, theirs, "loss").mean == pytest.approx(-0.15)


def test_difference_of_devices_with_different_budgets():
    ours = {0: make_result([0.5] * 3, {"2": 0.1})}
    theirs = {0: make_result([0.5] * 3, {"3": 0.3})}

    difference = paired_difference(ours, theirs, "accuracy", ("2", "3"))

    assert difference == (pytest.approx(-0.2), None, 1)
    assert paired_difference(ours, theirs, "accuracy", ("2", "2")) is None


def test_runs_of_different_lengths_cannot_be_paired():
    with pytest.raises(ValueError, match="different rounds"):
        paired_difference(
            {0: make_result([0.5] * 3)}, {0: make_result([0.5] * 6)}, "accuracy"
        )


def test_devices_are_paired_by_order_or_by_budget():
    assert budgets_of({0: make_result([0.5], {"10": 0, "2": 0})}) == ["2", "10"]
    assert pair_devices(["2", "3"], ["2", "4"]) == [("2", "2"), ("3", "4")]
    assert pair_devices(["2", "4", "8"], ["8"]) == [("8", "8")]
    assert pair_devices(["2"], []) == []
