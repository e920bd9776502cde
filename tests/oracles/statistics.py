"""BatchNorm statistics of a device or of the float model, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

# Max, "Quantizing for Minimum Distortion", 1960, Table II: mean squared errors of
# uniform quantizers with 2, 4, ..., 32 levels for a Gaussian of variance 1; from 64 on
# by numerical integration.
_ERRORS = [0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001040, 0.0003043, 8.769e-5]
_TOLERANCE = 0.03


def error_at(budget: float) -> float:
    """Geometric between whole bit-widths; float weights have none."""
    if math.isinf(budget):
        return 0.0
    below = min(int(budget), 7)
    first, second = _ERRORS[below - 1], _ERRORS[below]
    return first * (second / first) ** (budget - below)


def similarity(budget: float, other: float) -> float:
    """1 for equal budgets, less for others."""
    distance = (error_at(budget) - error_at(other)) / _TOLERANCE
    return math.exp(-(distance**2) / 2)


def mixed(
    budget: float, rows: Sequence[np.ndarray], weights: Mapping[float, float]
) -> np.ndarray:
    """The mean of budgets' statistics, `rows` in the order of `weights`' budgets.

    `budget` is that of the model which the mean is for, `math.inf` for float weights.
    """
    total, mass = np.zeros(np.shape(rows[0])), 0.0
    for row, (other, weight) in zip(rows, weights.items()):
        share = similarity(budget, other) * weight
        total, mass = total + share * np.asarray(row, np.float64), mass + share
    return total / mass
