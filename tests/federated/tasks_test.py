"""Tasks of many kinds, against training by Keras itself on the same examples."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles.seeds import set_random_seed

from tff_fedmpq.baselines.fedavg import FedAvgConfig, build_fedavg
from tff_fedmpq.federated import acceptance
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.local_training import LocalTrainer
from tff_fedmpq.federated.messages import QuantizedWeights
from tff_fedmpq.federated.tasks import Metrics, Task, split_example

layers, losses = tf.keras.layers, tf.keras.losses
ClientData = tff.simulation.datasets.TestClientData
# One step of plain SGD on all examples of a client.
ONE_STEP = FedAvgConfig(
    epochs=1,
    batch_size=1000,
    learning_rate=0.1,
    learning_rate_decay="none",
    momentum=0.0,
    weight_decay=0.0,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classes(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, count, shape).astype(np.int32)


def seeded(make):
    """Makes a `model_fn` with the same weights in every call."""

    @functools.wraps(make)
    def model_fn():
        set_random_seed(3)
        return make()

    return model_fn


def dense(units, inputs=4):
    return seeded(
        lambda: tf.keras.Sequential([tf.keras.Input([inputs]), layers.Dense(units)])
    )


@seeded
def two_inputs_and_outputs():
    a, b = tf.keras.Input([3], name="age"), tf.keras.Input([2, 2], name="photo")
    hidden = layers.Concatenate()([a, layers.Flatten()(b)])
    outputs = (
        layers.Dense(1, name="price")(hidden),
        layers.Dense(3, name="kind")(hidden),
    )
    return tf.keras.Model({"age": a, "photo": b}, list(outputs))


@seeded
def named_outputs():
    x = tf.keras.Input([4])
    return tf.keras.Model(x, {"left": layers.Dense(1)(x), "right": layers.Dense(2)(x)})


@seeded
def next_character():
    return tf.keras.Sequential(
        [
            tf.keras.Input([6]),
            layers.Embedding(5, 4, mask_zero=True),
            layers.LSTM(7, return_sequences=True),
            layers.Dense(5),
        ]
    )


@seeded
def both_ways():
    return tf.keras.Sequential(
        [
            tf.keras.Input([6]),
            layers.Embedding(5, 4, mask_zero=True),
            layers.Bidirectional(layers.SimpleRNN(3)),
            layers.Dense(2),
        ]
    )


@seeded
def regularized():
    l1, l2 = tf.keras.regularizers.L1(0.1), tf.keras.regularizers.L2(0.1)
    dense = layers.Dense(5, kernel_regularizer=l2, activity_regularizer=l1)
    return tf.keras.Sequential([tf.keras.Input([4]), dense, layers.Dense(1)])


@seeded
def segmentation():
    return tf.keras.Sequential(
        [tf.keras.Input([4, 4, 1]), layers.Conv2D(2, 3, padding="same")]
    )


def squared_error(labels, outputs):
    return tf.reduce_mean(tf.square(labels - outputs))


def softmax(units):
    return seeded(
        lambda: tf.keras.Sequential(
            [tf.keras.Input([4]), layers.Dense(units, activation="softmax")]
        )
    )


LOGITS = losses.SparseCategoricalCrossentropy(from_logits=True)
# model_fn, examples, and what `compile` gets: loss, metrics.
TASKS = {
    "function of labels [n, 1]": (
        dense(1), (draw(9, 4), draw(9, 1)), squared_error, ["mae"]),
    "function of labels [n]": (dense(1), (draw(9, 4), draw(9)), squared_error, []),
    "vector labels": (dense(3), (draw(9, 4), draw(9, 3)), "mse", ["mse", "mae"]),
    "a class": (
        dense(1), (draw(9, 4), draw(9, 1)), losses.Huber,
        [tf.keras.metrics.RootMeanSquaredError]),
    "reduction none": (
        dense(2), (draw(9, 4), draw(9, 2)),
        losses.MeanSquaredError(reduction="none"), []),
    "reduction sum": (
        dense(2), (draw(9, 4), draw(9, 2)),
        losses.MeanSquaredError(reduction="sum"), []),
    "a name": (
        softmax(3), (draw(9, 4), classes(3, 9)), "sparse_categorical_crossentropy",
        ["accuracy"]),
    "one-hot": (
        softmax(3), (draw(9, 4), np.eye(3, dtype=np.float32)[classes(3, 9)]),
        "categorical_crossentropy", ["accuracy"]),
    "one logit": (
        dense(1), (draw(9, 4), classes(2, 9)),
        losses.BinaryCrossentropy(from_logits=True),
        [tf.keras.metrics.BinaryAccuracy(threshold=0.0), tf.keras.metrics.AUC(20)]),
    "many labels": (
        dense(3), (draw(9, 4), classes(2, 9, 3)),
        losses.BinaryCrossentropy(from_logits=True),
        [tf.keras.metrics.BinaryAccuracy(threshold=0.0)]),
    "sample weights": (
        dense(1), (draw(9, 4), draw(9, 1), np.abs(draw(9))), "mse", ["mae"]),
    "two inputs and outputs": (
        two_inputs_and_outputs,
        ({"age": draw(9, 3), "photo": draw(9, 2, 2)}, (draw(9, 1), classes(3, 9))),
        {"price": "mse", "kind": LOGITS}, {"price": "mae", "kind": ["accuracy"]}),
    "named outputs": (
        named_outputs, (draw(9, 4), {"right": draw(9, 2), "left": draw(9, 1)}),
        ["mse", "mae"], []),
    "masked sequences": (
        next_character, (classes(5, 9, 6), classes(5, 9, 6, seed=1)), LOGITS,
        ["accuracy"]),
    "sequences both ways": (
        both_ways, (classes(5, 9, 6), classes(2, 9)), LOGITS, ["accuracy"]),
    "masks of images": (
        segmentation, (draw(9, 4, 4, 1), classes(2, 9, 4, 4)), LOGITS, ["accuracy"]),
}  # fmt: skip


def train_by_keras(model_fn, examples, loss, metrics):
    """Returns weights after one step, and what Keras measured in it."""
    model = model_fn()
    loss = tf.nest.map_structure(lambda x: x() if isinstance(x, type) else x, loss)
    metrics = [x() if isinstance(x, type) else x for x in metrics] if isinstance(
        metrics, list) else metrics  # fmt: skip
    # Op by op, which is quicker than tracing one step.
    sgd = tf.keras.optimizers.SGD(0.1)
    model.compile(sgd, loss, metrics, run_eagerly=True)
    measured = model.train_on_batch(*examples, return_dict=True)
    return [v.numpy() for v in model.trainable_variables], measured


def check_step(name, weights, train):
    """Compares weights after the step, and what was measured in it, with Keras's."""
    model_fn, examples, loss, metrics = TASKS[name]
    expected_weights, expected = train_by_keras(model_fn, examples, loss, metrics)
    before = model_fn().trainable_variables
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(expected_weights, before))
    for value, wanted in zip(weights, expected_weights):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)
    # Keras also reports the loss of each of several outputs.
    expected = {k: v for k, v in expected.items() if k in train}
    assert len(expected) == len(train) == 1 + len(tf.nest.flatten(metrics))
    for key, value in train.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-6)


