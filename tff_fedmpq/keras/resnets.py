"""Residual networks for small images (He et al. 2016, section 4.2): 6n + 2 layers.

Three stages of n blocks have 16, 32 and 64 filters; the second and third start with
stride 2. Deviation: where the number of filters changes, the shortcut is a 1x1
convolution (option B, 1 % more weights), not a strided and padded slice (option A).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

layers = tf.keras.layers

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
    """Builds a network of logits, float[batch, h, w, c] -> float[batch, num_classes].

    Args:
      depth: Number of weighted layers, 6n + 2 (8, 14, 20, 32, ...), else ValueError.
      input_shape: Height, width and channels of the images.
      num_classes: Number of logits.
      pixel_statistics: Mean and standard deviation per channel, by which the model
        normalizes its input; None takes the input unchanged.
      seed: Seed of the initial weights; None uses Keras's global generator.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth has to be 6n + 2 (8, 14, 20, ...), found {depth}.")
    seeds = _layer_seeds(seed)
    x = inputs = tf.keras.Input(input_shape, name="image")
    if pixel_statistics is not None:
        mean, std = (np.asarray(s, np.float64) for s in pixel_statistics)
        scale, offset = (1.0 / std).tolist(), (-mean / std).tolist()
        x = layers.Rescaling(scale, offset, name="pixels")(x)
    x = _conv_bn(x, seeds, _FILTERS[0], 3, 1, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(_FILTERS, 1):
        for block in range(1, (depth - 2) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _residual_block(x, seeds, filters, stride, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    initializer = tf.keras.initializers.HeNormal(next(seeds))
    x = layers.Dense(num_classes, kernel_initializer=initializer, name="logits")(x)
    # Logits and loss are float32 under every dtype policy.
    outputs = layers.Activation("linear", dtype="float32", name="output")(x)
    return tf.keras.Model(inputs, outputs, name=f"resnet{depth}")


def _layer_seeds(seed: int | None) -> Iterator[int | None]:
    """Yields an initializer seed for each layer of a model."""
    for number in itertools.count():
        # Seeds of neighbouring models must not overlap.
        yield None if seed is None else (_MAX_LAYERS * seed + number) % 2**31


def _conv_bn(x, seeds: Iterator, filters: int, size: int, stride: int, name: str):
    """Adds a convolution without bias, then BatchNorm."""
    x = layers.Conv2D(
        filters,
        size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer=tf.keras.initializers.HeNormal(next(seeds)),
        name=f"{name}_conv",
    )(x)
    return layers.BatchNormalization(
        momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-5, name=f"{name}_bn"
    )(x)


def _residual_block(x, seeds: Iterator, filters: int, stride: int, name: str):
    """Adds two 3x3 convolutions with a shortcut."""
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _conv_bn(x, seeds, filters, 1, stride, f"{name}_shortcut")
    x = _conv_bn(x, seeds, filters, 3, stride, f"{name}_1")
    x = layers.ReLU(name=f"{name}_1_relu")(x)
    x = _conv_bn(x, seeds, filters, 3, 1, f"{name}_2")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)
