"""Activations of k bits with a straight-through gradient.

A rectified activation is clipped to ``[0, c]`` and rounded to ``2**k - 1`` steps::

    forward:   q(x) = r * round(clip(x, 0, c) / r),   r = c / (2**k - 1)
    backward:  dq/dx = 1 where 0 < x < c, else 0

(straight-through estimator, Bengio et al. 2013). The range is fixed at ``c = 6``, as
ReLU6 has it: learned or tracked ranges were no better (FedMPQ leaves it open).
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.quantization import representation

CLIP_VALUE = 6.0


def quantized_relu(
    x: tf.Tensor, bits: int | None, clip_value: float = CLIP_VALUE
) -> tf.Tensor:
    """Applies ReLU and quantizes its output to `bits` bits.

    Args:
      x: floating point [...].
      bits: k, 1 to 8, or None for a plain ReLU.
      clip_value: c, the largest value that is kept.

    Returns:
      As `x` in shape and dtype, with at most ``2**bits`` distinct values.
    """
    if bits is None:
        return tf.nn.relu(x)
    representation.check_bit_width(bits, "bits")

    @tf.custom_gradient
    def rounded(x):
        def gradient(upstream):
            return _gradient_inside(x, upstream, clip_value)

        return _round_to_levels(x, bits, clip_value), gradient

    return rounded(x)


# Both directions use kernels of TensorFlow's: written out, their formulas are a large
# part of a training step. bfloat16 has none of those kernels, or slow ones.


def _round_to_levels(x: tf.Tensor, bits: int, clip_value: float) -> tf.Tensor:
    """Rounds ``clip(x, 0, c)`` to the nearest of ``2**bits`` levels."""
    if bits == 1 or x.dtype == tf.float64:  # The fused kernel begins at two bits.
        step = clip_value / (2**bits - 1)
        return step * tf.round(tf.clip_by_value(x, 0.0, clip_value) / step)
    quantized = tf.quantization.fake_quant_with_min_max_args(
        tf.cast(x, tf.float32), 0.0, clip_value, num_bits=bits
    )
    return tf.cast(quantized, x.dtype)


def _gradient_inside(x: tf.Tensor, upstream: tf.Tensor, clip_value: float) -> tf.Tensor:
    """Returns `upstream` where 0 < x < c, that is where ``x (c - x) > 0``, else 0.

    `Relu6Grad` says the same, but in TFF's worker, which is compiled otherwise than
    TensorFlow's Python package, its two comparisons branch at every number: it took a
    third of a round.
    """
    dtype = x.dtype
    if dtype.size < 4:
        x, upstream = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    gradient = tf.raw_ops.ReluGrad(gradients=upstream, features=x * (clip_value - x))
    return tf.cast(gradient, dtype)
