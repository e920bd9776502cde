"""The network of the runs with differential privacy; no part of the package.

Noise grows with the number of weights, which is 1,210 here and 78 thousand in ResNet-8.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.simulation.data import ImageDataset


def small_network(dataset: ImageDataset, seed: int) -> tf.keras.Model:
    """Returns a network with one hidden layer and without BatchNorm."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(seed)
    return tf.keras.Sequential(
        [
            tf.keras.Input(dataset.image_shape),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(dataset.num_classes),
        ]
    )
