"""Accuracy, BatchNorm's statistics for a device, and what each device gets."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.baselines.fedavg import fedavg_scheme
from tff_fedmpq.federated.fedmpq import fedmpq_scheme
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.keras import quantize_model
from tff_fedmpq.federated.evaluation import (
    Evaluator,
    estimate_batch_statistics,
    evaluate_recalibrated,
    evaluate_tiers,
)

SIDE, CLASSES, FILTERS = 6, 4, 5


def images(count, seed):
    rng = np.random.default_rng(seed)
    # Means differ from image to image, so that batches differ too.
    shift = rng.normal(size=[count, 1, 1, 2]) * 2
    noise = rng.normal(size=[count, SIDE, SIDE, 2])
    return (shift + noise).astype(np.float32)


def make_model(seed=3):
    tf.keras.utils.set_random_seed(seed)
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


def test_statistics_are_the_means_over_whole_batches():
    model, x = make_model(), images(37, 2)
    norm = model.get_layer("norm")
    norm.moving_mean.assign(tf.fill([FILTERS], 7.0))  # Forgotten.
    estimate_batch_statistics(model, x, batch_size=8)
    outputs = model.get_layer("conv")(x[:32]).numpy().astype(np.float64)
    batches = outputs.reshape(4, -1, FILTERS)  # Five images are left out.
    # The fused kernel keeps unbiased variances.
    means, variances = batches.mean(axis=1), batches.var(axis=1, ddof=1)
    np.testing.assert_allclose(norm.moving_mean, means.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variances.mean(axis=0), rtol=1e-4)
    assert norm.momentum == 0.9


def test_statistics_of_a_model_within_a_model_are_estimated_too():
    flat, x = make_model(), images(37, 2)
    nested = tf.keras.Sequential([tf.keras.Input([SIDE, SIDE, 2]), make_model()])
    for model in (flat, nested):
        estimate_batch_statistics(model, x, batch_size=8)
    for expected, found in zip(flat.get_weights(), nested.get_weights()):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_recalibrated_model_has_its_own_statistics():
    """And the weights that are given, whatever the evaluator's model held before."""
    weights_of, stale = make_model(), make_model()
    x, calibration = images(200, 4), images(64, 5)
    labels = np.random.default_rng(6).integers(0, CLASSES, 200)
    for variable in stale.variables:
        variable.assign(tf.ones_like(variable))
    weights = tff.learning.models.ModelWeights.from_model(weights_of)
    evaluator = Evaluator(stale, x, labels)
    before = Evaluator(weights_of, x, labels).evaluate()
    found = evaluate_recalibrated(evaluator, weights, calibration)
    estimate_batch_statistics(weights_of, calibration)
    assert found == Evaluator(weights_of, x, labels).evaluate()
    assert found.loss != before.loss  # Else this could not tell the two apart.


def test_each_tier_is_the_model_of_its_first_client():
    """One float model, quantized by hand for each budget: nothing is left over."""
    scheme = fedmpq_scheme(activation_bits=4)
    float_model = make_model()
    x, calibration = images(200, 4), images(64, 5)
    labels = np.random.default_rng(6).integers(0, CLASSES, 200)
    spec = ModelSpec.from_model(scheme.build_client_model(make_model))
    weights = spec.split(
        tuple(tf.constant(v) for v in float_model.trainable_variables),
        tuple(tf.constant(v) for v in float_model.non_trainable_variables),
    )
    budgets = np.array([8.0, 1.5, 8.0, 4.0])
    table = np.array([[8, 8], [2, 1], [3, 3], [3, 5]], np.int32)
    tiers = evaluate_tiers(
        scheme, make_model, weights, table, budgets, x, labels, calibration
    )
    assert list(tiers) == ["1.5", "4", "8"]
    found = []
    for budget, client in (("1.5", 1), ("4", 3), ("8", 0)):
        model = quantize_model(float_model, 8, 4)
        outer = (model.layers[0], model.layers[-1])
        for layer, value, bits in zip(outer, weights.kernels, table[client]):
            layer.quantized_kernel.bit_width.assign(bits)
            layer.quantized_kernel.quantize(value)
        as_sent = Evaluator(model, x, labels).evaluate()
        estimate_batch_statistics(model, calibration)
        estimated = Evaluator(model, x, labels).evaluate()
        tier = tiers[budget]
        assert tier["client"] == client
        assert tier["accuracy"] == estimated.accuracy
        assert tier["accuracy_aggregated_statistics"] == as_sent.accuracy
        assert tier["loss"] == pytest.approx(estimated.loss, rel=1e-5)
        found += [estimated.loss, as_sent.loss]
    assert len(set(found)) == 6  # Else this could not tell one tier from another.
    sizes = np.array([3 * 3 * 2 * FILTERS, 4 * 4 * FILTERS * CLASSES])
    assert tiers["4"]["mean_bit_width"] == pytest.approx([3, 5] @ sizes / sizes.sum())


def test_float_schemes_have_no_tiers():
    with pytest.raises(ValueError, match="no tiers"):
        evaluate_tiers(fedavg_scheme(), make_model, None, None, None, None, None, None)