def test_losses_of_layers_are_minimized_too(runtime):
    """Those of activations are made in every call, the first time without a batch."""
    examples = draw(9, 4), draw(9, 1)
    data = ClientData({"a": examples})
    process = build_fedavg(regularized, {"a": 4}, data, ONE_STEP, loss="mse")
    state = process.next(process.initialize(), ["a"]).state
    weights, _ = train_by_keras(regularized, examples, "mse", [])
    for value, wanted in zip(state.global_model_weights.trainable, weights):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)


def test_ragged_examples_are_to_be_padded():
    ragged = tf.RaggedTensorSpec([2, None], tf.float32)
    with pytest.raises(ValueError, match="dense tensors of one shape.*; pad"):
        split_example(({"a": ragged}, tf.TensorSpec([], tf.int32)))


def train_client(model_fn, examples, loss=None, metrics=None, seed=(1, 2)):
    """Returns the trained weights of a client by themselves, its sums and results."""
    model, example = model_fn(), ClientData({"a": examples}).element_type_structure
    task = Task.of(model, example, loss, metrics)
    trainer = LocalTrainer(model, ONE_STEP, task.loss, metrics=task.build_metrics())
    values = tuple(map(tf.convert_to_tensor, model.trainable_variables))
    weights = QuantizedWeights((), tf.zeros([0]), tf.zeros([0], tf.int32), values)
    x, y, w = split_example(tf.nest.map_structure(tf.constant, examples))
    trained, sums, _ = trainer.train(weights, x, y, tf.constant(seed), sample_weight=w)
    results = task.build_metrics().results(sums.metrics)
    return trained.float_parameters, sums, results


