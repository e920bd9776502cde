"""BatchNorm statistics of a budget, from clients of similar precision.

Weights of Gaussian distribution that are quantized to b bits lose the share D(b) of
their variance (`quantization.gaussian`), and activations with them: statistics of 2
bits do not suit 8, those of 6 do. Statistics of few clients, on the other hand, are
those of these clients' examples. A device of budget v is sent::

    sum_h k(v, h) p_h S_h / sum_h k(v, h) p_h
    k(v, h) = exp(-(D(v) - D(h))**2 / (2 tau**2))

over all budgets h, where S_h is the mean over the clients of h in the last round in
which any took part, and p_h the sum of their weights. Where no similar budget took part
yet, the least unlike ones prevail: k is small but never 0. The global model, whose
weights are float, has D = 0, the limit of many bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.gaussian import DISTORTIONS

# tau: 2 bits share with 2.3 about a half, with 3 a fortieth; 4 share with 8 nearly all.
_TOLERANCE = 0.03

FLOAT_BUDGET = np.inf


def similarity(budgets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns k(v, h) of budgets in bits per weight, float64[G, H], from 0 to 1.

    A budget of `FLOAT_BUDGET` stands for float weights.
    """
    difference = _distortion(budgets)[:, np.newaxis] - _distortion(others)
    return np.exp(-np.square(difference / _TOLERANCE) / 2)


def statistics_for(
    alike: np.ndarray | tf.Tensor, rows: Sequence[tf.Tensor], weights: tf.Tensor
) -> list[tf.Tensor]:
    """Returns the means S over budgets by k(v, h) p_h, for each tensor of statistics.

    Args:
      alike: k(v, h) of one v, float64[H], or of several, float64[G, H].
      rows: Statistics of each budget, float32[H, ...] each.
      weights: p_h, float32[H]; 0 for budgets of which no client took part.

    Returns:
      float32[...] or float32[G, ...] each; zeros where all weights are 0.
    """
    # In float64: then runtimes that add in another order send the same numbers.
    shares = tf.cast(weights, tf.float64) * alike
    shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares, -1, keepdims=True))
    return [
        tf.cast(tf.tensordot(shares, tf.cast(row, tf.float64), 1), tf.float32)
        for row in rows
    ]


def _distortion(budgets: np.ndarray) -> np.ndarray:
    """Returns D(b), float64; it falls geometrically between whole bit-widths."""
    whole = np.arange(1, len(DISTORTIONS) + 1)
    distortion = np.exp(np.interp(budgets, whole, np.log(DISTORTIONS)))
    return np.where(np.isinf(budgets), 0.0, distortion)
