"""The integer weight update (FedMPQ, Eq. 6-10).

The paper updates each bit plane by a signed power of two. With ``delta = s/(2**b-1)``,
``dL/dB_i = 2**(i-1) delta dL/dW`` (Eq. 5) and ``S(x) = 2**round(log2 x)``, plane ``i``
contributes ``2**(i-1) S(eta |dL/dB_i|)`` code units. With the gradient on the code,
``g = dL/du = delta dL/dW``, the sum over planes has a closed form, in code units:

    t = S(eta |g|) * K,     K = sum_i 4**(i-1) = (4**b - 1) / 3

The fractional part of ``t`` is rounded stochastically (the paper's Bernoulli parts with
``q_i <= 0``), which is a floor with a uniform random number ``U``::

    u <- clip(u + floor(U - sign(g) t), 0, 2**b - 1)

The planes of this sum are the binary digits of the code in every representation. In
`SIGN_MAGNITUDE` they differ from the planes of the group Lasso and of MSB pruning.

What the paper prints otherwise: a ceiling in the place of ``round`` in Eq. 6, which
`step_rounding="up"` follows; ``q`` without its plane's ``i`` in Eq. 7; ``2^(B-1)`` in
the denominators of Eq. 8-10, where ``2^B - 1`` is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import representations
from tff_fedmpq.quantization.tracing import traced

_FLOAT32_SIGN_AND_EXPONENT = -0x00800000  # The bits 0xFF800000 as an int32.
_FLOAT32_MANTISSA = 0x007FFFFF
_SQRT2 = 1.4142135


def step_gain(bit_width: tf.Tensor) -> tf.Tensor:
    """Returns ``K = (4**b - 1) / 3``, float32[]: code units per unit of gradient."""
    largest = representations.max_code(bit_width)  # m = 2**b - 1: K = m (m + 2) / 3.
    return largest * (largest + 2.0) / 3.0


def nearest_power_of_two(x: tf.Tensor) -> tf.Tensor:
    """Returns ``sign(x) 2**round(log2 |x|)``; 0 for 0 and subnormals, +-inf for NaN.

    ``round(log2 x) = floor(log2(x sqrt 2))`` is the exponent of a float: clearing the
    mantissa is exact, and faster than log and pow.
    """
    bits = tf.bitcast(x * _SQRT2, tf.int32)
    power = tf.bitwise.bitwise_and(bits, _FLOAT32_SIGN_AND_EXPONENT)
    return tf.bitcast(power, tf.float32)


def power_of_two_above(x: tf.Tensor) -> tf.Tensor:
    """Returns ``sign(x) 2**ceil(log2 |x|)``; 0 for 0, inf for NaN.

    A mantissa that is not 0 carries into the exponent. Subnormals become 2**-126.
    """
    # NaN's carry would run into the sign.
    bits = tf.bitcast(tf.where(tf.math.is_nan(x), np.inf, x), tf.int32)
    power = tf.bitwise.bitwise_and(bits + _FLOAT32_MANTISSA, _FLOAT32_SIGN_AND_EXPONENT)
    return tf.bitcast(power, tf.float32)


# S of Eq. 6, by the name of `step_rounding`.
STEP_ROUNDINGS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "nearest": nearest_power_of_two,
    "up": power_of_two_above,
}


def integer_update(
    codes: tf.Tensor,
    code_gradient: tf.Tensor,
    bit_width: tf.Tensor,
    learning_rate: tf.Tensor | float,
    uniform: tf.Tensor,
    step_rounding: str = "nearest",
) -> tf.Tensor:
    """Returns the codes, uint8[...], after one step of Eq. 6-10 in closed form.

    `code_gradient` is ``dL/du`` in loss per code unit, float32[...]; `learning_rate` is
    eta; `uniform` are random numbers in [0, 1) for the rounding, float32[...];
    `step_rounding` names S: "nearest" or "up". A NaN in the gradient gives the smallest
    or largest code: codes cannot show a divergence.
    Other dtypes of codes raise TypeError, other shapes than theirs ValueError.
    """
    power_of_two = lookup(step_rounding, STEP_ROUNDINGS, "step_rounding")
    units = power_of_two(learning_rate * code_gradient) * step_gain(bit_width)
    if codes.dtype != tf.uint8:
        raise TypeError(f"Expected codes of dtype uint8, found {codes.dtype.name}.")
    for what, tensor in (("gradient", units), ("uniform", uniform)):
        # A single number would broadcast, and all codes would be rounded alike.
        if not codes.shape.is_compatible_with(tensor.shape):
            expected = f"Expected {what} of the codes' shape {codes.shape}"
            raise ValueError(f"{expected}, found {tensor.shape}.")
    # Rounded before the codes are added, so that small steps keep their precision.
    return move_codes(codes, tf.floor(uniform - units), bit_width)


# Traced once for all kernels of a shape: a deep network's graph is built sooner.
traced_integer_update = traced()(integer_update)


def move_codes(codes: tf.Tensor, change: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
    """Returns codes moved by whole units, float32[...], and clipped to their range."""
    moved = tf.cast(codes, tf.float32) + change
    largest = representations.max_code(bit_width)
    return tf.cast(tf.clip_by_value(moved, 0.0, largest), tf.uint8)
