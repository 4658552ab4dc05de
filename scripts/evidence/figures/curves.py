"""Training curves: test and training accuracy, and the correlation loss, over the epochs."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, MaxNLocator

from configs import dataset_config
from configs.experiments import Cell, all_cells
from scripts.evidence.counts import counts
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
from scripts.evidence.printed import DATASETS, MODELS
from scripts.evidence.results import Record, Results

Curves = dict[str, list[list[dict[str, Any]]]]
"""The curves of a network's runs, by variant."""


def curve_figures(results: Results) -> list[Figure]:
    """Training curves of every network and dataset that has runs, at the default alpha."""
    return [
        _curve_figure(results, dataset, model, group)
        for (dataset, model), group in cells_by_network().items()
        if any(results.records(cell) for cell in group)
    ]


def cells_by_network() -> dict[tuple[str, str], list[Cell]]:
    """The cells with the default alpha by dataset and model, the variants in their order."""
    order = list(COLORS)
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(all_cells(), key=lambda c: (c.dataset, c.model, order.index(c.variant))):
        if cell.alpha is None:
            found.setdefault((cell.dataset, cell.model), []).append(cell)
    return found


def _curve_figure(results: Results, dataset: str, model: str, cells: list[Cell]) -> Figure:
    records = {cell.variant: list(results.records(cell).values()) for cell in cells}
    channels = dataset_config(dataset).channels
    curves = {
        variant: [
            _curve(record, counts(model, variant).correlation_bounds[channels]) for record in found
        ]
        for variant, found in records.items()
        if found
    }
    lines = [
        {"run_id": record["run_id"]} | {name: _rounded(value) for name, value in entry.items()}
        for variant, runs in curves.items()
        for record, curve in zip(records[variant], runs, strict=True)
        for entry in curve
    ]
    return Figure(
        f"curves-{dataset}-{model}",
        f"{MODELS[model]} on {DATASETS[dataset]}, recipe={results.recipe}",
        f"{MODELS[model]} on {DATASETS[dataset]}: test accuracy (dotted: training accuracy) and "
        "how far the correlation loss (Algorithm 1, over all layers) is above its lower bound "
        "after each epoch, whether or not it is trained on. Mean over the seeds; shaded: their "
        "range. Accuracies of the first epochs are below the axis.",
        lines,
        [cell_name(cell) for cell in cells if not records[cell.variant]],
        lambda width: _draw_curves(curves, width),
    )


def _curve(record: Record, bound: float) -> list[dict[str, Any]]:
    """A run's curve without the learning rate, with the correlation loss minus its bound."""
    curve = []
    for entry in record["curve"]:
        loss = entry["correlation_loss"]
        kept = {name: value for name, value in entry.items() if name != "lr"}
        curve.append(kept | {"correlation_excess": None if loss is None else loss - bound})
    return curve


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _draw_curves(curves: Curves, width: float) -> Canvas:
    rows, columns = in_a_row(width, 2)
    canvas = Canvas(figsize=(width, 0.7 + 2.3 * rows))
    accuracy, correlation = canvas.subplots(rows, columns)
    keys = []
    for i, (variant, runs) in enumerate(curves.items()):
        # Staggered markers distinguish the variants without colours.
        every = max(1, len(runs[0]) // 8)
        style = {"color": COLORS[variant], "lw": 1}
        marked = {"marker": MARKERS[variant], "ms": 3.5}
        keys.append(key(f"{variant} ({seeds([len(runs)])})", linestyle="-", **style, **marked))
        marked["markevery"] = (len(runs[0]) * (1 + 2 * i) // 96, every)
        draw_mean(accuracy, runs, "test_acc", shade=True, **style, **marked)
        draw_mean(accuracy, runs, "train_acc", shade=False, **style, linestyle=":", alpha=0.8)
        draw_mean(correlation, runs, "correlation_excess", shade=True, **style, **marked)
    accuracy.set_ylabel("Accuracy (%)")
    correlation.set_ylabel("Correlation loss above its bound")
    for axes in (accuracy, correlation):
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#dddddd", linewidth=0.5)
    _focus(accuracy, curves)
    if correlation.lines:
        correlation.set_yscale("log")
        # At least two labels, also where the values are within one power of ten.
        correlation.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        correlation.yaxis.set_major_formatter(_plain)
        correlation.minorticks_off()
    else:
        correlation.set_axis_off()
        correlation.text(0.5, 0.5, "no regularised filters", ha="center", va="center")
    keys += [key("test", linestyle="-"), key("training", linestyle=":")]
    legend_below(canvas, keys, columns=2 if width == SINGLE else 4)
    return canvas


def _plain(value: float, position: int | None = None) -> str:
    """`1,000`, `0.03`: without exponents, which differ too little to be told apart."""
    return f"{value:,.9f}".rstrip("0").rstrip(".")


def draw_mean(
    axes: Axes, runs: list[list[dict[str, Any]]], name: str, *, shade: bool, **style: Any
) -> None:
    """The mean of a value over the runs, epoch by epoch; their range shaded."""
    epochs = list(zip(*runs, strict=False))  # the same epoch of each run
    values = [[entry[name] for entry in entries] for entries in epochs]
    if any(value is None for entries in values for value in entries):
        return  # a plain Conv has no regularised filters
    numbers = [entries[0]["epoch"] for entries in epochs]
    axes.plot(numbers, [statistics.fmean(entries) for entries in values], **style)
    if len(runs) > 1 and shade:
        low, high = zip(*((min(v), max(v)) for v in values), strict=True)
        axes.fill_between(numbers, low, high, color=style["color"], alpha=0.2, lw=0)


def _focus(axes: Axes, curves: Curves) -> None:
    """Scale the y axis to the later epochs; the first ones may be below it."""
    later = [
        entry[name]
        for runs in curves.values()
        for run in runs
        for entry in run[len(run) // 4 :]
        for name in ("test_acc", "train_acc")
    ]
    margin = max(1.0, 0.08 * (max(later) - min(later)))
    axes.set_ylim(max(0.0, min(later) - margin), min(100.0, max(later) + margin))
