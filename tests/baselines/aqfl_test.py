"""AQFL: fixed precision, whatever training does; codes that learn."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from oracles.problem import device_bit_widths

from tff_fedmpq.baselines.aqfl import AQFLConfig, build_aqfl
from tff_fedmpq.federated import messages
from tff_fedmpq.federated.local_training import LocalTrainer
from tff_fedmpq.federated.tasks import Metrics


def test_everyone_keeps_the_bits_of_the_budget(runtime, problem):
    """Algorithm 2, pruning and Lasso are off: the table is that of the start."""
    process = build_aqfl(*problem.setting, AQFLConfig(epochs=1, batch_size=4))
    state = process.initialize()
    start = device_bit_widths(process, state)
    assert start.tolist() == [[4, 4], [8, 8], [5, 5], [2, 2]]  # Of a budget of 5.5.
    for participants in (["bert", "cléo"], problem.client_ids):
        output = process.next(state, participants)
        state = output.state
        np.testing.assert_array_equal(output.metrics["bit_widths"], start)
        np.testing.assert_array_equal(device_bit_widths(process, state), start)
    sizes = problem.spec.layer_sizes
    packed = [sum(-(-n * b // 8) * 8 for n, b in zip(sizes, row)) for row in start]
    for direction in ("uplink_bits", "downlink_bits"):
        np.testing.assert_array_equal(output.metrics[direction][:, 0], packed)


@pytest.fixture(scope="module")
def trainer_of(problem):
    """Rate and its unit -> scheme and trainer, traced once for all bit-widths."""

    @functools.cache
    def make(rate, unit):
        scheme = AQFLConfig(
            epochs=30,
            batch_size=6,
            learning_rate=rate,
            learning_rate_unit=unit,
            float_learning_rate=0.02,
            # A rate of codes suits a range: their steps grow with its square.
            scale_rule="least_squares",
        ).compose()
        model = scheme.build_client_model(problem.model_fn())
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        specs = tf.TensorSpec([4]), tf.TensorSpec([], tf.int32)
        metrics = Metrics(["accuracy"], ["output"], *specs)
        return scheme, LocalTrainer(model, scheme.training, loss, metrics=metrics)

    return make


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize(("rate", "unit"), [(0.3, "code"), (0.02, "weight")])
def test_codes_learn_by_either_rate(problem, trainer_of, rate, unit, bits):
    scheme, trainer = trainer_of(rate, unit)
    start = problem.scheme.build_global_model(problem.model_fn())
    weights = problem.spec.split(
        [v.numpy() for v in start.trainable_variables],
        [v.numpy() for v in start.non_trainable_variables],
    )
    received = messages.quantize_weights(
        weights,
        tf.fill([len(weights.kernels)], bits),
        scheme.weights.representation,
        scheme.weights.scale_rule,
    )
    images, labels = problem.make_examples(24, seed=9)
    # One draw of the rounding may be unlucky; four are not.
    examples = tf.constant(images), tf.constant(labels)
    runs = [
        trainer.train(received, *examples, tf.constant([1, seed])) for seed in range(4)
    ]
    trained = runs[0][0]
    np.testing.assert_array_equal(trained.bit_widths, received.bit_widths)
    np.testing.assert_array_equal(trained.scales, received.scales)
    for before, after in zip(received.codes, trained.codes):
        assert after.dtype == tf.uint8 and np.max(after) < 2**bits
        assert np.any(before != after)
    # Over thirty epochs of examples as bright as their label says.
    totals = [sums for _, sums, _ in runs]
    count = sum(float(sums.count) for sums in totals)
    assert sum(float(sums.metrics[0][0]) for sums in totals) / count > 0.8
    assert sum(float(sums.loss) for sums in totals) / count < 0.6 * np.log(3)
