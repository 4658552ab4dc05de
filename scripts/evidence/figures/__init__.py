"""The figures that report.py writes and shows."""

from __future__ import annotations

from scripts.evidence.figures.accuracy import accuracy_figure, alpha_figure
from scripts.evidence.figures.base import Figure
from scripts.evidence.figures.cost import cost_figure
from scripts.evidence.figures.curves import curve_figures
from scripts.evidence.figures.differences import difference_figures
from scripts.evidence.figures.filters import (
    coefficient_figures,
    correlation_figures,
    filter_figures,
)
from scripts.evidence.figures.redundancy import redundancy_figures
from scripts.evidence.results import Results

__all__ = ["Figure", "all_figures"]


def all_figures(results: Results, metric: str) -> list[Figure]:
    """All figures of one recipe, drawn or not."""
    return [
        accuracy_figure(results, metric),
        alpha_figure(results, metric),
        cost_figure(results, metric),
        *correlation_figures(results),
        *filter_figures(results),
        *coefficient_figures(results),
        *curve_figures(results),
        *difference_figures(results),
        *redundancy_figures(results),
    ]
