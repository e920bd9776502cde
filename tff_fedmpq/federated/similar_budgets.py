"""BatchNorm statistics of a budget, from clients of similar precision.

Weights of Gaussian distribution that are quantized to b bits lose the share D(b) of
their variance (`quantization.gaussian`), and activations with them: statistics of 2
bits do not suit 8, those of 6 do. Statistics of few clients, on the other hand, are
those of these clients' examples. A device of budget v is sent::

    sum_h k(v, h) p_h S_h / sum_h k(v, h) p_h
    k(v, h) = exp(-(D(v) - D(h))**2 / (2 tau**2))

over all budgets h, where S_h is the mean over the clients of h in the last round in
which any took part, and p_h the sum of their weights. Where no similar budget took part
yet, the least unlike ones prevail: k is small but never 0.
"""

from __future__ import annotations

import numpy as np

from tff_fedmpq.quantization.gaussian import DISTORTIONS

# tau: 2 bits share with 2.3 about a half, with 3 a fortieth; 4 share with 8 nearly all.
_TOLERANCE = 0.03


def similarity(budgets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns k(v, h) of budgets in bits per weight, float64[G, H], from 0 to 1."""
    difference = _distortion(budgets)[:, np.newaxis] - _distortion(others)
    return np.exp(-np.square(difference / _TOLERANCE) / 2)


def _distortion(budgets: np.ndarray) -> np.ndarray:
    """Returns D(b), float64; it falls geometrically between whole bit-widths."""
    whole = np.arange(1, len(DISTORTIONS) + 1)
    return np.exp(np.interp(budgets, whole, np.log(DISTORTIONS)))
