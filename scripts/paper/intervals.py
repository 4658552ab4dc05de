"""Confidence intervals of differences between means, and Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def welch(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of `a` minus mean of `b`, whose variances may differ (Welch 1947).

    Args:
        a: at least two values.
        b: likewise.
        level: of the interval.
    """
    error, freedom = _welch_error(a, b)
    difference = statistics.fmean(a) - statistics.fmean(b)
    return _interval(difference, error, freedom, level)


def difference_text(these: Sequence[float], those: Sequence[float]) -> str:
    """The difference of the means; from two values on each side on with Welch's 95 % interval."""
    if not these or not those:
        return ""
    if min(len(these), len(those)) < 2:
        return f"{statistics.fmean(these) - statistics.fmean(those):+.2f}"
    return str(welch(these, those))


def paired(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of at least two differences."""
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _interval(statistics.fmean(differences), error, len(differences) - 1, level)


def p_below(a: Sequence[float], b: Sequence[float]) -> float:
    """One-sided p value of Welch's test for the mean of `a` being below that of `b`."""
    error, freedom = _welch_error(a, b)
    difference = statistics.fmean(a) - statistics.fmean(b)
    if error == 0:
        return 0.0 if difference < 0 else 1.0
    return float(stats.t.cdf(difference / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted so that together they err at most as often."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _welch_error(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Standard error of the difference of the means, and its degrees of freedom."""
    of_a, of_b = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if of_a + of_b == 0:
        return 0.0, math.inf
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return math.sqrt(of_a + of_b), freedom


def _interval(estimate: float, error: float, freedom: float, level: float) -> Interval:
    width = error * float(stats.t.ppf((1 + level) / 2, freedom)) if error else 0.0
    return Interval(estimate, estimate - width, estimate + width)
