"""Trains five kinds of tasks by FedMPQ, and beside it the same model by Keras.

    python examples/federated_tasks.py --task=regression

Tasks: regression of a table, several labels per image, next-character prediction by an
LSTM, classification with sample weights, and EMNIST's characters. None needs a
download; `--download` takes the real EMNIST in place of TFF's synthetic one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any, Callable, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # No start-up notes of TensorFlow.

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from sklearn import datasets  # noqa: E402

import tff_fedmpq  # noqa: E402

# isort: split
import tensorflow_federated as tff  # noqa: E402

tf.get_logger().setLevel("ERROR")
layers = tf.keras.layers
BUDGETS = {"watch": 4, "phone": 6, "laptop": 8}


class Task(NamedTuple):
    """A task: its data, and what `tf.keras.Model.compile` gets."""

    make_layers: Callable[[], list[Any]]
    examples: tuple[np.ndarray, ...]  # x, y and perhaps sample weights.
    loss: Any
    metric: Any
    learning_rate: float


def regression() -> Task:
    """Returns the progress of diabetes, in standard deviations, by ten numbers."""
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = ((a - a.mean(axis=0)) / a.std(axis=0) for a in (x, y[:, np.newaxis]))
    return Task(
        lambda: [
            tf.keras.Input([10]),
            layers.Dense(32, activation="relu"),
            layers.Dense(1),
        ],
        (x.astype("float32"), y.astype("float32")),
        "mse",
        tf.keras.metrics.MeanAbsoluteError(name="mean_absolute_error"),
        0.02,
    )


def multilabel() -> Task:
    """Returns which of three properties a digit has: even, prime, above four."""
    x, digit = datasets.load_digits(return_X_y=True)
    labels = [digit % 2 == 0, np.isin(digit, [2, 3, 5, 7]), digit > 4]
    return Task(
        lambda: [
            tf.keras.Input([64]),
            layers.Dense(64, activation="relu"),
            layers.Dense(3),
        ],
        ((x / 16).astype("float32"), np.stack(labels, axis=1).astype("float32")),
        tf.keras.losses.BinaryCrossentropy(from_logits=True),
        tf.keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy"),
        0.1,
    )


def characters() -> Task:
    """Returns the next characters of texts that come with NumPy and TensorFlow."""
    text = "".join(str(value.__doc__) for value in (np.dot, np.fft, np.sum, tf.map_fn))
    alphabet = sorted(set(text))
    codes = np.array([alphabet.index(c) for c in text], np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(codes, 21)[::7]
    return Task(
        lambda: [
            tf.keras.Input([20], dtype="int32"),
            layers.Embedding(len(alphabet), 16),
            layers.LSTM(48, return_sequences=True),
            layers.Dense(len(alphabet)),
        ],
        (windows[:, :-1], windows[:, 1:]),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        0.5,
    )


def weighted() -> Task:
    """Returns digits, of which the rare ones weigh more."""
    x, digit = datasets.load_digits(return_X_y=True)
    kept = (digit < 5) | (np.arange(len(digit)) % 4 == 0)
    x, digit = x[kept], digit[kept]
    weights = 1 / np.bincount(digit)[digit]
    return Task(
        lambda: [
            tf.keras.Input([64]),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ],
        (
            (x / 16).astype("float32"),
            digit.astype("int32"),
            (weights / weights.mean()).astype("float32"),
        ),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        0.1,
    )


def emnist(download: bool = False) -> Task:
    """Returns EMNIST's digits and letters by some of its writers.

    Without a download these are the few images that TFF has, shifted and with noise.
    """
    source = tff.simulation.datasets.emnist
    data = (
        source.load_data(only_digits=False)[0] if download else source.get_synthetic()
    )
    rng = np.random.default_rng(0)
    images, labels = [], []
    for writer in data.client_ids[:30]:
        for example in data.create_tf_dataset_for_client(writer).as_numpy_iterator():
            for _ in range(1 if download else 20):
                image = 1 - example["pixels"]  # Ink is 1, paper 0.
                if not download:
                    image = np.roll(image, rng.integers(-2, 3, 2), axis=(0, 1))
                    image = image + rng.normal(0, 0.2, image.shape)
                images.append(image)
                labels.append(example["label"])
    return Task(
        lambda: [
            tf.keras.Input([28, 28]),
            layers.Reshape([28, 28, 1]),
            layers.Conv2D(8, 5, strides=2, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(62),
        ],
        (np.array(images, "float32"), np.array(labels, "int32")),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        tf.keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        0.05,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "regression": regression,
    "multilabel": multilabel,
    "characters": characters,
    "weighted": weighted,
    "emnist": emnist,
}


def run(
    task: Task, rounds: int = 10, epochs: int = 3, seed: int = 0, **settings: Any
) -> dict[str, float]:
    """Returns the metric on held-out examples: at first, by FedMPQ, and by Keras.

    `settings` are further ones of `FedMPQConfig`.
    """

    def model_fn() -> tf.keras.Model:
        tf.keras.utils.set_random_seed(seed)
        return tf.keras.Sequential(task.make_layers())

    order = np.random.default_rng(seed).permutation(len(task.examples[0]))
    held_out, train = np.split(order, [len(order) // 5])
    parts = dict(zip(BUDGETS, np.array_split(train, len(BUDGETS))))
    arrays = {
        client: tuple(a[np.sort(part)] for a in task.examples)
        for client, part in parts.items()
    }
    config = tff_fedmpq.FedMPQConfig(
        rounds=rounds,
        epochs=epochs,
        batch_size=32,
        learning_rate=task.learning_rate,
        float_learning_rate=task.learning_rate,
        **settings,
    )
    with tempfile.TemporaryDirectory() as directory, tff_fedmpq.local_runtime():
        process = tff_fedmpq.build_fedmpq(
            model_fn,
            BUDGETS,
            tff_fedmpq.client_data_from_arrays(arrays, directory),
            config,
            loss=task.loss,
            metrics=[task.metric],
            seed=seed,
        )
        state = process.initialize()
        for number in range(1, rounds + 1):
            state, metrics = process.next(state, list(BUDGETS))
            train_metrics = metrics["client_work"]["train"]
            values = ", ".join(f"{k} {v:.3f}" for k, v in train_metrics.items())
            print(f"round {number}: {values}", flush=True)

    central = model_fn()
    sgd = tf.keras.optimizers.SGD(task.learning_rate, momentum=0.9)
    central.compile(sgd, task.loss)
    examples = [a[train] for a in task.examples]
    central.fit(
        *examples[:2],
        sample_weight=examples[2] if len(examples) > 2 else None,
        batch_size=32,
        epochs=rounds * epochs,
        verbose=0,
    )
    models = {
        "initial": model_fn(),
        "global model": process.global_model(state),
        "device of 4 bits": process.device_model(state, "watch"),
        "central": central,
    }
    x, y = (a[held_out] for a in task.examples[:2])
    results = {}
    for name, model in models.items():
        task.metric.reset_state()
        task.metric.update_state(y, model(x, training=False))
        results[name] = float(task.metric.result())
    return results


def main() -> None:
    """Runs the task that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=TASKS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--download", action="store_true", help="the real EMNIST")
    arguments = parser.parse_args()
    for name in arguments.task or TASKS:
        task = (
            emnist(True) if name == "emnist" and arguments.download else TASKS[name]()
        )
        print(f"== {name}")
        for model, value in run(task, arguments.rounds).items():
            print(f"{model}: {task.metric.name} {value:.3f}")


if __name__ == "__main__":
    main()
