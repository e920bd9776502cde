"""Budgets from kilobytes, against sizes counted by hand."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tff_fedmpq import budget_for, quantize_model, summary
from tff_fedmpq.allocation.device_budget import budgets_in_bits
from tff_fedmpq.lookup import kilobytes_of

layers = tf.keras.layers


def make_model():
    """Kernels of 2*2*3*10 = 120 and 40*20 = 800 weights, in float 10*4 + 30, 2 scales.

    Bytes in float: 4 * (40 + 10 + 20 + 2) = 288; one bit per weight: 115. The second
    layer, 40 to 20 numbers, needs less memory than the first, 27 to 40.
    """
    return tf.keras.Sequential(
        [
            tf.keras.Input([3, 3, 3]),
            layers.Conv2D(10, 2, name="conv"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(20, name="dense"),
        ]
    )


def test_flash():
    budget = budget_for(make_model(), flash_kb=0.288 + 0.345)
    assert budget.bits == pytest.approx(3.0) and budget.binds == "flash"
    assert budget.float_bytes == 288 and budget.code_bytes == pytest.approx(345)
    assert "flash binds" in str(budget)


def test_ram_holds_activations_too():
    # BatchNorm takes and gives 40 numbers, in float32.
    budget = budget_for(make_model(), ram_kb=0.288 + 0.320 + 0.460)
    assert budget.activation_bytes == 320
    assert budget.bits == pytest.approx(4.0) and budget.binds == "ram"


def test_uplink_is_kilobits_per_second():
    budget = budget_for(
        make_model(), flash_kb=1000, uplink_kbps=8, seconds_per_round=0.288 + 0.23
    )
    assert budget.bits == pytest.approx(2.0) and budget.binds == "uplink"
    assert budget.limits["flash"] > 8


def test_plenty_is_eight_bits_and_nothing_binds():
    budget = budget_for(make_model(), flash_kb=100)
    assert (budget.bits, budget.binds) == (8.0, "")
    assert budget_for(make_model()).bits == 8.0


def test_a_model_of_these_bits_has_these_bytes():
    model = quantize_model(make_model(), 5)
    assert summary(model).num_bytes == 288 + 575
    assert budget_for(model, flash_kb=0.863).bits == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"flash_kb": 0.4}, "flash allows 0.4 kB of 0.403, of which 0.288"),
        ({"ram_kb": 0.7}, "ram allows 0.7 kB of 0.723, of which 0.608"),
        ({"uplink_kbps": 1, "seconds_per_round": 1}, "uplink allows 0.125 kB"),
        ({"flash_kb": float("nan")}, "flash"),
        ({"uplink_kbps": 1}, "belong together"),
    ],
)
def test_what_does_not_fit_is_named(limits, message):
    with pytest.raises(ValueError, match=message):
        budget_for(make_model(), **limits)


def test_budgets_in_kilobytes():
    budgets = {"a": 2, "b": "0.633 kB", "c": "100kB"}
    assert budgets_in_bits(budgets, make_model()) == pytest.approx(
        {"a": 2, "b": 3.0, "c": 8.0}
    )
    for text in ("40", "-1 kB", "4 MB", ""):
        with pytest.raises(ValueError, match="40 kB"):
            kilobytes_of(text)
