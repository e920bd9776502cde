"""ReLU outputs of k bits with a straight-through gradient (Bengio et al. 2013).

    forward:   q(x) = r * round(clip(x, 0, c) / r),   r = c / (2**k - 1)
    backward:  dq/dx = 1 where 0 < x < c, else 0

FedMPQ states no range; here ``c = 6`` as in ReLU6: learned ranges were no better.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.quantization import representations

CLIP_VALUE = 6.0


def quantized_relu(
    x: tf.Tensor, bits: int | None, clip_value: float = CLIP_VALUE
) -> tf.Tensor:
    """Applies ReLU to `x`, floating point [...], and rounds to ``2**bits`` levels.

    The output has the shape and dtype of `x`. `bits` (k) is 1 to 8, or None for a plain
    ReLU; `clip_value` (c) is the largest output.
    """
    if bits is None:
        return tf.nn.relu(x)
    representations.check_bit_width(bits, "bits")

    @tf.custom_gradient
    def rounded(x):
        def gradient(upstream):
            return _gradient_inside(x, upstream, clip_value)

        return _round_to_levels(x, bits, clip_value), gradient

    return rounded(x)


# Both directions use fused TensorFlow kernels: written out, these formulas take a large
# part of a training step. For bfloat16 such kernels are missing or slow.


def _round_to_levels(x: tf.Tensor, bits: int, clip_value: float) -> tf.Tensor:
    """Rounds ``clip(x, 0, c)`` to the nearest of ``2**bits`` levels."""
    if bits == 1 or x.dtype == tf.float64:  # The fused kernel needs two bits or more.
        step = clip_value / (2**bits - 1)
        return step * tf.round(tf.clip_by_value(x, 0.0, clip_value) / step)
    quantized = tf.quantization.fake_quant_with_min_max_args(
        tf.cast(x, tf.float32), 0.0, clip_value, num_bits=bits
    )
    return tf.cast(quantized, x.dtype)


def _gradient_inside(x: tf.Tensor, upstream: tf.Tensor, clip_value: float) -> tf.Tensor:
    """Returns `upstream` where 0 < x < c (``x (c - x) > 0``), else 0.

    `Relu6Grad` is equivalent, but in TFF's worker binary its two comparisons are
    compiled to branches per element and took a third of a round.
    """
    dtype = x.dtype
    if dtype.size < 4:
        x, upstream = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    gradient = tf.raw_ops.ReluGrad(gradients=upstream, features=x * (clip_value - x))
    return tf.cast(gradient, dtype)
