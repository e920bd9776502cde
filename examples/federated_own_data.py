"""Trains one model over clients with their own arrays and their own bit budgets.

python examples/federated_own_data.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # No start-up notes of TensorFlow.

# First of all: on Python 3.12 and newer it prepares TensorFlow and TFF.
import tff_fedmpq  # noqa: E402

# isort: split
import tensorflow as tf  # noqa: E402
import tensorflow_federated as tff  # noqa: E402

from tff_fedmpq.federated.evaluation import Evaluator  # noqa: E402
from tff_fedmpq.simulation.data import load_digits  # noqa: E402

tf.get_logger().setLevel("ERROR")

# 1. Bits per weight that each client can afford, on average over the layers.
budgets = {"watch": 2, "phone": 4, "tablet": 4, "laptop": 8}

# 2. The clients' own data: images and class numbers. Here each client gets every
#    fourth image of a public data set; put your own arrays in their place.
digits = load_digits()
train_images = digits.train_images.astype("float32") / 255.0
test_images = digits.test_images.astype("float32") / 255.0
examples = {
    client_id: {"x": train_images[i::4], "y": digits.train_labels[i::4]}
    for i, client_id in enumerate(budgets)
}
client_data = tff.simulation.datasets.TestClientData(examples)


# 3. The model: any Sequential or functional Keras model that returns logits.
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


# 4. Rounds. In each, the named clients receive the model at their own bit-widths,
#    train its codes and send them back.
config = tff_fedmpq.FedMPQConfig(rounds=5, epochs=3, batch_size=16, learning_rate=0.03)
process = tff_fedmpq.build_fedmpq(model_fn, budgets, client_data, config)
with tff_fedmpq.local_runtime():
    state = process.initialize()
    for round_number in range(1, 6):
        state, metrics = process.next(state, ["watch", "phone", "tablet", "laptop"])
        accuracy = metrics["client_work"]["train"]["accuracy"]
        sent = metrics["uplink_bits"].sum() // 8
        print(f"round {round_number}: training accuracy {accuracy:.3f}, {sent:,} bytes")

# 5. The model that the 2-bit client gets, and the global model.
watch_model = process.device_model(state, "watch")
print(tff_fedmpq.summary(watch_model), end="\n\n")
models = {"watch": watch_model, "global model": process.global_model(state)}
for name, model in models.items():
    accuracy = Evaluator(model, test_images, digits.test_labels).evaluate().accuracy
    num_bytes = tff_fedmpq.summary(model).num_bytes
    print(f"{name}: accuracy {accuracy:.3f}, {num_bytes:,} bytes")
