"""Accuracy and loss, the global model, and the models that devices get."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles.problem import device_bit_widths
from oracles.seeds import set_random_seed

from tff_fedmpq.baselines.fedavg import FedAvgConfig
from tff_fedmpq.federated.evaluation import (
    DeviceEvaluator,
    Evaluator,
    assign_global_weights,
)
from tff_fedmpq.keras import quantize_model

SIDE, CLASSES, FILTERS = 6, 4, 5


def images(count, seed):
    rng = np.random.default_rng(seed)
    # Means differ from image to image, so that batches differ too.
    shift = rng.normal(size=[count, 1, 1, 2]) * 2
    noise = rng.normal(size=[count, SIDE, SIDE, 2])
    return (shift + noise).astype(np.float32)


def make_model(seed=3):
    set_random_seed(seed)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input([SIDE, SIDE, 2]),
            layers.Conv2D(FILTERS, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(momentum=0.9, name="norm"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(CLASSES, name="logits"),
        ]
    )


@pytest.mark.parametrize("batch_size", [3, 20, 500])
def test_accuracy_and_loss_over_all_images(batch_size):
    model, x = make_model(), images(20, 0)
    labels = np.random.default_rng(1).integers(0, CLASSES, 20)
    logits = model(x, training=False).numpy().astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = Evaluator(model, x, labels, batch_size).evaluate()
    assert result.accuracy == np.mean(logits.argmax(axis=1) == labels)
    expected = -np.log(chances[np.arange(20), labels]).mean()
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_an_evaluator_sees_the_models_present_weights():
    x, labels = images(20, 0), np.zeros(20, np.int64)
    evaluator = Evaluator(make_model(), x, labels)
    first, other = evaluator.evaluate(), make_model(seed=4)
    evaluator.model.set_weights(other.get_weights())
    second = evaluator.evaluate()
    assert second == Evaluator(other, x, labels).evaluate()
    assert second.loss != first.loss


def test_all_weights_of_a_global_model_are_assigned():
    """Statistics among them, and activation quantizers left alone."""
    source = make_model(seed=5)
    source.get_layer("norm").moving_mean.assign(tf.fill([FILTERS], 7.0))
    weights = tff.learning.models.ModelWeights.from_model(source)
    model = quantize_model(make_model(), None, 4)
    for variable in model.trainable_variables:
        variable.assign(tf.ones_like(variable))
    assign_global_weights(model, weights)
    expected = quantize_model(source, None, 4)
    for value, wanted in zip(model.get_weights(), expected.get_weights()):
        np.testing.assert_array_equal(value, wanted)
    x = images(5, 1)
    np.testing.assert_array_equal(model(x), expected(x))


# --- devices ----------------------------------------------------------------


def test_each_budget_is_evaluated_by_its_first_client(runtime, process, problem):
    """One float model, quantized by hand for each budget: nothing is left over."""
    state = process.initialize()
    table = device_bit_widths(process, state)
    # The first and the third client have the same budget, other than in `problem`.
    clients = types.SimpleNamespace(
        scheme=process.scheme,
        budgets=np.array([8.0, 1.5, 8.0, 4.0]),
        client_ids=process.client_ids,
        model=process.model,
        assign_device_weights=process.assign_device_weights,
    )
    x, labels = problem.make_examples(200, 4)
    devices = DeviceEvaluator(clients, x, labels).evaluate(state)
    assert list(devices) == ["1.5", "4", "8"]
    sizes, float_model = problem.spec.layer_sizes, problem.model_fn()
    for budget, row in (("1.5", 1), ("4", 3), ("8", 0)):
        model = quantize_model(float_model, 8, 4, scale_rule="max")
        for name, bits in zip(("conv", "classifier"), table[row]):
            kernel = model.get_layer(name).quantized_kernel
            kernel.bit_width.assign(bits)
            kernel.quantize(float_model.get_layer(name).kernel)
        expected = Evaluator(model, x, labels).evaluate()
        device = devices[budget]
        assert device["client"] == problem.client_ids[row]
        assert device["accuracy"] == expected.accuracy
        assert device["loss"] == pytest.approx(expected.loss, rel=1e-5)
        mean = table[row] @ sizes / sizes.sum()
        assert device["mean_bit_width"] == pytest.approx(mean)
        # Packed codes and a float32 scale per kernel; float32 for the other weights.
        codes = sum(-(-size * bits // 8) for size, bits in zip(sizes, table[row]))
        others = problem.spec.num_weights - sizes.sum()
        assert device["num_bytes"] == codes + 4 * 2 + 4 * others
    # Else this could not tell one budget from another.
    assert len({device["loss"] for device in devices.values()}) == 3


def test_float_schemes_have_no_models_of_devices():
    process = types.SimpleNamespace(scheme=FedAvgConfig().compose())
    devices = DeviceEvaluator(process, images(2, 0), np.zeros(2, np.int64))
    assert devices.evaluate(None) == {}
