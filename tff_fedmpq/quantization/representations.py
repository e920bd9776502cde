"""Representations of weights by codes of b bits (FedMPQ, Eq. 3 and 14).

A quantized layer is an array of codes ``u`` in ``0 .. 2**b - 1``, one scale ``s`` and
one bit-width ``b``. Both representations follow Eq. 3::

    W = delta * (u - z(b)),        delta = s / (2**b - 1)

and differ in the zero point ``z`` and in their bit planes:

* `OFFSET_BINARY` is the paper read literally: ``z = 2**(b-1)``, planes are the digits
  of ``u``. The top plane is the sign, about half full, and is hardly ever pruned. One
  bit has the levels ``{-delta, 0}``; weights above ``-delta / 2`` are rounded to zero.
* `SIGN_MAGNITUDE` has the half-integer zero point ``z = (2**b - 1) / 2``: ``2**b``
  symmetric levels ``+-(m + 1/2) delta``, one sign and ``b - 1`` magnitude planes (the
  digits of ``m``). This deviation from the paper makes the threshold of Eq. 13
  meaningful, as the top magnitude plane is sparse, and counts every bit that is sent.

The paper's ``B_i`` is bit plane ``i - 1`` here: planes are numbered by their weight.
`bit_width` is an int32 tensor throughout, so that one graph serves 1 to 8 bits.
"""

from __future__ import annotations

import abc

import tensorflow as tf

from tff_fedmpq.lookup import lookup

MIN_BIT_WIDTH = 1
MAX_BIT_WIDTH = 8


def max_code(bit_width: tf.Tensor) -> tf.Tensor:
    """Returns the largest code of `bit_width` bits, ``2**b - 1``, as float32."""
    levels = tf.bitwise.left_shift(1, tf.cast(bit_width, tf.int32))
    return tf.cast(levels - 1, tf.float32)


def step_size(scale: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
    """Returns the distance of two neighbouring levels, ``delta = s / (2**b - 1)``."""
    return scale / max_code(bit_width)


def scale_of(step: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
    """Returns the scale whose `step_size` at `bit_width` bits is `step`."""
    return step * max_code(bit_width)


class Representation(abc.ABC):
    """Meaning of the codes of a layer. Instances are stateless.

    Arguments of the methods: `codes` uint8[...], `scale` float32[] above zero and
    `bit_width` int32[] from 1 to 8.
    """

    name: str

    @abc.abstractmethod
    def zero_point(self, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns the code of weight zero, float32[] (not always an integer)."""

    @abc.abstractmethod
    def num_planes(self, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns the number of bit planes of `magnitudes`, int32[]."""

    @abc.abstractmethod
    def magnitudes(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns the integers whose binary digits are the bit planes, int32[...]."""

    @abc.abstractmethod
    def signs(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns the sign of the planes' contribution to W, float32[...] of +-1."""

    @abc.abstractmethod
    def drop_top_plane(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns codes of ``b - 1`` bits without the top plane, for ``b >= 2``."""

    def signed_levels(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns the weights in units of the step size, ``u - z(b)``, float32[...]."""
        return tf.cast(codes, tf.float32) - self.zero_point(bit_width)

    def quantize(
        self, weights: tf.Tensor, scale: tf.Tensor, bit_width: tf.Tensor
    ) -> tf.Tensor:
        """Returns the codes of the levels nearest to weights float32[...]."""
        return self.nearest_codes(weights / step_size(scale, bit_width), bit_width)

    def nearest_codes(self, levels: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        """Rounds weights in units of the step size, float32[...], halves to even."""
        codes = tf.round(levels + self.zero_point(bit_width))
        return tf.cast(tf.clip_by_value(codes, 0.0, max_code(bit_width)), tf.uint8)

    def dequantize(
        self, codes: tf.Tensor, scale: tf.Tensor, bit_width: tf.Tensor
    ) -> tf.Tensor:
        """Returns the weights of `codes` (Eq. 3), float32[...]."""
        return step_size(scale, bit_width) * self.signed_levels(codes, bit_width)

    def saturate(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        """Returns the nearest codes of ``b - 1`` bits at the same step size."""
        return self.nearest_codes(self.signed_levels(codes, bit_width), bit_width - 1)


class OffsetBinary(Representation):
    """Representation of the paper: integer zero point, planes are the code's digits."""

    name = "offset_binary"

    def zero_point(self, bit_width: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.bitwise.left_shift(1, bit_width - 1), tf.float32)

    def num_planes(self, bit_width: tf.Tensor) -> tf.Tensor:
        return tf.convert_to_tensor(bit_width)

    def magnitudes(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        return tf.cast(codes, tf.int32)

    def signs(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        # Every plane, also that of the sign, adds to the code.
        return tf.ones(tf.shape(codes), tf.float32)

    def drop_top_plane(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        mask = tf.bitwise.left_shift(1, bit_width - 1) - 1
        return tf.bitwise.bitwise_and(codes, tf.cast(mask, codes.dtype))


class SignMagnitude(Representation):
    """Symmetric levels ``+-(m + 1/2) delta``: a sign and ``b - 1`` planes."""

    name = "sign_magnitude"

    def zero_point(self, bit_width: tf.Tensor) -> tf.Tensor:
        return max_code(bit_width) / 2.0

    def num_planes(self, bit_width: tf.Tensor) -> tf.Tensor:
        return tf.convert_to_tensor(bit_width) - 1

    def magnitudes(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        # |u - z| is m + 1/2, truncated to m.
        return tf.cast(tf.abs(self.signed_levels(codes, bit_width)), tf.int32)

    def signs(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        return tf.sign(self.signed_levels(codes, bit_width))

    def drop_top_plane(self, codes: tf.Tensor, bit_width: tf.Tensor) -> tf.Tensor:
        mask = tf.bitwise.left_shift(1, bit_width - 2) - 1
        magnitudes = tf.bitwise.bitwise_and(self.magnitudes(codes, bit_width), mask)
        levels = self.signs(codes, bit_width) * (tf.cast(magnitudes, tf.float32) + 0.5)
        return tf.cast(levels + self.zero_point(bit_width - 1), tf.uint8)


OFFSET_BINARY = OffsetBinary()
SIGN_MAGNITUDE = SignMagnitude()

REPRESENTATIONS = {r.name: r for r in (OFFSET_BINARY, SIGN_MAGNITUDE)}


def get_representation(identifier: str | Representation) -> Representation:
    """Returns the representation of a name, or the object itself; see `lookup`."""
    return lookup(identifier, REPRESENTATIONS, "representation")


def check_bit_width(bit_width: int, what: str = "bit_width") -> int:
    """Returns a bit-width as a Python integer; ValueError unless it is 1 to 8."""
    if bit_width not in range(MIN_BIT_WIDTH, MAX_BIT_WIDTH + 1):
        allowed = f"an integer from {MIN_BIT_WIDTH} to {MAX_BIT_WIDTH}"
        raise ValueError(f"{what} has to be {allowed}, found {bit_width!r}.")
    return int(bit_width)
