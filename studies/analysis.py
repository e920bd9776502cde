"""The measure of all studies: means over the last third of a run's rounds.

Per round, test accuracy and test loss of the global model and of the models that
devices of each budget receive, with the statistics that the server sends. Two
configurations are compared by their difference in the same round at the same seed. The
mean of a seed is one observation: intervals are Student's t-intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import scipy.stats

GLOBAL = None  # In place of a device's budget: the global model.
Budget = Optional[str]
Result = Mapping[str, Any]


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      mean: Mean over seeds of the seeds' means.
      half_width: Half the width of the 95 % interval; None with one seed.
      seeds: Number of seeds.
    """

    mean: float
    half_width: float | None
    seeds: int


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """Returns the mean of one value per seed with its t-interval; None of no values."""
    count = len(values)
    if not count:
        return None
    mean = float(np.mean(values))
    if count == 1:
        return Estimate(mean, None, 1)
    quantile = scipy.stats.t.ppf((1 + confidence) / 2, count - 1)
    half_width = quantile * np.std(values, ddof=1) / np.sqrt(count)
    return Estimate(mean, float(half_width), count)


def last_third(result: Result, measure: str, budget: Budget = GLOBAL) -> dict | None:
    """Returns round -> value over the last third of the rounds, at least one.

    Args:
      result: Content of a result file.
      measure: "accuracy" or "loss".
      budget: Key of a round's "devices", or `GLOBAL`.

    Returns:
      None if a round of the last third was not measured.
    """
    rounds = result["rounds"]
    chosen = rounds[len(rounds) - -(-len(rounds) // 3) :]
    values = {r["round"]: _value(r, measure, budget) for r in chosen}
    return None if None in values.values() or not values else values


def mean_over_seeds(
    results: Mapping[int, Result], measure: str, budget: Budget = GLOBAL
) -> Estimate | None:
    """Returns the mean of one configuration, given seed -> result."""
    series = [last_third(result, measure, budget) for result in results.values()]
    return estimate([np.mean(list(s.values())) for s in series if s])


def paired_difference(
    results: Mapping[int, Result],
    baseline: Mapping[int, Result],
    measure: str,
    budgets: tuple[Budget, Budget] = (GLOBAL, GLOBAL),
) -> Estimate | None:
    """Returns the mean difference from a baseline over the seeds that both have.

    Args:
      results: Seed -> result.
      baseline: Seed -> result.
      measure: "accuracy" or "loss".
      budgets: Budget of the device here and of the one in the baseline.

    Raises:
      ValueError: if two runs of a seed were measured in different rounds.
    """
    means = []
    for seed in sorted(results.keys() & baseline.keys()):
        ours = last_third(results[seed], measure, budgets[0])
        theirs = last_third(baseline[seed], measure, budgets[1])
        if ours is None or theirs is None:
            continue
        if ours.keys() != theirs.keys():
            raise ValueError(f"Seed {seed}: runs of different rounds cannot be paired.")
        means.append(float(np.mean([ours[r] - theirs[r] for r in ours])))
    return estimate(means)


def budgets_of(results: Mapping[int, Result]) -> list[str]:
    """Returns the budgets whose devices were measured, ascending."""
    last = [r["rounds"][-1].get("devices") or {} for r in results.values()]
    return sorted({budget for devices in last for budget in devices}, key=float)


def pair_devices(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs devices in the order of their budgets, or by budget if counts differ."""
    if len(ours) == len(theirs):
        return list(zip(ours, theirs))
    return [(budget, budget) for budget in ours if budget in theirs]


def _value(record: Mapping[str, Any], measure: str, budget: Budget) -> float | None:
    if budget is GLOBAL:
        return record.get(f"test_{measure}")
    return (record.get("devices") or {}).get(budget, {}).get(measure)
