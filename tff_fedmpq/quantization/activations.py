"""Activations of k bits with a straight-through gradient (Bengio et al. 2013).

    forward:   q(y) = r * round(clip(y, l, h) / r),   r = (h - l) / (2**k - 1)
    backward:  dq/dy = 1 within the range l to h, else 0

of the output y of any activation function; `l` moves so that zero is a level. FedMPQ
states no range; that of a ReLU is 0 to 6 as in ReLU6: learned ranges were no better.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization import representations

CLIP_VALUE = 6.0
_MAX_BITS = 8

# Ranges of activation functions by name; 6 stands for no upper limit.
RANGES = {
    "elu": (-1.0, CLIP_VALUE),
    "gelu": (-0.17, CLIP_VALUE),
    "hard_sigmoid": (0.0, 1.0),
    "leaky_relu": (-0.2 * CLIP_VALUE, CLIP_VALUE),
    "mish": (-0.309, CLIP_VALUE),
    "relu": (0.0, CLIP_VALUE),
    "relu6": (0.0, CLIP_VALUE),
    "selu": (-1.76, CLIP_VALUE),
    "sigmoid": (0.0, 1.0),
    "silu": (-0.279, CLIP_VALUE),
    "softplus": (0.0, CLIP_VALUE),
    "softsign": (-1.0, 1.0),
    "swish": (-0.279, CLIP_VALUE),
    "tanh": (-1.0, 1.0),
}


def quantized_relu(
    x: tf.Tensor,
    bits: int | None,
    clip_value: float = CLIP_VALUE,
    training: bool = True,
) -> tf.Tensor:
    """Applies ReLU to `x`, floating point [...], and rounds to ``2**bits`` levels.

    The output has the shape and dtype of `x`. `bits` (k) is 1 to 8, or None for a plain
    ReLU; `clip_value` (c) is the largest output. Its gradient is 1 where 0 < x < c.
    `training` is that of `quantize_range`.
    """
    if bits is None:
        return tf.nn.relu(x)
    representations.check_bit_width(bits, "bits")

    @tf.custom_gradient
    def rounded(x):
        def gradient(upstream):
            return _gradient_inside(x, upstream, clip_value)

        return quantize_range(x, bits, 0.0, clip_value, training), gradient

    return rounded(x)


def quantize_range(
    x: tf.Tensor, bits: int, low: float, high: float, training: bool = True
) -> tf.Tensor:
    """Rounds `x`, floating point [...], to ``2**bits`` levels from `low` to `high`.

    The levels are moved so that zero is one. Without `training`, they are some of an
    8-bit grid, as TFLite has no other integers: slower, with equal outputs.
    """
    largest = 2**bits - 1
    step = (high - low) / largest
    zero_point = min(max(round(-low / step), 0), largest)
    low, high = -zero_point * step, (largest - zero_point) * step
    # Both directions use fused TensorFlow kernels: written out, these formulas take a
    # large part of a training step. For bfloat16 such kernels are missing or slow.
    if x.dtype == tf.float64 or (bits == 1 and training):  # No fused kernel.
        y = tf.clip_by_value(x, low, high)
        return y + tf.stop_gradient(step * tf.round(y / step) - y)
    y = tf.cast(x, tf.float32)
    if not training:
        y, bits = tf.clip_by_value(y, low, high), _MAX_BITS
        low, high = _wider_range(low, high, largest)
    y = tf.quantization.fake_quant_with_min_max_args(y, low, high, num_bits=bits)
    return tf.cast(y, x.dtype)


def _wider_range(low: float, high: float, largest: int) -> tuple[float, float]:
    """Returns a range of 256 levels, from `low`, whose float32 step is the given's."""
    low32, high32 = np.float32(low), np.float32(high)
    step = (high32 - low32) / np.float32(largest)
    wider = low32 + np.float32(2**_MAX_BITS - 1) * step
    tries = wider + np.spacing(wider) * np.arange(-2, 3, dtype=np.float32)
    steps = (tries - low32) / np.float32(2**_MAX_BITS - 1)
    return low, float(tries[np.argmin(np.abs(steps - step))])


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
