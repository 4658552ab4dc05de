"""Figure 3 (right), correlations between filters; filters and coefficients as in Figure 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage

from configs.experiments import Cell
from scripts.paper.artifacts import Filters, read_filters
from scripts.paper.figures.base import DOUBLE, Figure, cell_name
from scripts.paper.printed import MODELS
from scripts.paper.results import Results

CELLS_OF = ("base", "vgg11")
"""The models of Table 3, the only table with Conv, L and Lr of a network."""
DATASET = "cifar10"


def _read_all(
    results: Results,
    model: str,
    variants: tuple[str, ...],
    usable: Callable[[Filters], bool] = lambda run: True,
) -> tuple[dict[str, Filters], list[str]]:
    """The filters of a model's variants, and what is missing.

    Of each variant the run with the lowest seed that has filters that are `usable`.
    """
    found, missing = {}, []
    for variant in variants:
        cell = Cell(model, variant, DATASET)
        run_ids = [record["run_id"] for record in results.records(cell).values()]
        runs = (read_filters(results.folder, run_id) for run_id in run_ids)
        run = next((run for run in runs if run and usable(run)), None)
        if run is not None:
            found[variant] = run
        elif run_ids:
            missing.append(f"artifacts/{run_ids[0]}.npz, or a part of it")
        else:
            missing.append(cell_name(cell))
    return found, missing


def correlation_figures(results: Results) -> list[Figure]:
    """Correlation matrices of the chosen layers for Conv, L and Lr, a figure for each model."""
    figures = []
    for model in CELLS_OF:
        runs, missing = _read_all(results, model, ("Conv", "L", "Lr"))
        figures.append(
            Figure(
                f"figure3-correlations-{model}",
                f"Correlations between the filters of {MODELS[model]}'s chosen layers after "
                "training. P: primary, S: secondary filters.",
                [line for run in runs.values() for line in _correlation_lines(run)],
                missing,
                lambda runs=runs: _draw_correlations(runs),
            )
        )
    return figures


def _correlation_lines(run: Filters) -> list[dict[str, Any]]:
    """Mean absolute correlations in the blocks of each matrix; the artifacts have the matrices."""
    lines = []
    for layer, split, matrix in zip(run.layers, run.primary, run.correlations, strict=True):
        size = np.abs(matrix)
        blocks = {
            "primary": _mean_off_diagonal(size[:split, :split]),
            "secondary": _mean_off_diagonal(size[split:, split:]),
            "between": size[:split, split:].mean() if split < len(size) else None,
        }
        line = {"run_id": run.run_id, "layer": layer, "filters": len(size), "primary": split}
        lines.append(
            line
            | {
                f"mean_abs_correlation_{name}": None if mean is None else f"{mean:.4f}"
                for name, mean in blocks.items()
            }
        )
    return lines


def _mean_off_diagonal(matrix: np.ndarray) -> float | None:
    count = len(matrix) * (len(matrix) - 1)
    return (matrix.sum() - np.trace(matrix)) / count if count else None


def _draw_correlations(runs: dict[str, Filters]) -> Canvas:
    rows = max(len(run.layers) for run in runs.values())
    width = 0.5 + 2.0 * len(runs)
    canvas = Canvas(figsize=(min(width, DOUBLE), 0.3 + 1.85 * rows))
    panels = canvas.subplots(rows, len(runs), squeeze=False)
    for column, (variant, run) in enumerate(runs.items()):
        for row, axes in enumerate(panels[:, column]):
            image = _draw_matrix(axes, run.correlations[row], largest=1)
            _mark_parts(axes, run.primary[row], len(run.correlations[row]))
            if row == 0:
                axes.set_title(variant)
            if column == 0:
                axes.set_ylabel(run.layers[row])
    canvas.colorbar(image, ax=panels, shrink=0.6, label="correlation", aspect=30)
    return canvas


def _draw_matrix(axes: Axes, matrix: np.ndarray, largest: float) -> AxesImage:
    """A matrix as colours from -`largest` to `largest`, white at zero."""
    return axes.imshow(
        matrix,
        cmap="PuOr",
        vmin=-largest,
        vmax=largest,
        interpolation="nearest",
        rasterized=True,
    )


def _mark_parts(axes: Axes, primary: int, filters: int) -> None:
    """Label the primary and secondary part of a matrix, and draw the border between them."""
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if primary == filters:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    middles = [(primary - 1) / 2, (primary + filters - 1) / 2]
    axes.set_xticks(middles, ["P", "S"])
    axes.set_yticks(middles, ["P", "S"])
    for line in (axes.axhline, axes.axvline):
        line(primary - 0.5, color="#000000", linewidth=0.8)


def filter_figures(results: Results) -> list[Figure]:
    """The first layer's filters as images, primary and secondary separately, for each model."""
    figures = []
    for model in CELLS_OF:
        runs, missing = _read_all(results, model, ("Conv", "L", "Lr", "LRr"))
        figures.append(
            Figure(
                f"figure1-filters-{model}",
                f"The filters of {MODELS[model]}'s first layer after training, as RGB images; each "
                "filter scaled by its largest weight, grey is zero.",
                [line for run in runs.values() for line in _filter_lines(run)],
                missing,
                lambda runs=runs: _draw_filters(runs),
            )
        )
    return figures