# In a round, those of other structures; the others differ in the client's step alone.
IN_A_ROUND = ("sample weights", "two inputs and outputs", "masked sequences")


@pytest.mark.parametrize("name", sorted(TASKS.keys() - set(IN_A_ROUND)))
def test_a_clients_step_is_that_of_keras(name):
    weights, sums, results = train_client(*TASKS[name])
    assert sums.count == 9
    check_step(name, weights, {"loss": sums.loss / sums.count, **results})


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_A_ROUND else pytest.param(name, marks=pytest.mark.slow)
        for name in TASKS
    ],
)
def test_a_step_in_a_round_is_that_of_keras(runtime, name):
    model_fn, examples, loss, metrics = TASKS[name]
    data = ClientData({"a": examples})
    process = build_fedavg(
        model_fn, {"a": 4}, data, ONE_STEP, loss=loss, metrics=metrics
    )
    state, measured = process.next(process.initialize(), ["a"])
    train = measured["client_work"]["train"]
    assert train.pop("num_examples") == 9
    check_step(name, state.global_model_weights.trainable, train)


@pytest.mark.slow
def test_regression_by_a_function_finds_the_weights(runtime):
    """Labels of shape [n, 1]: broadcast to [n, n], they would give weights near 0."""
    x = draw(60, 4)
    y = x @ np.float32([[1], [-2], [3], [0.5]])
    data = ClientData({name: (x[i::3], y[i::3]) for i, name in enumerate("abc")})
    config = FedAvgConfig(rounds=10, epochs=5, batch_size=10, weight_decay=0.0)
    process = build_fedavg(
        dense(1), dict.fromkeys("abc", 4), data, config, loss=squared_error
    )
    state = process.initialize()
    for _ in range(10):
        state, metrics = process.next(state, ["a", "b", "c"])
    kernel = state.global_model_weights.trainable[0]
    np.testing.assert_allclose(kernel[:, 0], [1, -2, 3, 0.5], atol=1e-3)
    train = metrics["client_work"]["train"]
    assert list(train) == ["loss", "num_examples"]  # No accuracy of a regression.
    assert train["loss"] < 1e-5


def test_metrics_are_sums_over_clients_and_those_of_each_are_keras_own(runtime):
    """Of clients with 1, 5, 24 and no examples, without a change of weights."""
    x, y = draw(30, 4), classes(2, 30)
    parts = {"a": slice(0, 1), "b": slice(1, 6), "c": slice(6, 30), "d": slice(0, 0)}
    data = ClientData({name: (x[part], y[part]) for name, part in parts.items()})
    make_metrics = lambda: [  # noqa: E731
        tf.keras.metrics.AUC(50, name="auc", from_logits=True),
        tf.keras.metrics.BinaryAccuracy(threshold=0.0),
        tf.keras.metrics.Precision(thresholds=0.0, name="precision"),
        tf.keras.metrics.BinaryIoU(threshold=0.0, name="iou"),
    ]
    loss = losses.BinaryCrossentropy(from_logits=True)
    config = FedAvgConfig(epochs=2, batch_size=4, learning_rate=0.0, weight_decay=0.0)
    process = build_fedavg(
        dense(1),
        dict.fromkeys("abcd", 4),
        data,
        config,
        loss=loss,
        metrics=make_metrics(),
        metrics_per_client=True,
    )
    state = process.initialize()
    _, metrics = process.next(state, ["d", "c", "b", "a"])
    model = dense(1)()
    model.compile(loss=loss, metrics=make_metrics())

    def by_keras(part):
        return model.evaluate(x[part], y[part], verbose=0, return_dict=True)

    rows, train = (metrics["client_work"][name] for name in ("clients", "train"))
    assert list(rows) == list(train)
    assert rows["num_examples"].tolist() == [2, 10, 48, 0]
    expected = by_keras(slice(None))  # Not the mean of the clients' means.
    assert train.pop("num_examples") == 60
    assert list(train) == list(expected)
    for name, value in train.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)
    for row, name in enumerate("abc"):
        for key, value in by_keras(parts[name]).items():
            np.testing.assert_allclose(rows[key][row], value, rtol=1e-5)
    # Of those without examples, or that do not take part, there is nothing.
    _, metrics = process.next(state, ["b", "d"])
    for key, values in metrics["client_work"]["clients"].items():
        assert values.shape == (4,) and (values[[0, 2, 3]] == 0).all()
        np.testing.assert_allclose(values[1], rows[key][1], rtol=1e-6)


