"""BatchNorm statistics for a budget, from clients of all budgets.

Weights of Gaussian distribution that are quantized to b bits lose the share D(b) of
their variance (`quantization.gaussian`), and activations with them, so statistics of 8
bits do not suit 2. But those of few clients are the statistics of their examples. So
each moving mean and variance is taken as a linear function of D, fitted by ridge
regression to the budgets whose clients took part, and read off at a device's own
budget v::

    min over S, beta of sum_h p_h (S_h - S - beta (D(h) - m))**2 + rho**2 beta**2

S_h is the mean over the clients of budget h in the last round in which any took part,
p_h their share of all weights and m the mean of D(h) by p_h. The fit at v is the mean
of S_h by these weights, which add up to 1::

    w(v, h) = p_h (1 + (D(v) - m) (D(h) - m) / (sum_g p_g (D(g) - m)**2 + rho**2))

Budgets whose weight would be negative have none, so that variances are not. The global
model, whose weights are float, has D = 0, the limit of many bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization.gaussian import DISTORTIONS

# rho; budgets whose D differ by less, such as 4 to 8 bits, nearly share a mean.
_RIDGE = 0.02

FLOAT_BUDGET = np.inf


def statistics_shares(
    budgets: np.ndarray, others: np.ndarray, weights: tf.Tensor
) -> tf.Tensor:
    """Returns the weights w(v, h) by which budgets' statistics become those for others.

    Args:
      budgets: Bits per weight of the models that the statistics are for, float64[G];
        `FLOAT_BUDGET` stands for float weights.
      others: Bits per weight of the clients that the statistics are of, float64[H].
      weights: Sums of their clients' weights, [H], 0 where none took part.

    Returns:
      float64[G, H]; rows add up to 1, or to 0 where all weights are 0.
    """
    # In float64: then runtimes that add in another order send the same numbers.
    weights = tf.cast(weights, tf.float64)
    shares = tf.math.divide_no_nan(weights, tf.reduce_sum(weights))
    distortions = _distortion(others)
    mean = tf.reduce_sum(shares * distortions)
    deviations = distortions - mean
    spread = tf.reduce_sum(shares * tf.square(deviations))
    slopes = (_distortion(budgets) - mean) / (spread + _RIDGE**2)
    fit = shares * tf.maximum(1 + slopes[:, tf.newaxis] * deviations, 0)
    return tf.math.divide_no_nan(fit, tf.reduce_sum(fit, axis=1, keepdims=True))


def mean_statistics(rows: Sequence[tf.Tensor], shares: tf.Tensor) -> list[tf.Tensor]:
    """Returns means over budgets, for each tensor of statistics.

    Args:
      rows: Statistics of each budget, float32[H, ...] each.
      shares: As of `statistics_shares`, float64[H] or float64[G, H].

    Returns:
      float32[...] or float32[G, ...] each.
    """
    return [
        tf.cast(tf.tensordot(shares, tf.cast(row, tf.float64), 1), tf.float32)
        for row in rows
    ]


def _distortion(budgets: np.ndarray) -> np.ndarray:
    """Returns D(b), float64; it falls geometrically between whole bit-widths."""
    whole = np.arange(1, len(DISTORTIONS) + 1)
    distortion = np.exp(np.interp(budgets, whole, np.log(DISTORTIONS)))
    return np.where(np.isinf(budgets), 0.0, distortion)
