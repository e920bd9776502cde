"""The best quantizer of Gaussian weights: Max's table, and integration."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.strategies import BIT_WIDTHS

from tff_fedmpq.quantization import gaussian

# Max (1960), Table II: step sizes and mean squared errors of 2, 4, 8, 16 and 32
# equally spaced levels.
MAX_STEPS = (1.596, 0.9957, 0.5860, 0.3352, 0.1881)
MAX_DISTORTIONS = (0.3634, 0.1188, 0.03744, 0.01154, 0.00349)


# Midpoints of the half-line, and the density there.
X = (np.arange(40_000) + 0.5) * 2e-4
DENSITY = np.exp(-np.square(X) / 2)


def distortion(step, bit_width):
    """Mean squared error by midpoint sums."""
    half = 2 ** (bit_width - 1)
    cells = np.minimum(np.floor(X / step), half - 1)
    return np.square(X - (cells + 0.5) * step) @ DENSITY / DENSITY.sum()


def test_constants_are_those_of_max():
    np.testing.assert_allclose(gaussian.STEPS[:5], MAX_STEPS, rtol=4e-4)
    np.testing.assert_allclose(gaussian.DISTORTIONS[:5], MAX_DISTORTIONS, rtol=2e-3)


@pytest.mark.parametrize("bit_width", BIT_WIDTHS)
def test_constants_by_integration(bit_width):
    """Each leaves the least error near it, and is found to 1 %: the error is flat."""
    step = gaussian.STEPS[bit_width - 1]
    steps = step * np.linspace(0.5, 1.5, 201)
    errors = [distortion(step, bit_width) for step in steps]
    assert gaussian.DISTORTIONS[bit_width - 1] == pytest.approx(min(errors), rel=1e-3)
    assert steps[np.argmin(errors)] == pytest.approx(step, rel=0.01)


def test_each_further_bit_removes_less():
    removed = -np.diff(gaussian.DISTORTIONS)
    assert (removed > 0).all() and (np.diff(removed) < 0).all()