def test_metrics_per_client_of_a_task_without_metrics(runtime):
    data = ClientData({"a": (draw(9, 4), draw(9, 1)), "b": (draw(3, 4), draw(3, 1))})
    process = build_fedavg(
        dense(1), {"a": 4, "b": 4}, data, ONE_STEP, loss="mse", metrics_per_client=True
    )
    _, metrics = process.next(process.initialize(), ["b"])
    rows = metrics["client_work"]["clients"]
    assert list(rows) == ["loss", "num_examples"]
    assert rows["num_examples"].tolist() == [0, 3]
    np.testing.assert_allclose(
        rows["loss"], [0, metrics["client_work"]["train"]["loss"]], rtol=1e-6
    )


@pytest.mark.parametrize("metrics", [None, []])
def test_an_accuracy_is_the_default_of_classes_only(metrics):
    examples = draw(9, 4), classes(3, 9)
    _, _, results = train_client(dense(3), examples, metrics=metrics)
    assert list(results) == (["accuracy"] if metrics is None else [])


def test_dropout_is_a_function_of_the_seed():
    """Which is one of round and client; their order has no effect on one batch."""

    @seeded
    def model_fn():
        return tf.keras.Sequential(
            [tf.keras.Input([4]), layers.Dropout(0.5), layers.Dense(2)]
        )

    examples = draw(40, 4), classes(2, 40)
    first, again, other = (
        train_client(model_fn, examples, seed=seed)[0][0]
        for seed in ((3, 4), (3, 4), (3, 5))
    )
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 1e-4


@pytest.mark.slow
def test_codes_learn_a_regression(runtime):
    """FedMPQ, at 8 bits; the weights are in the range of the initial scale."""
    x = draw(200, 4)
    y = x @ np.float32([[0.5], [-0.9], [0.25], [0.7]])
    data = ClientData({name: (x[i::2], y[i::2]) for i, name in enumerate("ab")})
    config = FedMPQConfig(rounds=15, epochs=3, batch_size=10, learning_rate=0.03)
    process = build_fedmpq(
        dense(1), {"a": 8, "b": 8}, data, config, loss="mse", metrics=["mae"]
    )
    state = process.initialize()
    for _ in range(15):
        state, metrics = process.next(state, ["a", "b"])
    assert metrics["client_work"]["train"]["loss"] < 0.01 * np.var(y)


# --- what is wrong, said at the call ----------------------------------------


def never_called():
    raise AssertionError("A model was built.")


