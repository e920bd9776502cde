"""Clients that fail alone: the round names them and goes on without them."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.python.data.experimental.ops import testing

from tff_fedmpq.baselines.fedavg import FedAvgConfig
from tff_fedmpq.federated import left_out
from tff_fedmpq.federated.acceptance import REASONS, Rejection
from tff_fedmpq.federated.process import build_process

pytestmark = pytest.mark.faults


def data_with(problem, changes):
    """Returns the problem's data, some clients' datasets changed."""

    def read(client_id):
        found = dataset = problem.client_data.dataset_computation(client_id)
        for name, change in changes.items():
            changed = change(dataset.map(lambda *pair: pair))
            assert changed.element_spec == dataset.element_spec
            # One graph for all clients; to take -1 is to take all.
            is_bad = -tf.cast(tf.equal(client_id, name), tf.int64)
            found = changed.take(is_bad).concatenate(found.take(-1 - is_bad))
        return found

    ids = list(problem.examples)
    return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(ids, read)


def build(problem, data, **settings):
    config = problem.config(**settings)
    return build_process(
        problem.model_fn, problem.budgets, data, config, seed=problem.seed
    )


def fails_at_third(dataset):
    def check(i, pair):
        good = tf.debugging.Assert(tf.not_equal(i, 2), ["bad record", i])
        with tf.control_dependencies([good]):
            return tf.nest.map_structure(tf.identity, pair)

    return dataset.enumerate().map(check)


def is_no_image(dataset):
    def decode(images, labels):
        pixels = tf.io.decode_jpeg(tf.constant(b"\xff\xd8no image"))
        return images + tf.cast(tf.reduce_sum(pixels), tf.float32), labels

    return dataset.map(decode)


def has_no_file(dataset):
    missing = tf.data.TFRecordDataset(["nowhere/records"])
    return tf.data.Dataset.zip((dataset, missing)).map(lambda pair, _: pair)


def has_labels_out_of_range(dataset):
    return dataset.map(lambda images, labels: (images, labels + 9))


@pytest.fixture(scope="module")
def faulty(problem):
    """A process of two clients, bert and cléo, whose datasets raise."""
    return build(
        problem, data_with(problem, {"bert": is_no_image, "cléo": has_no_file})
    )


@pytest.fixture(scope="module")
def strict(problem):
    """A process whose rounds end with the error of a client."""
    bad = {"bert": fails_at_third, "cléo": has_labels_out_of_range}
    return build(problem, data_with(problem, bad), on_client_error="raise")


def test_a_dataset_that_raises_leaves_its_client_out(
    runtime, problem, process, faulty, caplog
):
    """Each is named with its cause; the round is that of the others, bit for bit."""
    state = expected = process.initialize()
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            output = faulty.next(state, ["bert", "cléo", "dora"])
        wanted = process.next(expected, ["dora"])
        state, expected = output.state, wanted.state
        rejected = output.metrics["rejected"].tolist()
        assert rejected == [0, Rejection.DATASET, Rejection.DATASET, 0]
        assert output.metrics["num_rejected"] == 2 and not output.metrics["abandoned"]
        tf.nest.map_structure(np.testing.assert_array_equal, state, expected)
    lines = [x.getMessage() for x in caplog.records if "left out" in x.getMessage()]
    assert len(lines) == 2 and "\n" not in lines[0]
    reason = REASONS[Rejection.DATASET]
    assert lines[0].startswith(f"Round 1, left out: client 'bert': {reason} (")
    assert f"client 'cléo': {reason} (" in lines[0] and "nowhere/" in lines[0]


def test_errors_of_clients_end_the_round_if_wished(runtime, strict):
    state = strict.initialize()
    with pytest.raises(ValueError, match="Round 1, left out: client 'bert': .*raises"):
        strict.next(state, ["bert", "dora"])
    assert strict.next(state, ["dora"]).metrics["num_rejected"] == 0
    with pytest.raises(ValueError, match="Round 1, left out: client 'anna': .* no ex"):
        strict.next(state, ["anna", "dora"])


def test_bad_labels_end_the_round_if_wished(runtime, strict):
    with pytest.raises(ValueError, match="'cléo': its examples have labels out of"):
        strict.next(strict.initialize(), ["cléo", "dora"])


def test_a_round_whose_clients_all_fail_is_abandoned(runtime, faulty):
    before = faulty.initialize()
    output = faulty.next(before, ["anna", "bert", "cléo"])  # Anna has no examples.
    assert output.metrics["abandoned"] and output.metrics["num_rejected"] == 3
    tf.nest.map_structure(
        np.testing.assert_array_equal,
        output.state.global_model_weights,
        before.global_model_weights,
    )


def test_missing_data_of_all_clients_are_one_line(runtime, problem, faulty):
    with pytest.raises(
        ValueError, match="of no client can be read; .*'cléo': .*nowh"
    ) as e:
        faulty.next(faulty.initialize(), ["cléo", "bert"])
    assert "\n" not in str(e.value)


def test_examples_of_unequal_shapes_are_to_be_padded(runtime, problem):
    def uneven(dataset):
        """Rows of images, one more in every example."""
        rows = lambda i, pair: (pair[0][: i + 1], pair[1])  # noqa: E731
        return dataset.enumerate().map(rows)

    data = problem.client_data.preprocess(uneven)
    inspect = left_out.build_inspection(data, 100)

    def run(client_ids):
        raise ValueError("of the round")

    with pytest.raises(ValueError, match=r"'dora': .* Pad examples to one shape\.$"):
        left_out.run_without_unreadable(run, ["dora"], inspect)


def test_a_client_without_examples_is_named(runtime, problem, process, caplog):
    """It takes part: it was sent a model, and answered."""
    with caplog.at_level(logging.WARNING):
        output = process.next(process.initialize(), ["anna", "dora"])
    assert "Round 1, left out: client 'anna': it has no examples" in caplog.messages
    assert output.metrics["rejected"].tolist() == [Rejection.NO_EXAMPLES, 0, 0, 0]
    assert output.metrics["num_rejected"] == 1
    assert output.metrics["uplink_bits"][0].sum() > 0


def slow(dataset):
    """An example every half second, for ever."""
    return dataset.repeat().apply(testing.sleep(500_000))


def test_a_slow_client_is_left_out(runtime, problem):
    """While it reads, in a scheme of float weights."""
    config = FedAvgConfig(epochs=1, batch_size=4, client_timeout_seconds=5.0)
    data = data_with(problem, {"cléo": slow})
    process = build_process(problem.model_fn, problem.budgets, data, config)
    output = process.next(process.initialize(), problem.client_ids)
    assert output.metrics["rejected"].tolist() == [21, 0, Rejection.TIME, 0]
    assert output.metrics["participations"].tolist() == [1, 1, 0, 1]


def test_training_stops_at_the_limit(runtime, problem):
    """A million epochs would take hours."""
    process = problem.build(epochs=1_000_000, client_timeout_seconds=1.0)
    output = process.next(process.initialize(), ["bert"])
    assert output.metrics["rejected"].tolist() == [0, 19, 0, 0]
    assert output.metrics["abandoned"]


def test_dropouts_are_drawn_by_the_seed(runtime, problem, process):
    """Anew in each round; a round is that of the clients that stay."""
    unreliable = problem.build(dropout_rate=0.5)
    state, seen = process.initialize(), set()
    for _ in range(4):
        output = unreliable.next(state, ["bert", "cléo", "dora"])
        rejected = output.metrics["rejected"].tolist()
        assert set(rejected) <= {0, Rejection.DROPOUT}
        stay = [c for c, code in zip(process.client_ids, rejected) if not code][1:]
        expected = process.next(state, stay)
        state = output.state
        tf.nest.map_structure(np.testing.assert_array_equal, state, expected.state)
        seen.add(tuple(stay))
    assert len(seen) > 1
