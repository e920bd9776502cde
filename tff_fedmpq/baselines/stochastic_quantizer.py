"""Unbiased quantization of updates to b bits (FedPAQ; QSGD, Alistarh et al. 2017).

    Q(x)_j = ||x|| sign(x_j) xi_j,      u_j = levels |x_j| / ||x||
    xi_j = (floor(u_j) + 1) / levels with probability u_j - floor(u_j),
           floor(u_j) / levels otherwise,       levels = 2**(b-1) - 1

A code is ``sign * levels * xi + levels``, from 0 to ``2 levels < 2**b``. One bit has no
level beside zero, so b is at least 2.

The norm is the largest magnitude by default: QSGD's L2 norm of a whole tensor makes
almost every entry round to zero (its variance grows with the tensor's size).
"""

from typing import Callable

import tensorflow as tf

Norm = Callable[[tf.Tensor], tf.Tensor]

MIN_UPDATE_BITS = 2
NORMS: dict[str, Norm] = {"max": lambda x: tf.reduce_max(tf.abs(x)), "l2": tf.norm}


def num_levels(bits: tf.Tensor) -> tf.Tensor:
    """Returns ``2**(b-1) - 1``, float32[]."""
    return tf.cast(tf.bitwise.left_shift(1, bits - 1) - 1, tf.float32)


def quantize(
    x: tf.Tensor, norm: tf.Tensor, bits: tf.Tensor, uniform: tf.Tensor
) -> tf.Tensor:
    """Returns codes uint8[...] of `x`, float32[...], rounded without bias.

    No magnitude of `x` is above `norm`, float32[]; `bits`, int32[], is 2 to 8;
    `uniform`, float32[...] in [0, 1), is the randomness.
    """
    levels = num_levels(bits)
    scaled = levels * tf.math.divide_no_nan(tf.abs(x), norm)
    whole = tf.floor(scaled)
    rounded = whole + tf.cast(uniform < scaled - whole, tf.float32)
    # The quotient of a float by itself may exceed one by a rounding error.
    magnitudes = tf.minimum(rounded, levels)
    return tf.cast(tf.sign(x) * magnitudes + levels, tf.uint8)


def dequantize(codes: tf.Tensor, norm: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Returns the values of `codes`, float32[...]."""
    levels = num_levels(bits)
    return norm * (tf.cast(codes, tf.float32) - levels) / levels
