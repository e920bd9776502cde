"""Standard augmentation of CIFAR-like images: random crop with padding, and flip.

TensorFlow is imported by the call: data sets refer to their augmentation without it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def random_crop_and_flip(
    images: tf.Tensor, seed: tf.Tensor, padding: int = 4
) -> tf.Tensor:
    """Pads each image with zeros, crops it at random, and mirrors half of the crops.

    Dtype and shape are kept. Works in a `tf.function`, also with an empty batch.

    Args:
      images: Images uint8 or float [n, h, w, c]; all dimensions may be unknown.
      seed: Stateless seed of the batch, int32[2] or int64[2].
      padding: Number of zeros on each side, pixels >= 0; offsets are 0..2*padding.
    """
    import tensorflow as tf

    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4:
        raise ValueError(f"images: expected shape [n, h, w, c], found {images.shape}.")
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more pixels, found {padding}.")
    count, height, width, channels = tf.unstack(tf.shape(images))
    # The algorithm is named because the default depends on the kind of device.
    seeds = tf.random.split(seed, 2, alg="philox")
    draw = functools.partial(tf.random.stateless_uniform, dtype=tf.int32, alg="philox")
    tops, lefts = tf.unstack(draw([2, count], seeds[0], maxval=2 * padding + 1))
    flips = draw([count], seeds[1], maxval=2)

    # One gather for the batch: each pixel is looked up in its own padded image.
    rows = tops[:, tf.newaxis] + tf.range(height)
    columns = tf.range(width)
    columns = tf.where(flips[:, tf.newaxis] > 0, width - 1 - columns, columns)
    columns += lefts[:, tf.newaxis]
    padded_width = width + 2 * padding
    pixels = rows[:, :, tf.newaxis] * padded_width + columns[:, tf.newaxis, :]

    margin = [padding, padding]
    padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
    num_pixels = (height + 2 * padding) * padded_width
    padded = tf.reshape(padded, [count, num_pixels, channels])
    return tf.ensure_shape(tf.gather(padded, pixels, batch_dims=1), images.shape)