def _filter_lines(run: Filters) -> list[dict[str, Any]]:
    return [
        {
            "run_id": run.run_id,
            "filter": i,
            "kind": "primary" if i < run.primary[0] else "secondary",
            "weights": " ".join(f"{value:.4f}" for value in weights.ravel()),
        }
        for i, weights in enumerate(run.filters)
    ]


def _draw_filters(runs: dict[str, Filters]) -> Canvas:
    columns = 16
    counts = [max(run.primary[0], len(run.filters) - run.primary[0]) for run in runs.values()]
    heights = [-(-count // columns) for count in counts]
    canvas = Canvas(figsize=(DOUBLE, 0.35 + 0.2 * sum(heights) + 0.08 * len(runs)))
    canvas.set_layout_engine("constrained", wspace=0.04, hspace=0.02)
    panels = canvas.subplots(len(runs), 2, squeeze=False, height_ratios=heights)
    for (left, right), (variant, run), rows in zip(panels, runs.items(), heights, strict=True):
        largest = np.abs(run.filters).max(axis=(1, 2, 3), keepdims=True)
        scaled = run.filters / np.where(largest == 0, 1, largest)
        images = 0.5 + scaled.transpose(0, 2, 3, 1) / 2
        split = run.primary[0]
        for axes, part in ((left, images[:split]), (right, images[split:])):
            axes.axis("off")
            axes.imshow(_mosaic(part, rows, columns), interpolation="nearest", rasterized=True)
        name = variant if split < len(run.filters) else f"{variant},\nall"
        left.text(-0.02, 0.5, name, transform=left.transAxes, ha="right", va="center")
    panels[0][0].set_title("primary (stored)")
    if any(run.primary[0] < len(run.filters) for run in runs.values()):
        panels[0][1].set_title("secondary (generated)")
    return canvas


def _mosaic(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images (N, H, W, 3) in rows, with white lines between them: one image (H', W', 3)."""
    height, width = images.shape[1] + 1, images.shape[2] + 1
    canvas = np.ones((rows * height - 1, columns * width - 1, 3))
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        canvas[top : top + height - 1, left : left + width - 1] = image
    return canvas


def coefficient_figures(results: Results) -> list[Figure]:
    """The coefficients of the first layer's combinations, for each model."""
    figures = []
    for model in CELLS_OF:
        runs, missing = _read_all(
            results,
            model,
            ("L", "Lr", "LRr"),
            lambda run: run.coefficients[0] is not None,  # older artifacts have none
        )
        figures.append(
            Figure(
                f"figure1-coefficients-{model}",
                f"The coefficients A that generate the secondary filters of {MODELS[model]}'s "
                "first layer from its primary ones (of LRr the product A1 A2) after training.",
                [line for run in runs.values() for line in _coefficient_lines(run)],
                missing,
                lambda runs=runs: _draw_coefficients(runs),
            )
        )
    return figures


def _coefficient_lines(run: Filters) -> list[dict[str, Any]]:
    return [
        {
            "run_id": run.run_id,
            "secondary": run.primary[0] + i,
            "coefficients": " ".join(f"{value:.4f}" for value in column),
        }
        for i, column in enumerate(run.coefficients[0].T)
    ]


def _draw_coefficients(runs: dict[str, Filters]) -> Canvas:
    canvas = Canvas(figsize=(min(0.6 + 2.1 * len(runs), DOUBLE), 2.3))
    largest = max(np.abs(run.coefficients[0]).max() for run in runs.values())
    panels = canvas.subplots(1, len(runs), squeeze=False)[0]
    for axes, (variant, run) in zip(panels, runs.items(), strict=True):
        image = _draw_matrix(axes, run.coefficients[0].T, largest)
        axes.set_title(variant)
        axes.set_xlabel("primary filter")
        axes.tick_params(length=0)
    panels[0].set_ylabel("secondary filter")
    canvas.colorbar(image, ax=panels, shrink=0.8, label="coefficient", aspect=20)
    return canvas
