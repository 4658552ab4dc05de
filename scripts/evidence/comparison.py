"""One accuracy of the paper's tables, as printed and as measured by the runs here."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pandas as pd

from configs.experiments import Cell
from scripts.evidence.printed import PaperRow
from scripts.evidence.results import Results

CLOSE = 0.5
"""Difference in points up to which a result counts as close to the paper's."""


@dataclass(frozen=True)
class Accuracy:
    """One accuracy of a table: the paper's and ours.

    Attributes:
        paper: as printed, in percent, or if `relative`, in points from the baseline.
        relative: whether it is a difference from the baseline.
        runs: `run_id` and `accuracy` of the cell's runs, by seed (see `Results.accuracies`).
        baseline: the same for the baseline's cell, if `relative`.
    """

    paper: float
    relative: bool
    runs: pd.DataFrame
    baseline: pd.DataFrame

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy in percent; None if not run."""
        return _mean(self.runs.accuracy)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (n - 1) of `accuracy` over several seeds, else None."""
        return _deviation(self.runs.accuracy)

    @property
    def differences(self) -> pd.Series:
        """Accuracy minus the baseline's, for the seeds that both have."""
        return (self.runs.accuracy - self.baseline.accuracy).dropna()

    @property
    def ours(self) -> float | None:
        """The value to compare with `paper`; None if the cell or its baseline was not run.

        The mean over the seeds; if `relative`, the mean of the differences seed by seed, or, if the
        two share no seed, the difference of the means.
        """
        if not self.relative or self.runs.empty:
            return self.accuracy
        if self.baseline.empty:
            return None
        if self.differences.empty:
            return self.accuracy - statistics.fmean(self.baseline.accuracy)
        return _mean(self.differences)

    @property
    def n(self) -> int:
        """Number of seeds that `ours` is the mean of."""
        return len(self.differences) or len(self.runs)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) of `ours` over several seeds, else None."""
        return _deviation(self.differences) if self.relative else self.spread

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.ours is None else self.ours - self.paper

    @property
    def verdict(self) -> str:
        """`close` (within `CLOSE` points of the paper), `above`, `below`, or why there is none."""
        if self.runs.empty:
            return "not run"
        if self.difference is None:
            return "no baseline"
        if abs(self.difference) <= CLOSE + 1e-9:  # 92.9 - 92.4 is a little above 0.5 in floats
            return "close"
        return "above" if self.difference > 0 else "below"


# `statistics` sums exactly, so that the last digit does not depend on the pandas version.
def _mean(values: pd.Series) -> float | None:
    return None if values.empty else statistics.fmean(values)


def _deviation(values: pd.Series) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def accuracy(results: Results, row: PaperRow, dataset: str, metric: str) -> Accuracy:
    """One accuracy of a row, as printed and as measured.

    Args:
        results: the records of one recipe.
        row: the paper's row.
        dataset: the column.
        metric: "best" or "last".
    """
    runs = results.accuracies(row.cell(dataset), metric)
    baseline = runs[:0]
    if row.baseline is not None:
        baseline = results.accuracies(Cell(row.baseline, "Conv", dataset), metric)
    return Accuracy(float(row.accuracies[dataset]), row.baseline is not None, runs, baseline)
