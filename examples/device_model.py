"""Saves the models that devices of 2, 4 and 8 bits get, and loads them again.

Run it with: python examples/device_model.py

The files go to the folder device_models.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # No start-up notes of TensorFlow.

# First of all: on Python 3.12 and newer it prepares TensorFlow and TFF.
import tff_fedmpq  # noqa: E402

# isort: split
import tensorflow as tf  # noqa: E402
import tensorflow_federated as tff  # noqa: E402

from tff_fedmpq.federated.evaluation import Evaluator  # noqa: E402
from tff_fedmpq.simulation.data import load_digits  # noqa: E402

tf.get_logger().setLevel("ERROR")
folder = pathlib.Path("device_models")

# 1. A short training over three clients, as in examples/federated_own_data.py.
budgets = {"watch": 2, "phone": 4, "laptop": 8}  # Bits per weight.
digits = load_digits()
train_images = digits.train_images.astype("float32") / 255.0
test_images = digits.test_images.astype("float32") / 255.0
examples = {
    client_id: {"x": train_images[i::3], "y": digits.train_labels[i::3]}
    for i, client_id in enumerate(budgets)
}


def model_fn() -> tf.keras.Model:
    """Returns a small convolutional network."""
    tf.keras.utils.set_random_seed(0)
    return tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 1)),
            tf.keras.layers.Conv2D(16, 3, use_bias=False, name="conv1"),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.ReLU(),
            tf.keras.layers.Conv2D(32, 3, use_bias=False, name="conv2"),
            tf.keras.layers.BatchNormalization(),
            tf.keras.layers.ReLU(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(10, name="logits"),
        ]
    )


process = tff_fedmpq.build_fedmpq(
    model_fn,
    budgets,
    tff.simulation.datasets.TestClientData(examples),
    tff_fedmpq.FedMPQConfig(rounds=5, epochs=3, batch_size=16, learning_rate=0.03),
)
with tff_fedmpq.local_runtime():
    state = process.initialize()
    for _ in range(5):
        state = process.next(state, list(budgets)).state

# 2. Each device's model: a Keras model with the codes that the device would receive.
folder.mkdir(exist_ok=True)
print("device  budget  mean bits   bytes  accuracy  accuracy when loaded")
for client_id, budget in budgets.items():
    model = process.device_model(state, client_id)
    model.save(folder / f"{client_id}.keras")
    loaded = tf.keras.models.load_model(folder / f"{client_id}.keras")
    accuracies = [
        Evaluator(each, test_images, digits.test_labels).evaluate().accuracy
        for each in (model, loaded)
    ]
    stored = tff_fedmpq.summary(loaded)  # Bytes of packed codes, not of the file.
    print(
        f"{client_id:<6}  {budget:>6}  {stored.mean_bit_width:>9.2f}  "
        f"{stored.num_bytes:>6,}  {accuracies[0]:>8.3f}  {accuracies[1]:>8.3f}"
    )