WRONG = {
    "budgets": ({"budgets": 4}, TypeError, "mapping of client ids"),
    "budgets of a set": ({"budgets": {"a", "b"}}, TypeError, "mapping of client ids"),
    "a loss that Keras lacks": ({"loss": "nll"}, ValueError, "Keras has no loss 'nll'"),
    "a loss that is none": ({"loss": 3}, TypeError, "loss is a Keras name"),
    "a metric that Keras lacks": (
        {"metrics": ["acuracy"]}, ValueError, "Keras has no metric 'acuracy'"),
    "a word for metrics per client": (
        {"metrics_per_client": "no"}, ValueError, "true or false"),
    "a metric that is none": ({"metrics": [3]}, TypeError, "metric is a Keras name"),
    "no seed": ({"seed": None}, TypeError, "seed has to be a whole number"),
    "half a seed": ({"seed": 1.5}, TypeError, "seed has to be a whole number"),
    "a huge seed": ({"seed": 2**70}, ValueError, "from 0 to"),
    "a negative seed": ({"seed": -1}, ValueError, "from 0 to"),
    "a class as config": ({"config": FedAvgConfig}, TypeError, "config has to be"),
    "arrays": ({"client_data": {"a": 1}}, TypeError, "client_data_from_arrays"),
    "a Keras optimizer": (
        {"server_optimizer_fn": tf.keras.optimizers.Adam}, TypeError, "build_adam"),
    "unknown argument": ({"model_aggregator": None}, TypeError, "model_aggregator"),
    "unknown clients": ({"budgets": {"zoe": 4}}, ValueError, r"no clients \['zoe'\]"),
    "an id twice": ({"budgets": {7: 4, "7": 4}}, ValueError, "given twice"),
    "an id that is none": ({"budgets": {1.5: 4}}, TypeError, "whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_sentence_before_a_model_is_built(problem, name):
    changed, kind, text = WRONG[name]
    arguments = {
        "model_fn": never_called,
        "budgets": problem.budgets,
        "client_data": problem.client_data,
        "config": ONE_STEP,
        **changed,
    }
    with pytest.raises(kind, match=text) as error:
        build_fedavg(**arguments)
    assert "\n" not in str(error.value)


def test_a_model_in_place_of_model_fn_is_refused(problem):
    with pytest.raises(TypeError, match="model_fn has to be a function"):
        build_fedavg(problem.model_fn(), *problem.setting[1:], ONE_STEP)
    with pytest.raises(TypeError, match="return a Keras model; found 3"):
        build_fedavg(lambda: 3, *problem.setting[1:], ONE_STEP)


UNFIT = {
    "one-hot labels": ((draw(9, 4), np.eye(3)[classes(3, 9)]), {}, "loss does not fit"),
    "features": ((draw(9, 5), classes(3, 9)), {}, "model does not take features"),
    "metrics": (
        (draw(9, 4), classes(3, 9)),
        {"metrics": [tf.keras.metrics.MeanIoU(2, name="iou")]}, "metrics do not fit"),
    "structure": (4 * (draw(9),), {}, r"pairs \(x, y\)"),
    "a reserved name": (
        (draw(9, 4), classes(3, 9)),
        {"metrics": [tf.keras.metrics.SparseCategoricalAccuracy(name="loss")]},
        "name 'loss'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_examples_that_do_not_fit_are_one_sentence(name):
    examples, options, text = UNFIT[name]
    data = ClientData({"a": examples})
    with pytest.raises(ValueError, match=text) as error:
        build_fedavg(dense(3), {"a": 4}, data, ONE_STEP, **options)
    assert "\n" not in str(error.value)


def test_batches_are_refused_with_the_mend(problem):
    data = problem.client_data.preprocess(lambda dataset: dataset.batch(2))
    with pytest.raises(ValueError, match=r"not batches; found .*unbatch"):
        build_fedavg(problem.model_fn, problem.budgets, data, ONE_STEP)


@pytest.mark.slow
def test_a_client_with_a_label_out_of_range_is_left_out_and_named(runtime):
    """Where TensorFlow itself would end the round in ten lines of gRPC."""
    data = ClientData({
        "ann": (draw(9, 4), classes(3, 9)),
        "bob": (draw(4, 4), np.int32([0, 2, 3, -1])),
    })  # fmt: skip
    process = build_fedavg(dense(3), {"ann": 4, "bob": 4}, data, ONE_STEP)
    state = process.initialize()
    alone, both = (process.next(state, ids) for ids in (["ann"], ["ann", "bob"]))
    named = acceptance.describe(both.metrics["rejected"], process.client_ids)
    assert list(named) == ["bob"] and "labels out of range" in named["bob"]
    for a, b in zip(
        alone.state.global_model_weights.trainable,
        both.state.global_model_weights.trainable,
    ):
        np.testing.assert_array_equal(a, b)


# --- metrics as such --------------------------------------------------------


def test_results_are_of_summed_variables():
    """Also of variables that take their shape from the first batch."""
    specs = tf.TensorSpec([2]), tf.TensorSpec([2])
    y, p = draw(20, 2, seed=1), draw(20, 2, seed=2)
    names = [tf.keras.metrics.R2Score(name="r2"), "mae"]
    parts = []
    for part in (slice(0, 3), slice(3, 20)):
        metrics = Metrics(names, ["output"], *specs)
        metrics.reset()
        metrics.update(tf.constant(y[part]), tf.constant(p[part]), None)
        parts.append(metrics.values())
    total = tf.nest.map_structure(tf.add, *parts)
    results = Metrics(names, ["output"], *specs).results(total)
    residual = np.sum((y - p) ** 2, axis=0)
    r2 = np.mean(1 - residual / np.sum((y - y.mean(axis=0)) ** 2, axis=0))
    np.testing.assert_allclose(results["r2"], r2, rtol=1e-4)
    np.testing.assert_allclose(results["mae"], np.abs(y - p).mean(), rtol=1e-5)
    assert list(results) == ["r2", "mae"]


def test_no_metrics_are_nothing():
    assert Metrics().values() == Metrics().zeros() == ()
    assert dict(Metrics().results(())) == {}
