"""Intervals, pooled noise, means over cells and power, against scipy's own tests and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from scripts.evidence.statistics import (
    Difference,
    Noise,
    agreement,
    difference,
    holm,
    mean_difference,
    pooled_noise,
    prediction,
    random_effects,
    seeds_needed,
)

SAMPLES = [
    ([90.1, 90.4, 90.2], [91.0, 90.8, 91.1, 90.9, 91.3]),
    ([86.16, 86.09], [83.68, 83.96]),
    ([70.0, 75.0, 80.0, 85.0], [77.0, 77.1, 76.9]),
]


@pytest.mark.parametrize(("a", "b"), SAMPLES)
def test_the_pooled_interval_of_two_groups_is_students(a, b):
    expected = stats.ttest_ind(a, b)
    found = difference(a, b, replace(pooled_noise([a, b]), bartlett=None))
    interval = expected.confidence_interval(0.95)
    assert found.interval() == pytest.approx((interval.low, interval.high))
    assert found.p_below() == pytest.approx(stats.ttest_ind(a, b, alternative="less").pvalue)
    assert found.p_above() == pytest.approx(1 - found.p_below()) and found.method == "pooled"


def test_the_noise_is_the_residual_of_the_one_way_layout():
    """By least squares, with one column for each network; networks of one seed change nothing."""
    groups = [[90.1, 90.4, 90.2], [91.0, 90.6], [85.0, 85.3, 84.8, 85.1], [99.0]]
    values = np.concatenate(groups)
    columns = np.repeat(np.eye(4), [len(group) for group in groups], axis=0)
    _, (squares,), rank, _ = np.linalg.lstsq(columns, values, rcond=None)
    noise = pooled_noise(groups)
    assert noise.freedom == len(values) - rank == 6
    assert noise.sigma == pytest.approx(math.sqrt(squares / 6))
    assert noise.bartlett == pytest.approx(stats.bartlett(*groups[:3]).pvalue)
    assert pooled_noise([[90.0], [91.0]]) is None


@pytest.mark.parametrize(("a", "b"), SAMPLES)
def test_unequal_variances_are_not_pooled(a, b):
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = difference(a, b, Noise(0.1, 20, bartlett=0.009))
    assert found.interval() == pytest.approx((expected.low, expected.high))
    assert found.method == "Welch"
    assert difference(a, b, Noise(0.1, 20, bartlett=0.011)).method == "pooled"
    assert difference(a, b[:1], Noise(0.1, 20, bartlett=0.009)).method == "pooled"
    assert difference(a, b, Noise(0.1, 20, 0.009, "short")).method == "pooled"  # not theirs


def test_a_network_that_does_not_vary_at_all_is_the_most_unequal():
    assert pooled_noise([[86.0, 86.0, 86.0], [84.0, 85.0, 86.0]]).unequal
    assert not pooled_noise([[86.0, 86.0], [84.0, 84.0]]).unequal


def test_one_seed_a_side_has_the_interval_that_the_noise_gives():
    found = difference([88.0], [87.0], Noise(0.2, 12))
    assert found.interval()[0] == pytest.approx(1 - 2.1788 * 0.2 * math.sqrt(2), abs=1e-4)
    assert str(difference([88.0], [87.0])) == "+1.00"
    assert difference([88.0], [87.0]).p_above() == 1.0


def test_the_mean_of_some_values_is_a_one_sample_t_test():
    values = [0.02, 0.03, 0.01, 0.025]
    expected = stats.ttest_1samp(values, 0)
    found = mean_difference(values)
    interval = expected.confidence_interval(0.95)
    assert found.interval() == pytest.approx((interval.low, interval.high))
    assert found.p_above() == pytest.approx(expected.pvalue / 2)


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, none below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_prediction_interval_covers_the_difference_of_two_further_runs():
    random, covered = np.random.default_rng(0), []
    for _ in range(2000):
        runs = random.normal(0, 0.2, size=(6, 3))
        noise = pooled_noise(runs.tolist())
        low, high = prediction(difference(runs[0], runs[1], noise), noise)
        paper = random.normal(0, 0.2, size=2)
        covered.append(low <= paper[0] - paper[1] <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_random_effects_by_hand():
    """Equal variances v: the plain mean, tau^2 = s^2 - v, and the t interval of the cells."""
    values, error = [-1.0, -0.2, 0.3, 0.1], 0.1
    found = random_effects([Difference(value, error, 12) for value in values])
    assert found.tau == pytest.approx(math.sqrt(np.var(values, ddof=1) - error**2))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.difference.interval() == pytest.approx((expected.low, expected.high))
    q = sum((value - np.mean(values)) ** 2 for value in values) / error**2
    assert found.heterogeneity == pytest.approx(stats.chi2.sf(q, 3))


def test_cells_that_agree_by_chance_are_not_narrower_than_their_errors():
    found = random_effects([Difference(1.0, 0.3, 12), Difference(1.0, 0.4, 12)])
    assert found.tau == 0 and found.heterogeneity == 1
    assert found.difference.error == pytest.approx(1 / math.sqrt(1 / 0.09 + 1 / 0.16))


def test_agreement_is_a_weighted_chi_square():
    noise = Noise(0.2, 12)
    ours, paper = [[88.0, 88.2], [87.0], [86.5]], [87.0, 86.5, 86.0]
    apart = np.array([1.1, 0.5, 0.5])
    weights = 1 / (0.04 * np.array([1.5, 2.0, 2.0]))
    shift = (weights * apart).sum() / weights.sum()
    found = agreement(ours, paper, noise)
    assert found.shift == pytest.approx(shift) and found.freedom == 2
    assert found.chi2 == pytest.approx((weights * (apart - shift) ** 2).sum())
    assert found.p_value == pytest.approx(stats.f.sf(found.chi2 / 2, 2, 12))
    assert agreement(ours[:1], paper[:1], noise) is None


@pytest.mark.parametrize(("effect", "least"), [(0.8, 3), (0.3, 8)])
def test_as_many_seeds_as_needed_find_an_effect_four_times_in_five(effect, least):
    n = seeds_needed(effect, 0.2)
    assert n == seeds_needed(-effect, 0.2) and abs(n - least) <= 1
    random = np.random.default_rng(0)

    def power(n):
        samples = random.normal(size=(4000, 2, n)) * 0.2
        p = stats.ttest_ind(samples[:, 0] + effect, samples[:, 1], axis=1).pvalue
        return np.mean(p < 0.05)

    assert power(n) > 0.78 and power(n - 1) < 0.82


def test_a_tenth_of_a_point_takes_more_seeds_than_anybody_trains():
    assert 70 < seeds_needed(0.1, 0.22) < 80
