"""BatchNorm statistics for a device or the float model, by a fit over budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

# Max, "Quantizing for Minimum Distortion", 1960, Table II: mean squared errors of
# uniform quantizers with 2, 4, ..., 32 levels for a Gaussian of variance 1; from 64 on
# by numerical integration.
_ERRORS = [0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001040, 0.0003043, 8.769e-5]
_RIDGE = 0.02


def error_at(budget: float) -> float:
    """Geometric between whole bit-widths; float weights have none."""
    if math.isinf(budget):
        return 0.0
    below = min(int(budget), 7)
    first, second = _ERRORS[below - 1], _ERRORS[below]
    return first * (second / first) ** (budget - below)


def shares(budget: float, weights: Mapping[float, float]) -> list[float]:
    """Shares of budgets, in the order of `weights`, in the statistics for a budget.

    What the fitted line at the budget gains from 1 in the place of one statistic and 0
    in that of all others, by the normal equations of S and beta.
    """
    total = sum(weights.values())
    errors = [error_at(other) for other in weights]
    p = [weight / total for weight in weights.values()]
    mean = sum(map(np.multiply, p, errors))
    x = [error - mean for error in errors]
    normal = np.array(
        [
            [1.0, np.dot(p, x)],
            [np.dot(p, x), np.dot(p, np.square(x)) + _RIDGE**2],
        ]
    )
    found = []
    for p_h, x_h in zip(p, x):
        level, slope = np.linalg.solve(normal, [p_h, p_h * x_h])
        found.append(max(level + slope * (error_at(budget) - mean), 0.0))
    return [share / sum(found) for share in found]


def mixed(
    budget: float, rows: Sequence[np.ndarray], weights: Mapping[float, float]
) -> np.ndarray:
    """The mean of budgets' statistics, `rows` in the order of `weights`' budgets.

    `budget` is that of the model which the mean is for, `math.inf` for float weights.
    """
    pairs = zip(shares(budget, weights), rows)
    return sum(share * np.asarray(row, np.float64) for share, row in pairs)
