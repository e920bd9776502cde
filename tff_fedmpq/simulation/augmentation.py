"""Standard augmentation of CIFAR-like images: random crop with padding, and flip.

Each image is padded with zeros on all four sides, a window of its original size is
cut out at a random place, and half of the windows are mirrored left to right.  Both
draws come from a stateless seed, so that the same seed gives the same images.
"""

from __future__ import annotations

import operator

import tensorflow as tf


def random_crop_and_flip(
    images: tf.Tensor, seed: tf.Tensor, padding: int = 4
) -> tf.Tensor:
    """Crops each image at random out of its padded self, and mirrors half of them.

    The whole batch is one gather: every pixel of the result is looked up in its own
    padded image.  Works in a `tf.function`, also with an unknown or empty batch.

    Args:
      images: uint8 or float [n, h, w, c]; h, w and c may be unknown too.
      seed: int32[2] (or int64), a stateless seed; one per batch.
      padding: Zeros added on each side, pixels, >= 0; offsets are 0..2*padding. In
        raw images zeros are black.

    Returns:
      The dtype and shape of `images`.

    Raises:
      ValueError: `images` is not of rank 4, or `padding` is negative.
    """
    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4:
        raise ValueError(
            f"images: expected shape [n, h, w, c], found {images.shape}; add a batch "
            "dimension with images[tf.newaxis]."
        )
    if operator.index(padding) < 0:
        raise ValueError(
            f"padding: expected 0 or more pixels, found {padding}; 4 is usual."
        )
    shape = tf.shape(images)
    count, height, width, channels = shape[0], shape[1], shape[2], shape[3]
    tops, lefts, flips = _draw(count, seed, padding)

    rows = tops[:, tf.newaxis] + tf.range(height)
    columns = tf.range(width)
    columns = tf.where(flips[:, tf.newaxis], width - 1 - columns, columns)
    columns += lefts[:, tf.newaxis]
    padded_width = width + 2 * padding
    pixels = rows[:, :, tf.newaxis] * padded_width + columns[:, tf.newaxis, :]

    margin = [padding, padding]
    padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
    num_pixels = (height + 2 * padding) * padded_width
    padded = tf.reshape(padded, [count, num_pixels, channels])
    return tf.ensure_shape(tf.gather(padded, pixels, batch_dims=1), images.shape)


def _draw(
    count: tf.Tensor, seed: tf.Tensor, padding: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Offsets int32[n] from the top and from the left, and whether to flip, bool[n]."""
    # One algorithm by name: the default is another one on another kind of device.
    seeds = tf.random.split(seed, 2, alg="philox")
    offsets = tf.random.stateless_uniform(
        [2, count], seeds[0], 0, 2 * padding + 1, tf.int32, alg="philox"
    )
    flips = tf.random.stateless_uniform([count], seeds[1], 0, 2, tf.int32, alg="philox")
    return offsets[0], offsets[1], tf.cast(flips, tf.bool)
