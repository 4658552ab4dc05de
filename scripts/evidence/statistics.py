"""Differences of accuracies between networks: noise, intervals, p values, means over cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Of all two-sided intervals."""
ONE_SIDED = (1 - LEVEL) / 2
"""Error of a one-sided test that goes with such an interval."""
UNEQUAL = 0.01
"""Bartlett's p value below which the variances are not pooled."""
SETTLED = 5
"""The settled accuracy is that of the last fifth of the epochs."""


def settled(accuracies: Sequence[float]) -> float:
    """The mean of the last fifth of a run's accuracies, one for each epoch; of one at least."""
    return fmean(accuracies[-max(1, len(accuracies) // SETTLED) :])


@dataclass(frozen=True)
class Noise:
    """How much the accuracy of one network varies from seed to seed.

    Attributes:
        sigma: standard deviation in points, pooled over networks.
        freedom: its degrees of freedom.
        bartlett: p value of Bartlett's test that the networks have one variance; None if it cannot
            be computed.
        recipe: whose runs it was estimated from, if not from those that are compared.
    """

    sigma: float
    freedom: int
    bartlett: float | None = None
    recipe: str = ""

    @property
    def unequal(self) -> bool:
        """Whether the variances of the networks that are compared differ."""
        return not self.recipe and self.bartlett is not None and self.bartlett < UNEQUAL


def pooled_noise(groups: Iterable[Sequence[float]], recipe: str = "") -> Noise | None:
    """The residual variance of the one-way layout, networks x seeds.

    Args:
        groups: the accuracies of each network; those with one seed say nothing.
        recipe: see `Noise`.

    Returns:
        None if no network has two seeds.
    """
    groups = [list(map(float, group)) for group in groups if len(group) > 1]
    if not groups:
        return None
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((len(group) - 1) * variance(group) for group in groups)
    spreads = list(map(variance, groups))
    bartlett = None
    if len(groups) > 1 and max(spreads) > 0:  # one that does not vary at all is the most unequal
        bartlett = float(stats.bartlett(*groups).pvalue) if min(spreads) > 0 else 0.0
    return Noise(math.sqrt(squares / freedom), freedom, bartlett, recipe)


@dataclass(frozen=True)
class Difference:
    """A mean of some accuracies minus that of others, in points.

    Attributes:
        value: the estimate.
        error: its standard error; NaN if unknown.
        freedom: degrees of freedom of the error.
        method: where the error is from: pooled, Welch or random effects.
    """

    value: float
    error: float = math.nan
    freedom: float = 0
    method: str = "pooled"

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return self.error > 0 and self.freedom > 0

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two-sided t interval; all numbers if the error is unknown."""
        if not self.known:
            return (self.value,) * 2 if self.error == 0 else (-math.inf, math.inf)
        low, high = stats.t.interval(level, self.freedom, self.value, self.error)
        return float(low), float(high)

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p value for being above a bound; 1 if nothing is known."""
        if not self.known:
            return 1.0
        return float(stats.t.sf((self.value - bound) / self.error, self.freedom))

    def p_below(self, bound: float = 0.0) -> float:
        """One-sided p value for being below a bound; 1 if nothing is known."""
        return Difference(-self.value, self.error, self.freedom).p_above(-bound)

    def __str__(self) -> str:
        if not self.known:
            return f"{self.value:+.2f}"
        low, high = self.interval()
        return f"{self.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def difference(
    ours: Sequence[float], theirs: Sequence[float], noise: Noise | None = None
) -> Difference:
    """Mean of `ours` minus mean of `theirs`, not paired by seed.

    Args:
        ours: one accuracy for each seed, at least one.
        theirs: likewise.
        noise: of both; None if unknown. If the variances are unequal, each side's own one is used
            (Welch 1947), which takes two seeds on each.
    """
    value, n, m = fmean(ours) - fmean(theirs), len(ours), len(theirs)
    if noise is None:
        return Difference(value)
    if noise.unequal and min(n, m) > 1:
        error = math.sqrt(variance(ours) / n + variance(theirs) / m)
        freedom = stats.ttest_ind(ours, theirs, equal_var=False).df if error else 0
        return Difference(value, error, float(freedom), "Welch")
    return Difference(value, noise.sigma * math.sqrt(1 / n + 1 / m), noise.freedom)


def mean_difference(values: Sequence[float]) -> Difference:
    """The mean of some values, one for each seed, with the error of their own spread."""
    if len(values) < 2:
        return Difference(fmean(values))
    error = math.sqrt(variance(values) / len(values))
    return Difference(fmean(values), error, len(values) - 1, "of the seeds")


def prediction(ours: Difference, noise: Noise) -> tuple[float, float]:
    """Where the difference of two further single runs is expected: as the paper's, with our noise.

    Returns:
        The ends of the two-sided prediction interval.
    """
    error = math.hypot(ours.error, math.sqrt(2) * noise.sigma)
    return Difference(ours.value, error, noise.freedom).interval()


@dataclass(frozen=True)
class Agreement:
    """Whether the paper's accuracies are ours, but for one shift that all have in common.

    Attributes:
        shift: the mean of ours minus the paper's, in points.
        chi2: weighted squares of what remains.
        freedom: networks - 1.
        noise_freedom: degrees of freedom of the noise in the weights.
    """

    shift: float
    chi2: float
    freedom: int
    noise_freedom: int

    @property
    def p_value(self) -> float:
        """That `chi2` is so large by noise alone: F's, since the noise is estimated."""
        return float(stats.f.sf(self.chi2 / self.freedom, self.freedom, self.noise_freedom))


def agreement(
    ours: Sequence[Sequence[float]], paper: Sequence[float], noise: Noise
) -> Agreement | None:
    """Compare several networks with the paper at once.

    Args:
        ours: the accuracies of each network, one for each seed.
        paper: its single accuracy of each.
        noise: of both, ours and the paper's.

    Returns:
        None for fewer than two networks.
    """
    if len(ours) < 2 or noise.sigma == 0:
        return None
    apart = np.array([fmean(values) for values in ours]) - np.array(paper)
    weights = 1 / (noise.sigma**2 * (1 + 1 / np.array([len(values) for values in ours])))
    shift = float(np.average(apart, weights=weights))
    chi2 = float(weights @ (apart - shift) ** 2)
    return Agreement(shift, chi2, len(ours) - 1, noise.freedom)


@dataclass(frozen=True)
class Mean:
    """The mean over several cells.

    Attributes:
        difference: the mean.
        tau: standard deviation between the cells, in points, beyond their noise.
        heterogeneity: p value of Cochran's Q that all cells have one value.
    """

    difference: Difference
    tau: float
    heterogeneity: float


def random_effects(cells: Sequence[Difference]) -> Mean:
    """The random-effects mean of cells, whose true values differ (DerSimonian and Laird 1986).

    Its interval is that of Hartung and Knapp (2001) and Sidik and Jonkman (2002), never narrower
    than that of the cells' own errors.

    Args:
        cells: at least two, with known errors.
    """
    values = np.array([cell.value for cell in cells])
    variances = np.array([cell.error**2 for cell in cells])
    freedom = len(cells) - 1
    fixed = 1 / variances
    q = float(fixed @ (values - np.average(values, weights=fixed)) ** 2)
    excess = (q - freedom) / float(fixed.sum() - (fixed**2).sum() / fixed.sum())
    weights = 1 / (variances + max(0.0, excess))
    mean = float(np.average(values, weights=weights))
    scale = max(1.0, float(weights @ (values - mean) ** 2) / freedom)
    error = math.sqrt(scale / float(weights.sum()))
    return Mean(
        Difference(mean, error, freedom, "random effects"),
        math.sqrt(max(0.0, excess)),
        float(stats.chi2.sf(q, freedom)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted so that together they err at most as often."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def seeds_needed(effect: float, sigma: float, power: float = 0.8) -> int:
    """Seeds on each side with which a difference is found, by the interval that excludes 0.

    Args:
        effect: the true difference in points, not 0.
        sigma: of one network, in points.
        power: probability of finding it.
    """

    def reached(n: int) -> float:
        freedom = 2 * n - 2
        return stats.nct.sf(
            stats.t.isf(ONE_SIDED, freedom), freedom, abs(effect) / (sigma * math.sqrt(2 / n))
        )

    low, high = 1, 2  # a power of two above the number, then bisection
    while reached(high) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high
