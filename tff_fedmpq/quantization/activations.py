"""Activations of k bits with a straight-through gradient.

A rectified activation is clipped to ``[0, c]`` and rounded to ``2**k - 1`` steps::

    forward:   q(x) = r * round(clip(x, 0, c) / r),   r = c / (2**k - 1)
    backward:  dq/dx = 1 where 0 <= x <= c, else 0

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
    if x.dtype == tf.float32 and bits > 1:
        # TensorFlow's own kernel of the same formula and gradient; quicker.
        return tf.quantization.fake_quant_with_min_max_vars(
            x, 0.0, clip_value, num_bits=bits
        )
    return _round_straight_through(x, clip_value / (2**bits - 1), clip_value)


def _round_straight_through(x: tf.Tensor, step: float, clip_value: float) -> tf.Tensor:
    """Rounds ``clip(x, 0, c)`` to multiples of `step`; any floating point dtype."""

    @tf.custom_gradient
    def rounded(x):
        levels = tf.round(tf.clip_by_value(x, 0.0, clip_value) / step)

        def gradient(upstream):
            inside = tf.logical_and(x >= 0.0, x <= clip_value)
            return tf.where(inside, upstream, tf.zeros_like(upstream))

        return levels * tf.constant(step, x.dtype), gradient

    return rounded(x)
