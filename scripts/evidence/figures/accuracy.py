"""Figure 3 (left), accuracy against parameters, and Table 2 as curves over alpha."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke

from scripts.evidence.comparison import accuracy
from scripts.evidence.counts import counts
from scripts.evidence.figures.base import (
    COLORS,
    MARKERS,
    SINGLE,
    Figure,
    cell_name,
    in_a_row,
    key,
    seeds,
)
from scripts.evidence.printed import DATASETS, MODELS, PaperRow, absolute, paper_rows
from scripts.evidence.results import Results

DATASET = "cifar10"
Point = dict[str, Any]


def accuracy_figure(results: Results, metric: str) -> Figure:
    """Accuracy against parameters for Conv, Lr and LRr of each architecture in Table 4."""
    rows = [row for row in paper_rows() if row.table == 4]
    points = _points(results, rows, metric)
    return Figure(
        "figure3-accuracy",
        f"Accuracy and parameters on {DATASETS[DATASET]}, recipe={results.recipe}, {metric} epoch",
        f"Test accuracy on {DATASETS[DATASET]} ({metric}) against parameters; the larger a point, "
        "the more FLOPs in training (the paper's convention). Arrows lead from Conv to Lr to LRr. "
        "Filled: this repository, Lr and LRr relative to Conv as in the tables; outlined: as "
        "printed in the paper.",
        points,
        _missing(results, rows),
        lambda width: _draw_accuracy(points, width),
    )


def _points(results: Results, rows: list[PaperRow], metric: str) -> list[Point]:
    """All points of a figure, printed and measured; empty if nothing was measured."""
    if not any(results.records(row.cell(DATASET)) for row in rows):
        return []
    return [_point(results, row, rows, metric) for row in rows]


def _missing(results: Results, rows: list[PaperRow]) -> list[str]:
    cells = (row.cell(DATASET) for row in rows)
    return [cell_name(cell) for cell in cells if not results.records(cell)]


def _point(results: Results, row: PaperRow, rows: list[PaperRow], metric: str) -> Point:
    found = accuracy(results, row, DATASET, metric)
    base = next((r for r in rows if r.model == row.baseline and r.baseline is None), None)
    paper = float(absolute(row, DATASET))
    ours = found.accuracy
    if base is not None and found.ours is not None:  # the table's difference, seed by seed
        ours = accuracy(results, base, DATASET, metric).accuracy + found.ours
    counted = found.runs.accuracy
    if not found.differences.empty:
        counted = counted[found.differences.index]
    count = counts(*row.network)
    return {
        "model": row.model,
        "variant": row.variant,
        "alpha": row.alpha,
        "params": count.params,
        "flops_paper_convention": count.flops,
        "paper_accuracy": round(paper, 1),
        "accuracy": None if ours is None else round(ours, 4),
        "std": round(statistics.stdev(counted), 4) if len(counted) > 1 else None,
        "n": found.n,
    }


def _draw_accuracy(points: list[Point], width: float) -> Canvas:
    if width == SINGLE:
        canvas = Canvas(figsize=(width, 5))
        axes, beside = canvas.subplots(2, height_ratios=(3, 1.6))
    else:
        canvas = Canvas(figsize=(width, 4))
        axes, beside = canvas.subplots(1, 2, width_ratios=(5, 1.2))
    axes.set_xscale("log")
    axes.set_xlabel("Parameters (M)")
    axes.set_ylabel(f"{DATASETS[DATASET]} test accuracy (%)")
    axes.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0.16, 50 if width == SINGLE else 25)  # room for the names on the right
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    for model in dict.fromkeys(point["model"] for point in points):
        of_model = [point for point in points if point["model"] == model]
        _draw_series(axes, of_model, "paper_accuracy")
        _draw_series(axes, [p for p in of_model if p["accuracy"] is not None], "accuracy")
        _name_model(axes, of_model)
    _accuracy_legends(beside, points)
    return canvas


def _name_model(axes: Axes, points: list[Point]) -> None:
    """Write the model's name beside its Conv point, on the side without an arrow.

    If the measured and printed points are far apart, label both.
    """
    conv, linear = points[:2]
    left = linear["params"] > conv["params"]
    offset = 4 + _area(conv["flops_paper_convention"]) ** 0.5 / 2
    paper, ours = conv["paper_accuracy"], conv["accuracy"]
    heights = {paper: "#777777", ours: "#000000"}
    if ours is None or abs(ours - paper) < 1:
        heights = {paper if ours is None else (paper + ours) / 2: "#000000"}
    for height, color in heights.items():
        axes.annotate(
            MODELS[conv["model"]],
            (conv["params"] / 1e6, height),
            (-offset if left else offset, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=7,
            color=color,
        )


def _draw_series(axes: Axes, points: list[Point], height: str) -> None:
    """Points of one architecture and the arrows between them; outlined over filled points."""
    measured = height == "accuracy"
    for point in points:
        color = COLORS[point["variant"]]
        axes.scatter(
            point["params"] / 1e6,
            point[height],
            s=_area(point["flops_paper_convention"]),
            marker=MARKERS[point["variant"]],
            facecolors=color if measured else "none",
            edgecolors="none" if measured else color,
            linewidths=0.9,
            path_effects=[] if measured else [withStroke(linewidth=2, foreground="#ffffff")],
            zorder=3 if measured else 4,
        )
    for start, end in zip(points, points[1:], strict=False):
        radii = [_area(point["flops_paper_convention"]) ** 0.5 / 2 for point in (start, end)]
        axes.annotate(
            "",
            (end["params"] / 1e6, end[height]),
            (start["params"] / 1e6, start[height]),
            arrowprops={
                "arrowstyle": "->",
                "color": "#333333" if measured else "#888888",
                "linestyle": "-" if measured else (0, (2, 1.5)),
                "linewidth": 0.8,
                "mutation_scale": 6,
                "shrinkA": radii[0],
                "shrinkB": radii[1],
            },
            zorder=5,
        )


def _area(flops: float) -> float:
    """Area of a marker in square points, proportional to the square root of the FLOPs."""
    return 90 * (flops / 1e9) ** 0.5


def _accuracy_legends(axes: Axes, points: list[Point]) -> None:
    """Legends in place of a panel: variants, ours and the paper's; the marker sizes."""
    numbers = [point["n"] for point in points if point["n"]]
    kinds = [key(v, marker=MARKERS[v], color=COLORS[v], ms=5) for v in ("Conv", "Lr", "LRr")]
    kinds += [
        key(f"this repository\n({seeds(numbers)})", marker="o", ms=5, color="#777777", mec="none"),
        key("the paper", marker="o", ms=5, color="#777777", mfc="none"),
    ]
    sizes = [
        key(f"{b:g} B", marker="o", ms=_area(b * 1e9) ** 0.5, mfc="none", color="#777777")
        for b in (0.02, 0.2, 2, 16)
    ]
    axes.set_axis_off()
    axes.add_artist(axes.legend(handles=kinds, loc="upper left", labelspacing=0.8))
    axes.legend(
        handles=sizes,
        loc="lower right",
        labelspacing=1.9,
        handletextpad=1.4,
        borderpad=1.2,
        title="FLOPs",
        title_fontsize=7,
    )


