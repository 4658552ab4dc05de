"""How much of trained networks is left with fewer filters, as scripts/redundancy.py measured it."""

from __future__ import annotations

import pandas as pd
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
from scripts.evidence.results import Results, read_redundancy

VALUES = {"accuracy": "Test accuracy (%)", "kept": "Energy of the outputs kept (%)"}


def redundancy_figures(results: Results) -> list[Figure]:
    """A figure of every network and dataset that was measured."""
    measured = read_redundancy(results.folder)
    figures = []
    for cells in cells_by_network().values():
        frames = {cell: _means(measured, results, cell) for cell in cells}
        if any(not frame.empty for frame in frames.values()):
            figures.append(_figure(results, frames))
    return figures


def _means(measured: pd.DataFrame, results: Results, cell: Cell) -> pd.DataFrame:
    """The means over a cell's seeds by the share of its filters, and how many seeds there are."""
    runs = [record["run_id"] for record in results.records(cell).values()]
    rows = measured[measured.run_id.isin(runs)]
    if rows.empty:
        return rows
    whole = rows[rows.form == ""].assign(alpha=1.0, kept=1.0)
    of_all = (rows.layer == "") & rows.budget.isna()
    rows = rows[of_all & (rows.form == "linear") & (rows.fitted_to == "images")]
    found = pd.concat([rows, whole]).groupby("alpha")[["accuracy", "kept"]].mean()
    return found.assign(kept=100 * found.kept, n=len(whole))


def _figure(results: Results, frames: dict[Cell, pd.DataFrame]) -> Figure:
    shown = {cell.variant: frame for cell, frame in frames.items() if not frame.empty}
    dataset, model = next((cell.dataset, cell.model) for cell in frames)
    lines = [
        {"variant": variant, "share": share, "n": int(row.n)}
        | {name: round(row[name], 2) for name in VALUES}
        for variant, frame in shown.items()
        for share, row in frame.iterrows()
    ]
    return Figure(
        f"redundancy-{dataset}-{model}",
        f"{MODELS[model]} on {DATASETS[dataset]}, recipe={results.recipe}, not trained further",
        f"What is left of trained networks, {MODELS[model]} on {DATASETS[dataset]}, if each layer "
        "has a share of its filters and combines the others of these in the best way for the "
        "outputs on 512 training images: test accuracy, and the mean share of the outputs' energy, "
        "without any training; means over the seeds. L, Lr and LRr were trained with half of them.",
        lines,
        [cell_name(cell) for cell, frame in frames.items() if frame.empty],
        lambda width: _draw(shown, width),
    )


def _draw(shown: dict[str, pd.DataFrame], width: float) -> Canvas:
    rows, columns = in_a_row(width, 2)
    canvas = Canvas(figsize=(width, 0.7 + 2.3 * rows))
    panels = canvas.subplots(rows, columns)
    for axes, (name, label) in zip(panels, VALUES.items(), strict=True):
        for variant, frame in shown.items():
            style = {"color": COLORS[variant], "marker": MARKERS[variant], "lw": 1, "ms": 3.5}
            axes.plot(100 * frame.index, frame[name], **style)
        axes.set_xlabel("Primary filters (%)")
        axes.set_ylabel(label)
        axes.grid(color="#dddddd", linewidth=0.5)
    keys = [
        key(f"{variant} ({seeds([int(frame.n.iloc[0])])})", color=COLORS[variant],
            marker=MARKERS[variant], ms=3.5, lw=1, linestyle="-")
        for variant, frame in shown.items()
    ]  # fmt: skip
    legend_below(canvas, keys, columns=3 if width == SINGLE else 6)
    return canvas
