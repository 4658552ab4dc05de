"""How far each variant is from Conv over the epochs, and its gap between training and test."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from configs.experiments import Cell
from scripts.evidence.figures.base import (
    COLORS,
    MARKERS,
    SINGLE,
    Figure,
    cell_name,
    in_a_row,
    key,
    legend_below,
    seeds,
)
from scripts.evidence.figures.curves import cells_by_network
from scripts.evidence.printed import DATASETS, MODELS
from scripts.evidence.results import Results

LONG = 100
"""Epochs from which on runs are long; shorter ones end before the differences have settled."""
WINDOW = 10
"""Epochs that each point is a mean of."""
WINDOWS = ((11, 30), (31, 60), (61, 100), (101, 120), (121, 200), (201, 250))
"""First and last epochs of the table: before, between and after the drops of the learning rate."""


def difference_figures(results: Results) -> list[Figure]:
    """A figure of every network and dataset of which Conv and another variant have long runs."""
    figures = []
    for cells in cells_by_network().values():
        frame = accuracy_frame(results, cells)
        if "Conv" in frame and len(frame.columns) > 1 and frame.index.max() >= LONG:
            figures.append(_figure(results, cells, frame))
    return figures


def accuracy_frame(results: Results, cells: list[Cell], name: str = "test_acc") -> pd.DataFrame:
    """The mean over the seeds of a value of the curves: (epochs, variants)."""
    found = {}
    for cell in cells:
        curves = [record["curve"] for record in results.records(cell).values()]
        if curves:
            found[cell.variant] = pd.concat(
                [pd.Series({entry["epoch"]: entry[name] for entry in curve}) for curve in curves],
                axis=1,
            ).mean(axis=1)
    return pd.DataFrame(found)


def window_means(frame: pd.DataFrame, ours: str, theirs: str) -> list[float]:
    """The mean difference of two variants in each of `WINDOWS`, in points."""
    difference = frame[ours] - frame[theirs]
    return [float(difference.loc[first:last].mean()) for first, last in WINDOWS]


def _figure(results: Results, cells: list[Cell], frame: pd.DataFrame) -> Figure:
    dataset, model = cells[0].dataset, cells[0].model
    records = {cell.variant: results.records(cell) for cell in cells}
    runs = {variant: len(records[variant]) for variant in frame}
    apart = frame.sub(frame["Conv"], axis=0).rolling(WINDOW).mean().dropna()
    training = accuracy_frame(results, cells, "train_acc")
    gap = (training - frame).rolling(WINDOW).mean().dropna()
    rates = next(iter(records["Conv"].values()))["curve"]
    drops = [b["epoch"] for a, b in itertools.pairwise(rates) if b["lr"] <= a["lr"] / 2]
    lines: list[dict[str, Any]] = [
        {
            "epoch": int(epoch),
            "variant": variant,
            "difference": round(float(apart.loc[epoch, variant]), 4),
            "gap": round(float(gap.loc[epoch, variant]), 4),
            "n": runs[variant],
        }
        for variant in frame
        for epoch in apart.index
    ]
    return Figure(
        f"differences-{dataset}-{model}",
        f"{MODELS[model]} on {DATASETS[dataset]}, recipe={results.recipe}",
        f"{MODELS[model]} on {DATASETS[dataset]}: test accuracy minus that of Conv, and training "
        f"minus test accuracy, means over the seeds and the last {WINDOW} epochs. Dotted: drops "
        "of the learning rate.",
        lines,
        [cell_name(cell) for cell in cells if cell.variant not in frame],
        lambda width: _draw(apart, gap, runs, drops, width),
    )


def _draw(
    apart: pd.DataFrame, gap: pd.DataFrame, runs: dict[str, int], drops: list[int], width: float
) -> Canvas:
    rows, columns = in_a_row(width, 2)
    canvas = Canvas(figsize=(width, 0.7 + 2.3 * rows))
    panels = canvas.subplots(rows, columns)
    keys = []
    for i, variant in enumerate(apart):
        style = {"color": COLORS[variant], "marker": MARKERS[variant], "lw": 1, "ms": 3.5}
        keys.append(key(f"{variant} ({seeds([runs[variant]])})", **style | {"linestyle": "-"}))
        every = (len(apart) * (1 + 2 * i) // 96, max(1, len(apart) // 8))
        for axes, frame in zip(panels, (apart, gap), strict=True):
            axes.plot(frame.index, frame[variant], markevery=every, **style)
    for axes, label in zip(
        panels, ("Test accuracy minus Conv's (points)", "Training minus test (points)"), strict=True
    ):
        _finish(axes, label, drops)
    later = apart.loc[apart.index > LONG // 10 + WINDOW].to_numpy()
    panels[0].set_ylim(np.min(later) - 0.2, np.max(later) + 0.2)
    legend_below(canvas, keys, columns=3 if width == SINGLE else 6)
    return canvas


def _finish(axes: Axes, label: str, drops: list[int]) -> None:
    axes.set_ylabel(label)
    axes.set_xlabel("Epoch")
    axes.grid(color="#dddddd", linewidth=0.5)
    for epoch in drops:
        axes.axvline(epoch - 0.5, color="#888888", linestyle=":", lw=0.8)