def alpha_figure(results: Results, metric: str) -> Figure:
    """Accuracy, parameters and FLOPs of VGG11-Lr over alpha, as in Table 2."""
    rows = [row for row in paper_rows() if row.table == 2]
    points = _points(results, rows, metric)
    return Figure(
        "table2-alpha",
        f"VGG11-Lr on {DATASETS[DATASET]}, recipe={results.recipe}, {metric} epoch",
        f"VGG11-Lr on {DATASETS[DATASET]} with different shares alpha of primary filters; alpha = "
        "1 is plain VGG11. Filled: this repository, mean and standard deviation over seeds; "
        "outlined: as printed in the paper.",
        points,
        _missing(results, rows),
        lambda width: _draw_alpha(points, rows, width),
    )


def _draw_alpha(points: list[Point], rows: list[PaperRow], width: float) -> Canvas:
    shape = in_a_row(width, 3)
    canvas = Canvas(figsize=(width, 0.8 + 1.6 * shape[0]))
    panels = canvas.subplots(*shape)
    alphas = [point["alpha"] for point in points]
    outlined = {"marker": "o", "ms": 6, "mfc": "none", "color": "#777777", "ls": ":"}
    filled = {"marker": "s", "ms": 3.5, "color": COLORS["Lr"]}
    measured = [point for point in points if point["accuracy"] is not None]
    panels[0].plot(alphas, [p["paper_accuracy"] for p in points], label="the paper", **outlined)
    panels[0].errorbar(
        [p["alpha"] for p in measured],
        [p["accuracy"] for p in measured],
        yerr=[p["std"] or 0 for p in measured],
        label=f"this repository ({seeds([p['n'] for p in measured])})",
        elinewidth=0.8,
        capsize=2,
        **filled,
    )
    panels[1].plot(alphas, [float(row.params_m) for row in rows], **outlined)
    panels[1].plot(alphas, [p["params"] / 1e6 for p in points], **filled)
    panels[2].plot(alphas, [float(row.flops_b) for row in rows], **outlined)
    panels[2].plot(alphas, [p["flops_paper_convention"] / 1e9 for p in points], **filled)
    labels = ("Test accuracy (%)", "Parameters (M)", "FLOPs (B)")
    for axes, label in zip(panels, labels, strict=True):
        axes.set_ylabel(label)
        axes.set_xlabel("alpha")
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas], rotation=45)
        axes.grid(color="#dddddd", linewidth=0.5)
    canvas.align_ylabels(panels)
    canvas.legend(loc="outside lower center", ncols=2)
    return canvas
