"""The integer weight update (FedMPQ, Eq. 6-10).

The paper updates each bit plane by a signed power of two. With ``delta = s/(2**b-1)``,
``dL/dB_i = 2**(i-1) delta dL/dW`` (Eq. 5) and ``S(x) = 2**round(log2 x)``, plane ``i``
contributes ``2**(i-1) S(eta |dL/dB_i|)`` code units. All of it is one power of two
times a constant, and the sum over planes has a closed form: with
``g = dL/du = delta dL/dW``, the gradient on the code,

    t = S(eta |g|) * K,     K = sum_i 4**(i-1) = (4**b - 1) / 3

code units. Whole units are done, the rest is done with its probability (the paper's
Bernoulli parts with ``q_i <= 0``), which is one floor with a uniform number ``U``::

    u <- clip(u + floor(U - sign(g) t), 0, 2**b - 1)

The planes of the sum are the binary digits of the code, whatever it stands for: with
signs and magnitudes they are not those that the group Lasso and MSB pruning act on.

The paper prints ``2^(B-1)`` as the denominator in Eq. 8-10; ``2^B - 1`` is meant.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.quantization import representation as representation_lib

# As int32 has it: the bits 0xFF800000.
_FLOAT32_SIGN_AND_EXPONENT = -0x00800000
_SQRT2 = 1.4142135


def step_gain(bit_width: tf.Tensor) -> tf.Tensor:
    """Returns ``K = (4**b - 1) / 3``, float32[]: code units per unit of gradient."""
    largest = representation_lib.max_code(bit_width)  # m = 2**b - 1: K = m (m + 2) / 3.
    return largest * (largest + 2.0) / 3.0


def nearest_power_of_two(x: tf.Tensor) -> tf.Tensor:
    """Returns ``sign(x) 2**round(log2 |x|)``; 0 for 0 and subnormals, +-inf for NaN.

    ``round(log2 x) = floor(log2(x sqrt 2))``, and the floor of a float's logarithm is
    its exponent: clearing the mantissa is exact, and quicker than log and pow.

    Args:
      x: float32[...].
    """
    bits = tf.bitcast(x * _SQRT2, tf.int32)
    power = tf.bitwise.bitwise_and(bits, _FLOAT32_SIGN_AND_EXPONENT)
    return tf.bitcast(power, tf.float32)


def integer_update(
    codes: tf.Tensor,
    code_gradient: tf.Tensor,
    bit_width: tf.Tensor,
    learning_rate: tf.Tensor | float,
    uniform: tf.Tensor,
) -> tf.Tensor:
    """Takes one step of Eq. 6-10 in closed form.

    Args:
      codes: uint8[...].
      code_gradient: float32[...], ``dL/du``, the loss per code unit.
      bit_width: int32[].
      learning_rate: the paper's eta.
      uniform: float32[...] in [0, 1), the randomness of the fractional units.

    Returns:
      uint8[...], the new codes. Codes cannot show that training diverged: a gradient
      that is NaN makes them the least or the largest.
    """
    units = nearest_power_of_two(learning_rate * code_gradient) * step_gain(bit_width)
    return _move(codes, units, bit_width, uniform)


def stochastic_rounding_update(
    codes: tf.Tensor,
    code_gradient: tf.Tensor,
    bit_width: tf.Tensor,
    learning_rate: tf.Tensor | float,
    uniform: tf.Tensor,
) -> tf.Tensor:
    """Takes a plain SGD step of codes, rounded stochastically to whole units.

    As `integer_update`, which see, without the rounding to powers of two: on average
    the step is ``eta K g`` code units.
    """
    units = (learning_rate * step_gain(bit_width)) * code_gradient
    return _move(codes, units, bit_width, uniform)


def move_codes(codes: tf.Tensor, change: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
    """Returns codes moved by whole units and clipped to their range, uint8[...].

    Args:
      codes: uint8[...].
      change: float32[...], whole numbers of units.
      bit_width: int32[].
    """
    moved = tf.cast(codes, tf.float32) + change
    largest = representation_lib.max_code(bit_width)
    return tf.cast(tf.clip_by_value(moved, 0.0, largest), tf.uint8)


def _move(
    codes: tf.Tensor, units: tf.Tensor, bit_width: tf.Tensor, uniform: tf.Tensor
) -> tf.Tensor:
    """Moves codes down by `units`, rounded stochastically, within their range."""
    if codes.dtype != tf.uint8:
        raise TypeError(f"Expected codes of dtype uint8, found {codes.dtype.name}.")
    for what, tensor in (("gradient", units), ("uniform", uniform)):
        # One number for all codes would broadcast, and round them all alike.
        if not codes.shape.is_compatible_with(tensor.shape):
            raise ValueError(
                f"Expected {what} of the codes' shape {codes.shape}, found "
                f"{tensor.shape}."
            )
    # Rounded before the codes are added: beside them a small step would be lost.
    return move_codes(codes, tf.floor(uniform - units), bit_width)
