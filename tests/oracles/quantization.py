"""Oracles of the quantization core, straight from the equations.

FedMPQ (Chen & Vikalo, CVPR 2024), Eq. 3-13, with the two readings of the zero
point in docs of the package.  Everything is float64 or exact (`Fraction`), per
plane and element by element; nothing is fast and nothing is shared with the
package.  Planes are numbered from 0 here, so plane i weighs 2^i (the paper's
2^(i-1) with i from 1).

Rounding.  Two float32 results may differ from these at a rounding boundary: at
the middle between two levels, and where log2(eta |g|) is a half.  `is_near_tie`
and `is_near_half` tell the tests which elements to leave out or to accept on
either side.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

MAX_BIT_WIDTH = 8


class OffsetBinary:
    """Eq. 3 as printed: z = 2^(b-1), the planes are those of the code itself."""

    def zero_point(self, bit_width):
        return Fraction(2 ** (bit_width - 1))

    def num_planes(self, bit_width):
        return bit_width

    def magnitude(self, code, bit_width):
        return int(code)

    def sign(self, code, bit_width):
        return 1

    def code_of(self, sign, magnitude, bit_width):
        return magnitude


class SignMagnitude:
    """Eq. 3 with z = (2^b-1)/2: levels +-(m + 1/2), the planes are those of m."""

    def zero_point(self, bit_width):
        return Fraction(2**bit_width - 1, 2)

    def num_planes(self, bit_width):
        return bit_width - 1

    def magnitude(self, code, bit_width):
        distance = abs(int(code) - self.zero_point(bit_width))
        return int(distance - Fraction(1, 2))

    def sign(self, code, bit_width):
        return 1 if int(code) > self.zero_point(bit_width) else -1

    def code_of(self, sign, magnitude, bit_width):
        signed_level = sign * (magnitude + Fraction(1, 2))
        return int(signed_level + self.zero_point(bit_width))


OFFSET_BINARY = OffsetBinary()
SIGN_MAGNITUDE = SignMagnitude()


# --- levels -----------------------------------------------------------------


def levels(representation, scale, bit_width):
    """All 2^b levels, delta * (u - z) for u = 0, 1, ...: float64[2^b]."""
    delta = float(scale) / (2**bit_width - 1)
    zero_point = float(representation.zero_point(bit_width))
    return delta * (np.arange(2**bit_width) - zero_point)


def nearest_codes(representation, weights, scale, bit_width):
    """The code of the nearest of all 2^b levels, the lower one at a tie."""
    table = levels(representation, scale, bit_width)
    distances = np.abs(np.asarray(weights, np.float64)[..., np.newaxis] - table)
    return np.argmin(distances, axis=-1)


def is_near_tie(representation, weights, scale, bit_width, fraction=1e-3):
    """Whether two levels are equally near, to within `fraction` of delta."""
    table = levels(representation, scale, bit_width)
    distances = np.abs(np.asarray(weights, np.float64)[..., np.newaxis] - table)
    distances = np.sort(distances, axis=-1)
    gap = distances[..., 1] - distances[..., 0]
    return gap < fraction * float(scale) / (2**bit_width - 1)


def squared_error(representation, weights, scale, bit_width):
    """Sum of squared errors of nearest-level quantization, float64.

    The nearest level is found from the midpoints between neighbouring levels,
    which is fast enough for the dense search below.
    """
    weights = np.asarray(weights, np.float64).ravel()
    table = levels(representation, scale, bit_width)
    midpoints = (table[1:] + table[:-1]) / 2
    nearest = table[np.searchsorted(midpoints, weights)]
    return float(np.sum((weights - nearest) ** 2))


def least_squared_error(representation, weights, bit_width, num_scales=1000):
    """Least error over a dense grid of scales in (0, 2 max|W|], brute force."""
    largest = 2 * float(np.max(np.abs(weights)))
    return min(
        squared_error(representation, weights, largest * step / num_scales, bit_width)
        for step in range(1, num_scales + 1)
    )


# --- bit planes -------------------------------------------------------------


def magnitudes(representation, codes, bit_width):
    """Magnitude of every code: int64, shape of `codes`."""
    codes = np.asarray(codes)
    flat = [representation.magnitude(u, bit_width) for u in codes.ravel()]
    return np.array(flat, np.int64).reshape(codes.shape)


def signs(representation, codes, bit_width):
    """Sign of every code: int64 in {-1, 1}, shape of `codes`."""
    codes = np.asarray(codes)
    flat = [representation.sign(u, bit_width) for u in codes.ravel()]
    return np.array(flat, np.int64).reshape(codes.shape)


def bit_planes(representation, codes, bit_width):
    """The planes B_0, B_1, ...: a list of int64 arrays of zeros and ones."""
    remaining = magnitudes(representation, codes, bit_width)
    planes = []
    for _ in range(representation.num_planes(bit_width)):
        planes.append(remaining % 2)
        remaining = remaining // 2
    assert not np.any(remaining), "the planes do not hold the whole magnitude"
    return planes


def plane_densities(representation, codes, bit_width):
    """Fraction of ones of each plane, 0 where there is none: float64[8]."""
    densities = np.zeros(MAX_BIT_WIDTH)
    for i, plane in enumerate(bit_planes(representation, codes, bit_width)):
        densities[i] = np.count_nonzero(plane) / plane.size
    return densities


def msb_density(representation, codes, bit_width):
    """Fraction of ones in the top plane, 1 where there is no plane."""
    planes = bit_planes(representation, codes, bit_width)
    return np.count_nonzero(planes[-1]) / planes[-1].size if planes else 1.0


def _saturate_one(representation, code, bit_width):
    """One code of b bits to b-1 bits, its signed level clipped."""
    zero_point = representation.zero_point(bit_width - 1)
    level = int(code) - representation.zero_point(bit_width)
    level = max(level, -zero_point)
    level = min(level, 2 ** (bit_width - 1) - 1 - zero_point)
    return int(level + zero_point)


def _drop_one(representation, code, bit_width):
    """One code of b bits to b-1 bits, the top bit of its magnitude dropped."""
    top = 2 ** (representation.num_planes(bit_width) - 1)
    magnitude = representation.magnitude(code, bit_width)
    if magnitude >= top:
        magnitude -= top
    sign = representation.sign(code, bit_width)
    return representation.code_of(sign, magnitude, bit_width - 1)


def prune_msb(representation, codes, scale, bit_width, threshold, saturate=True):
    """Eq. 13 again and again: (codes int64, scale float64, bit_width int)."""
    codes = np.asarray(codes)
    scale = float(scale)
    lower = _saturate_one if saturate else _drop_one
    while bit_width > 1 and msb_density(representation, codes, bit_width) <= threshold:
        flat = [lower(representation, u, bit_width) for u in codes.ravel()]
        codes = np.array(flat, np.int64).reshape(codes.shape)
        scale = scale * (2 ** (bit_width - 1) - 1) / (2**bit_width - 1)
        bit_width -= 1
    return codes, scale, bit_width


# --- group Lasso ------------------------------------------------------------


def step_gain(bit_width):
    """K(b) = 1 + 4 + ... + 4^(b-1), by adding it up."""
    return sum(4**i for i in range(bit_width))


def penalty(representation, codes, bit_width):
    """Eq. 11: sum over the planes of the Euclidean norm."""
    planes = bit_planes(representation, codes, bit_width)
    return sum(math.sqrt(np.sum(plane.astype(float) ** 2)) for plane in planes)


def plane_penalty_gradients(representation, codes, bit_width, step=1e-6):
    """d||B_i||/dB_i by central differences on every entry: list of float64."""
    gradients = []
    for plane in bit_planes(representation, codes, bit_width):
        gradient = np.zeros(plane.shape)
        if np.any(plane):
            for index in np.ndindex(*plane.shape):
                above, below = plane.astype(float), plane.astype(float)
                above[index] += step
                below[index] -= step
                difference = np.linalg.norm(above) - np.linalg.norm(below)
                gradient[index] = difference / (2 * step)
        gradients.append(gradient)
    return gradients


def code_gradient(representation, codes, bit_width, strength):
    """sign * strength * sum_i 2^i B_i / ||B_i|| / K(b), element by element."""
    codes = np.asarray(codes)
    planes = bit_planes(representation, codes, bit_width)
    gradient = np.zeros(codes.shape)
    for index in np.ndindex(*codes.shape):
        total = 0.0
        for i, plane in enumerate(planes):
            if plane[index]:
                total += 2**i / math.sqrt(np.count_nonzero(plane))
        sign = representation.sign(codes[index], bit_width)
        gradient[index] = sign * strength * total / step_gain(bit_width)
    return gradient


# --- integer update ---------------------------------------------------------


def is_near_half(gradients, learning_rate, distance=1e-4):
    """Where round(log2(eta |g|)) is not safe in float32.  False where g is 0."""
    gradients = np.abs(np.asarray(gradients, np.float64))
    safe = np.where(gradients == 0, 1 / float(learning_rate), gradients)
    logarithm = np.log2(float(learning_rate) * safe)
    return np.abs(logarithm - np.floor(logarithm) - 0.5) < distance


def power_of_two(x):
    """S(x) = 2^round(log2 x) of Eq. 6, exact."""
    return Fraction(2) ** round(math.log2(x))


def closed_form_step(gradient, learning_rate, bit_width):
    """Length of the step in code units before the cap, exact."""
    if gradient == 0:
        return Fraction(0)
    size = power_of_two(float(learning_rate) * abs(float(gradient)))
    return size * step_gain(bit_width)


def per_plane_step(gradient, learning_rate, bit_width):
    """Eq. 6-10 plane by plane: (whole units, probability of one unit more).

    With the code's own gradient g = dL/du = delta dL/dW, Eq. 5 reads
    dL/dB_i = 2^(i-1) g for i = 1..b.  q_i is the exponent of
    2^i S(eta |dL/dB_i|); the plane moves the code by 2^(q_i-1) units, and the
    planes with q_i <= 0, whose part is less than a unit, are left to chance.
    """
    whole, fraction = Fraction(0), Fraction(0)
    if gradient == 0:
        return whole, fraction
    for i in range(1, bit_width + 1):
        plane_gradient = 2 ** (i - 1) * abs(float(gradient))
        exponent = round(math.log2(float(learning_rate) * plane_gradient))
        q = i + exponent
        part = Fraction(2) ** (q - 1)
        if q >= 1:
            whole += part
        else:
            fraction += part
    return whole, fraction


# Of U - t in float32, where |t| < 256: two roundings of 2^-17 each.
ROUNDING_ERROR = 2.0**-16


def signed_step(gradient, learning_rate, bit_width):
    """The closed form with the sign of the gradient, exact."""
    step = closed_form_step(gradient, learning_rate, bit_width)
    return step if gradient > 0 else -step


def integer_update(codes, gradients, bit_width, learning_rate, uniform):
    """New codes: int64, shape of `codes`; the closed form, one by one.

    floor(U - t) is -floor(t) or one less, the latter with the chance of t's fraction;
    as much, mirrored, for steps upwards.
    """
    codes = np.asarray(codes)
    result = np.zeros(codes.shape, np.int64)
    for index in np.ndindex(*codes.shape):
        step = signed_step(float(gradients[index]), learning_rate, bit_width)
        moved = int(codes[index]) + math.floor(Fraction(float(uniform[index])) - step)
        result[index] = min(max(moved, 0), 2**bit_width - 1)
    return result


def is_near_whole_step(gradients, bit_width, learning_rate, uniform):
    """Where U - t is as near to an integer as float32 can tell at 8 bits."""
    result = np.zeros(np.shape(gradients), bool)
    for index in np.ndindex(*result.shape):
        step = signed_step(float(gradients[index]), learning_rate, bit_width)
        position = Fraction(float(uniform[index])) - step
        result[index] = step != 0 and abs(position - round(position)) < ROUNDING_ERROR
    return result


# --- packing ----------------------------------------------------------------


def pack(codes, bit_width):
    """Bit j of code i is bit i*b + j of the stream, by a string of digits."""
    digits = ""
    for code in np.asarray(codes).tolist():
        digits += format(code, f"0{bit_width}b")[::-1]
    digits += "0" * (-len(digits) % 8)
    # Bit k of the stream is bit k mod 8 of its byte, least significant first.
    octets = [digits[start : start + 8][::-1] for start in range(0, len(digits), 8)]
    return np.array([int(octet, 2) for octet in octets], np.uint8)


def unpack(packed, bit_width, num_codes):
    """The codes in a stream, by `np.unpackbits`."""
    bits = np.unpackbits(np.asarray(packed, np.uint8), bitorder="little")
    bits = bits[: num_codes * bit_width].reshape(num_codes, bit_width)
    values = [sum(int(bit) << j for j, bit in enumerate(row)) for row in bits]
    return np.array(values, np.uint8)
