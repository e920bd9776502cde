"""FP32 FedAvg: as TFF's own, to float rounding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.baselines.fedavg import FedAvgConfig, build_fedavg
from tff_fedmpq.federated.messages import BIT_ITEMS

EPOCHS, RATE, MOMENTUM = 3, 0.05, 0.9
ALL_EXAMPLES = 100  # More than a client has: the order of its examples is all one.


def model_without_batch_norm():
    layers = tf.keras.layers
    normal = [tf.keras.initializers.RandomNormal(stddev=0.2, seed=i) for i in (1, 2)]
    return tf.keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, strides=2, kernel_initializer=normal[0]),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, kernel_initializer=normal[1]),
        ]
    )


@pytest.fixture(scope="module")
def our_process(runtime, problem):
    config = FedAvgConfig(
        epochs=EPOCHS,
        batch_size=ALL_EXAMPLES,
        learning_rate=RATE,
        learning_rate_decay="none",
        momentum=MOMENTUM,
        weight_decay=0.0,
    )
    return build_fedavg(
        model_without_batch_norm, problem.budgets, problem.client_data, config
    )


@pytest.fixture(scope="module")
def tffs_process(runtime, problem):
    def model_fn():
        return tff.learning.models.from_keras_model(
            model_without_batch_norm(),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=(
                tf.TensorSpec([None, 8, 8, 3], tf.float32),
                tf.TensorSpec([None], tf.int32),
            ),
        )

    return tff.learning.algorithms.build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(RATE, MOMENTUM),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )


def test_agrees_with_tffs_fed_avg(our_process, tffs_process, problem):
    """Two rounds of different clients, one of them without examples."""
    ours, theirs = our_process.initialize(), tffs_process.initialize()
    theirs = tffs_process.set_model_weights(theirs, our_process.get_model_weights(ours))
    start = our_process.get_model_weights(ours).trainable
    for participants in (["anna", "bert", "cléo"], ["bert", "dora"]):
        data = [
            tf.data.Dataset.from_tensor_slices(problem.examples[name])
            .batch(ALL_EXAMPLES)
            .repeat(EPOCHS)
            for name in participants
        ]
        ours = our_process.next(ours, participants).state
        theirs = tffs_process.next(theirs, data).state
    found = our_process.get_model_weights(ours).trainable
    expected = tffs_process.get_model_weights(theirs).trainable
    assert len(found) == len(expected) == 4
    for a, b, before in zip(found, expected, start):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert np.max(np.abs(a - before)) > 1e-3


def test_the_whole_model_goes_both_ways_in_float(our_process, problem):
    output = our_process.next(our_process.initialize(), ["bert", "dora"])
    weights = our_process.get_model_weights(output.state).trainable
    size = 32 * sum(w.size for w in weights)
    for direction in ("uplink_bits", "downlink_bits"):
        bits = output.metrics[direction]
        for row, name in enumerate(problem.client_ids):
            items = dict(zip(BIT_ITEMS, bits[row].tolist()))
            took_part = name in ("bert", "dora")
            assert items["float_parameters"] == (size if took_part else 0)
            assert items["codes"] == items["scales"] == 0
            assert (items["headers"] > 0) == took_part
    assert output.metrics["bit_widths"].shape == (4, 0)
    assert output.metrics["mean_bit_widths"].shape == (0,)


def test_there_are_no_codes_to_give_to_a_device(our_process):
    """The model of a device is the global model."""
    state = our_process.initialize()
    device = our_process.device_model(state, "cléo")
    for value, expected in zip(
        device.get_weights(), our_process.global_model(state).get_weights()
    ):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(ValueError, match="No client 'zoe'"):
        our_process.device_model(state, "zoe")
