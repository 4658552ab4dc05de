"""Intervals and corrections against scipy's own tests and an example by hand."""

import numpy as np
import pytest
from scipy import stats

from scripts.paper.claims import Claim
from scripts.paper.intervals import holm, p_below, paired, welch
from scripts.paper.judging import _decide

SAMPLES = [
    ([90.1, 90.4, 90.2], [91.0, 90.8, 91.1, 90.9, 91.3]),
    ([86.16, 86.09], [83.68, 83.96]),
    ([70.0, 75.0, 80.0, 85.0], [77.0, 77.1, 76.9]),
]


@pytest.mark.parametrize(("a", "b"), SAMPLES)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_welch(a, b, level):
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    found = welch(a, b, level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.estimate == pytest.approx(np.mean(a) - np.mean(b))
    expected = stats.ttest_ind(a, b, equal_var=False, alternative="less").pvalue
    assert p_below(a, b) == pytest.approx(expected)


def test_paired():
    a, b = [90.1, 90.4, 90.2, 89.9], [91.0, 90.8, 91.1, 90.0]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired([x - y for x, y in zip(a, b, strict=True)])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_holm_by_hand():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, none below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize("shift", np.linspace(-2, 2, 41))
def test_equivalence_is_two_one_sided_tests(shift):
    """Each at 5 %, of the difference being above -margin and below +margin."""
    margin, spread = 0.5, np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    a, b = 90 + shift + spread, 90 + spread[1:]
    above = stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
    claim = Claim("", "", "", "equivalent", ["Lr"], margin=margin)
    assert (_decide(claim, a, b) == ("supported", "")) == (max(above, below) < 0.05)


def test_equal_values_have_an_interval_of_no_width():
    assert welch([90.0, 90.0, 90.0], [91.0, 91.0, 91.0]).high == -1.0
    assert p_below([90.0] * 3, [91.0] * 3) == 0.0 and p_below([91.0] * 3, [90.0] * 3) == 1.0
