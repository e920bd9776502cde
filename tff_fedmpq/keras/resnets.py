"""Residual networks for small images (He et al. 2016, section 4.2): 6n + 2 layers.

Three stages of n blocks have 16, 32 and 64 filters; the second and third start with
stride 2. Deviation: where the number of filters changes, the shortcut is a 1x1
convolution (the paper's option B, 1 % more weights) instead of a strided slice with
zero padding (option A).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_MAX_LAYERS = 1_000  # Most layers of a model that draw initial weights.
_FILTERS = (16, 32, 64)
# Moving statistics have to follow a client in its few local steps: their half-life is 7
# steps, with the Keras default of 0.99 it is 69.
_BATCH_NORM_MOMENTUM = 0.9


def resnet20(input_shape=(32, 32, 3), num_classes=10, **kwargs) -> tf.keras.Model:
    """Returns ResNet-20 (0.27 million weights in 22 kernels); see `resnet`."""
    return resnet(20, input_shape, num_classes, **kwargs)


def resnet44(input_shape=(64, 64, 3), num_classes=200, **kwargs) -> tf.keras.Model:
    """Returns ResNet-44 (0.67 million weights in 46 kernels); see `resnet`."""
    return resnet(44, input_shape, num_classes, **kwargs)


def resnet(
    depth: int,
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    pixel_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int | None = None,
) -> tf.keras.Model:
    """Builds a residual network that returns logits.

    Args:
      depth: Number of weighted layers, 6n + 2: 8, 14, 20, 32, 44, 56, ...
      input_shape: Height, width and channels of the images.
      num_classes: Number of logits.
      pixel_statistics: Mean and standard deviation per channel, by which the model
        normalizes its input; None takes the input unchanged.
      seed: Seed of the initial weights; None uses Keras's global generator.

    Returns:
      Functional Keras model, float[batch, h, w, c] -> float[batch, num_classes].

    Raises:
      ValueError: If the depth is not of the form 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth has to be 6n + 2 (8, 14, 20, ...), found {depth}.")
    builder = _Builder(seed)
    inputs = tf.keras.Input(input_shape, name="image")
    x = inputs
    if pixel_statistics is not None:
        mean, std = (np.asarray(s, np.float64) for s in pixel_statistics)
        x = tf.keras.layers.Rescaling(
            (1.0 / std).tolist(), (-mean / std).tolist(), name="pixels"
        )(x)
    x = builder.conv_bn(x, _FILTERS[0], 3, 1, "stem")
    x = tf.keras.layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(_FILTERS):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            x = builder.block(x, filters, stride, f"stage{stage + 1}_block{block + 1}")
    x = tf.keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = tf.keras.layers.Dense(
        num_classes, kernel_initializer=builder.initializer(), name="logits"
    )(x)
    # Logits and loss are float32 under every dtype policy.
    outputs = tf.keras.layers.Activation("linear", dtype="float32", name="output")(
        logits
    )
    return tf.keras.Model(inputs, outputs, name=f"resnet{depth}")


class _Builder:
    """Adds layers with a new initializer seed for each."""

    def __init__(self, seed: int | None):
        self._seed = seed
        self._layer_numbers = itertools.count()

    def initializer(self) -> tf.keras.initializers.Initializer:
        if self._seed is None:
            return tf.keras.initializers.HeNormal()
        # Seeds of neighbouring models must not overlap.
        layer_seed = _MAX_LAYERS * self._seed + next(self._layer_numbers)
        return tf.keras.initializers.HeNormal(layer_seed % 2**31)

    def conv_bn(self, x, filters: int, kernel_size: int, stride: int, name: str):
        """Adds a convolution without bias, then BatchNorm."""
        x = tf.keras.layers.Conv2D(
            filters,
            kernel_size,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer=self.initializer(),
            name=f"{name}_conv",
        )(x)
        return tf.keras.layers.BatchNormalization(
            momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-5, name=f"{name}_bn"
        )(x)

    def block(self, x, filters: int, stride: int, name: str):
        """Adds two 3x3 convolutions with a shortcut."""
        shortcut = x
        if stride != 1 or x.shape[-1] != filters:
            shortcut = self.conv_bn(x, filters, 1, stride, f"{name}_shortcut")
        x = self.conv_bn(x, filters, 3, stride, f"{name}_1")
        x = tf.keras.layers.ReLU(name=f"{name}_1_relu")(x)
        x = self.conv_bn(x, filters, 3, 1, f"{name}_2")
        x = tf.keras.layers.Add(name=f"{name}_add")([x, shortcut])
        return tf.keras.layers.ReLU(name=f"{name}_relu")(x)
