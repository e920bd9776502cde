"""Quantizes a trained Keras model to 4 bits and trains its integer codes.

python examples/quantize_keras_model.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # No start-up notes of TensorFlow.

import tensorflow as tf  # noqa: E402

import tff_fedmpq  # noqa: E402
from tff_fedmpq.simulation.data import load_digits  # noqa: E402

# Grey images of digits, 8x8 pixels: 1,437 for training, 360 for the test.
digits = load_digits()
train_images, test_images = digits.train_images / 255.0, digits.test_images / 255.0
train_labels, test_labels = digits.train_labels, digits.test_labels

# 1. A float model, trained as usual. It returns logits.
tf.keras.utils.set_random_seed(0)
model = tf.keras.Sequential(
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
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(train_images, train_labels, epochs=10, verbose=0)
_, float_accuracy = model.evaluate(test_images, test_labels, verbose=0)

# 2. The same model with weights of 4 bits and ReLU outputs of 4 bits. The weights are
#    integer codes; there is no float copy of them.
quantized = tff_fedmpq.quantize_model(model, bit_width=4, activation_bits=4)
optimizer = tff_fedmpq.IntegerSGD(learning_rate=0.01, float_learning_rate=0.01)
quantized.compile(optimizer, loss, metrics=["accuracy"])
_, quantized_accuracy = quantized.evaluate(test_images, test_labels, verbose=0)

# 3. Training moves the codes by whole units.
quantized.fit(train_images, train_labels, epochs=5, verbose=0)
_, trained_accuracy = quantized.evaluate(test_images, test_labels, verbose=0)

print(tff_fedmpq.summary(quantized))
print()
print(f"float model:          accuracy {float_accuracy:.3f}")
print(f"quantized to 4 bits:  accuracy {quantized_accuracy:.3f}")
print(f"trained at 4 bits:    accuracy {trained_accuracy:.3f}")
