"""What accuracy costs: against measured training time and against multiply-adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from configs import compose
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
from scripts.evidence.printed import MODELS, paper_rows
from scripts.evidence.results import Results
from scripts.evidence.speeds import Benchmarks, Setting, read_benchmarks

DATASET = "cifar10"
VARIANTS = ("Conv", "e", "Lr", "LRr")
Point = dict[str, Any]


def cost_figure(results: Results, metric: str) -> Figure:
    """Accuracy against training time and multiply-adds of the variants of each model."""
    models = {row.model for row in paper_rows() if row.table == 4}
    cells = [
        cell
        for cell in all_cells()
        if cell.dataset == DATASET
        and cell.model in models
        and cell.variant in VARIANTS
        and cell.alpha is None
    ]
    found = [cell for cell in cells if results.records(cell)]
    benchmarks = read_benchmarks(results.folder)
    setting = _setting(benchmarks, found) if _is_timed(results.recipe) else None
    points = [
        _point(results, cell, metric, benchmarks.times.get((setting, cell.model, cell.variant)))
        for cell in sorted(found, key=lambda c: (c.model, VARIANTS.index(c.variant)))
    ]
    device = benchmarks.devices[setting] if setting else "no device"
    return Figure(
        "cost-of-accuracy",
        f"Accuracy for its cost on CIFAR-10, recipe={results.recipe}, {metric} epoch",
        f"Test accuracy on CIFAR-10 ({metric} epoch, mean and standard deviation over the seeds) "
        f"against the cost of training with recipe={results.recipe}; the axes do not begin at 0. "
        f"Time: the step of runtime=fast as measured on one device ({_where(setting)}{device}), "
        "wherever the runs were trained, times the number of steps; a variant whose step was not "
        "measured, or on another day than Conv's, is missing there, as are recipes with another "
        "batch size or optimizer than the paper's. Multiply-adds: of all forward "
        "passes, LinearConv layers factored.",
        points,
        [cell_name(cell) for cell in cells if cell not in found],
        lambda width: _draw(points, width),
    )


def _is_timed(recipe: str) -> bool:
    """Whether a recipe's steps are those that are benchmarked, the paper's."""
    ours, timed = (
        compose([*Cell("base", "Conv", DATASET).overrides(name, 0)]).recipe
        for name in (recipe, "paper")
    )
    return (ours.batch_size, ours.optimizer) == (timed.batch_size, timed.optimizer)


def _setting(benchmarks: Benchmarks, cells: Sequence[Cell]) -> Setting | None:
    """The file with the fp32 steps of most of these networks; of equally good ones the newest."""
    steps = [
        (setting, model, variant)
        for (setting, model, variant), times in benchmarks.times.items()
        if setting[1] == "fp32" and "step_fast" in times
    ]
    wanted = {(cell.model, cell.variant) for cell in cells}
    known = Counter(setting for setting, *network in steps if tuple(network) in wanted)
    newest = {setting: max(benchmarks.origins[setting[0]], default="") for setting in known}
    return max(known, key=lambda setting: (known[setting], newest[setting]), default=None)


def _where(setting: Setting | None) -> str:
    return "" if setting is None else f"{setting[1]}, "


def _point(results: Results, cell: Cell, metric: str, times: dict[str, float] | None) -> Point:
    runs = results.accuracies(cell, metric).accuracy
    config = compose([*cell.overrides(results.recipe, 0)])
    images, epochs = config.dataset.train_size, config.recipe.epochs
    steps = epochs * -(-images // config.recipe.batch_size)
    step = (times or {}).get("step_fast")
    macs = counts(cell.model, cell.variant).macs["train", "factored"]
    return {
        "model": cell.model,
        "variant": cell.variant,
        "accuracy": round(runs.mean(), 4),
        "std": round(runs.std(), 4) if len(runs) > 1 else None,
        "n": len(runs),
        "training_hours": None if step is None else float(f"{step * steps / 3.6e6:.4g}"),
        "forward_teramacs": float(f"{macs * images * epochs / 1e12:.4g}"),
    }


def _draw(points: list[Point], width: float) -> Canvas:
    rows, columns = in_a_row(width, 2)
    canvas = Canvas(figsize=(width, 0.6 + 2.3 * rows))
    time, macs = canvas.subplots(rows, columns, sharey=True)
    for axes, name in ((time, "training_hours"), (macs, "forward_teramacs")):
        for model in dict.fromkeys(point["model"] for point in points):
            _draw_model(axes, [p for p in points if p["model"] == model and p[name]], name)
        axes.margins(0.12)  # room for the names
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
    for axes in canvas.axes[:rows]:
        axes.set_ylabel("CIFAR-10 test accuracy (%)")
    time.set_xlabel("Training time (hours)")
    macs.set_xlabel("Forward multiply-adds of training ($10^{12}$)")
    numbers = {v: [p["n"] for p in points if p["variant"] == v] for v in VARIANTS}
    keys = [
        key(f"{v} ({seeds(n)})", marker=MARKERS[v], color=COLORS[v], ms=5)
        for v, n in numbers.items()
        if n
    ]
    legend_below(canvas, keys, columns=2 if width == SINGLE else len(keys))
    return canvas


def _draw_model(axes: Axes, points: list[Point], name: str) -> None:
    """The variants of one model; its name above the dearest."""
    points = sorted(points, key=lambda point: point[name])
    for point in points:
        style = {"marker": MARKERS[point["variant"]], "color": COLORS[point["variant"]], "ms": 6}
        axes.errorbar(point[name], point["accuracy"], yerr=point["std"], elinewidth=0.8, capsize=2,
                      **style)  # fmt: skip
    if points:
        dearest = points[-1]
        top = dearest["accuracy"] + (dearest["std"] or 0)
        axes.annotate(MODELS[dearest["model"]], (dearest[name], top), (0, 6),
                      textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
