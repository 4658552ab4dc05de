"""The figures that report.py writes and shows."""

from __future__ import annotations

from scripts.paper.figures.accuracy import accuracy_figure, alpha_figure
from scripts.paper.figures.base import Figure
from scripts.paper.figures.cost import cost_figure
from scripts.paper.figures.curves import curve_figures
from scripts.paper.figures.differences import difference_figures
from scripts.paper.figures.filters import (
    coefficient_figures,
    correlation_figures,
    filter_figures,
)
from scripts.paper.figures.redundancy import redundancy_figures
from scripts.paper.results import Results

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
