"""Subtractive dithered lattice quantization (UVeQFed, arXiv 2006.03262, section III).

A vector ``x`` of L entries, a step ``Delta`` and a dither ``d``, uniform over the
lattice's Voronoi cell around zero and known at both ends, give point p and vector x'::

    p = Q(x / Delta + d),        x' = Delta (p - d)

``Q`` is the nearest point. The error ``x' - x`` is uniform over that cell times
``Delta``, whatever ``x`` is: per entry its mean square is ``Delta**2 G V**(2/L)``, V
the cell's volume and G its normalised second moment (Conway & Sloane 1982).

Two lattices: integers (L = 1, V = 1, G = 1/12), and the hexagonal one (L = 2, generated
by the columns (2, 0) and (1, sqrt 3), V = 2 sqrt 3, G = 0.0802). A lattice point is
written as L integers, `coordinates`.
"""

import dataclasses
import math
from typing import Callable

import tensorflow as tf

_SQRT3 = math.sqrt(3.0)


@dataclasses.dataclass(frozen=True)
class Lattice:
    """A lattice of dimension L; its functions map float32[n, L] to float32[n, L]."""

    dimension: int
    nearest: Callable[[tf.Tensor], tf.Tensor]  # Coordinates of the nearest points.
    points: Callable[[tf.Tensor], tf.Tensor]  # Points with those coordinates.
    cell: Callable[[tf.Tensor], tf.Tensor]  # From [0, 1) to one cell, uniformly.


# The hexagonal lattice, the densest of the plane, is a rectangular one of cells 2 by
# 2 sqrt 3, and the same shifted by (1, sqrt 3). The point of coordinates (c, r) is
# (2 c + (r mod 2), sqrt(3) r); for a Gaussian, c and r are nearly independent.


def _nearest_hexagonal(x: tf.Tensor) -> tf.Tensor:
    candidates, distances = [], []
    for parity in (0.0, 1.0):
        column = tf.round((x[:, 0] - parity) / 2.0)
        row = 2.0 * tf.round((x[:, 1] / _SQRT3 - parity) / 2.0) + parity
        coordinates = tf.stack([column, row], axis=1)
        difference = x - _hexagonal_points(coordinates)
        candidates.append(coordinates)
        distances.append(tf.reduce_sum(tf.square(difference), axis=1))
    is_odd = distances[1] < distances[0]
    return tf.where(is_odd[:, tf.newaxis], candidates[1], candidates[0])


def _hexagonal_points(coordinates: tf.Tensor) -> tf.Tensor:
    column, row = coordinates[:, 0], coordinates[:, 1]
    parity = tf.math.floormod(row, 2.0)
    return tf.stack([2.0 * column + parity, _SQRT3 * row], axis=1)


def _hexagonal_cell(uniform: tf.Tensor) -> tf.Tensor:
    u, v = uniform[:, 0], uniform[:, 1]
    return tf.stack([2.0 * u + v, _SQRT3 * v], axis=1)


INTEGERS = Lattice(1, tf.round, points=lambda x: x, cell=lambda x: x)
HEXAGONAL = Lattice(2, _nearest_hexagonal, _hexagonal_points, _hexagonal_cell)
LATTICES: dict[str, Lattice] = {"integer": INTEGERS, "hexagonal": HEXAGONAL}


def dither(lattice: Lattice, uniform: tf.Tensor) -> tf.Tensor:
    """Maps numbers in [0, 1) to the Voronoi cell around zero, uniformly: float32[n, L].

    Any cell would whiten the error; with this one, zeros stay zero and cost nothing.
    """
    in_some_cell = lattice.cell(uniform)
    return in_some_cell - lattice.points(lattice.nearest(in_some_cell))


def quantize(
    lattice: Lattice, x: tf.Tensor, step: tf.Tensor, uniform: tf.Tensor
) -> tf.Tensor:
    """Returns the coordinates of vectors, float32[n, L] of whole numbers.

    `step` is Delta, float32 of a shape that broadcasts against `x`. The dither is made
    of `uniform`, float32[n, L] in [0, 1), of which the receiver needs the same.
    """
    return lattice.nearest(x / step + dither(lattice, uniform))


def dequantize(
    lattice: Lattice, coordinates: tf.Tensor, step: tf.Tensor, uniform: tf.Tensor
) -> tf.Tensor:
    """Returns the vectors of `coordinates`, float32[n, L]; see `quantize`."""
    return step * (lattice.points(coordinates) - dither(lattice, uniform))
