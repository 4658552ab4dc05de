"""Figure 3 (right), correlations between filters; filters and coefficients as in Figure 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from configs.experiments import Cell
from scripts.evidence.artifacts import Filters, if_readable, read_filters
from scripts.evidence.figures.base import SINGLE, Figure, cell_name, in_a_row
from scripts.evidence.printed import DATASETS, MODELS
from scripts.evidence.results import Results

CELLS_OF = ("base", "vgg11")
"""The models of Table 3, the only table with Conv, L and Lr of a network."""
DATASET = "cifar10"
SMALL = 100
"""Numbers in a row from which on a matrix in one column has less than a pixel for each."""
STEPS = colormaps["PuOr"].resampled(65)
"""Colours whose steps are too small to see, but much smaller in a file than 256 of them."""


def _read_all(
    results: Results,
    model: str,
    variants: tuple[str, ...],
    usable: Callable[[Filters], bool] = lambda run: True,
) -> tuple[dict[str, Filters], list[str]]:
    """The filters of a model's variants, by their name and seed, and what is missing.

    Of each variant the run with the lowest seed that has filters that are `usable`.
    """
    found, missing = {}, []
    for variant in variants:
        cell = Cell(model, variant, DATASET)
        run_ids = {seed: r["run_id"] for seed, r in results.records(cell).items()}
        runs = (
            (seed, if_readable(read_filters, results.folder, run_id))
            for seed, run_id in run_ids.items()
        )
        seed, run = next(((s, run) for s, run in runs if run and usable(run)), (None, None))
        if run is not None:
            found[f"{variant}, seed {seed}"] = run
        elif run_ids:
            missing.append(f"artifacts/{next(iter(run_ids.values()))}.npz, or a part of it")
        else:
            missing.append(cell_name(cell))
    return found, missing


def _heading(results: Results, model: str, what: str) -> str:
    return f"{MODELS[model]} on {DATASETS[DATASET]}, recipe={results.recipe}, n = 1 of each: {what}"


def correlation_figures(results: Results) -> list[Figure]:
    """Correlation matrices of the chosen layers for Conv, L and Lr, a figure for each model."""
    figures = []
    for model in CELLS_OF:
        runs, missing = _read_all(results, model, ("Conv", "L", "Lr"))
        figures.append(
            Figure(
                f"figure3-correlations-{model}",
                _heading(results, model, "correlations"),
                f"Correlations between the filters of {MODELS[model]}'s chosen layers after "
                "training. P: primary, S: secondary filters.",
                [line for run in runs.values() for line in _correlation_lines(run)],
                missing,
                lambda width, runs=runs: _draw_correlations(runs, width),
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


def _draw_correlations(runs: dict[str, Filters], width: float) -> Canvas:
    """A row for each layer and a column for each run, the other way around in one column."""
    layers, turned = max((run.layers for run in runs.values()), key=len), width == SINGLE
    shape = (len(runs), len(layers)) if turned else (len(layers), len(runs))
    height = 0.7 + width / (2.2 if turned else 3.6) * shape[0]
    canvas = Canvas(figsize=(width, height), layout="compressed")
    panels = canvas.subplots(*shape, squeeze=False)
    names = list(runs), layers
    for axes, column in zip(panels[0], names[turned], strict=True):
        axes.set_title(column)
    for axes, row in zip(panels[:, 0], names[not turned], strict=True):
        axes.set_ylabel(row)
    for row, run in zip(panels if turned else panels.T, runs.values(), strict=True):
        for axes, matrix, primary in zip(row, run.correlations, run.primary, strict=False):
            image = _draw_matrix(axes, matrix, 1, small=turned)
            _mark_parts(axes, primary, len(matrix))
    side = {"location": "bottom", "aspect": 40} if turned else {"aspect": 30, "shrink": 0.6}
    canvas.colorbar(image, ax=panels, label="correlation", **side)
    return canvas


def _draw_matrix(
    axes: Axes, matrix: np.ndarray, largest: float, *, small: bool = False
) -> AxesImage:
    """A matrix as colours from -`largest` to `largest`, white at zero.

    A pixel for each number, however large it is shown; averages if it is too `small` for that.
    """
    return axes.imshow(
        matrix,
        cmap=STEPS,
        vmin=-largest,
        vmax=largest,
        interpolation="auto" if small and len(matrix) > SMALL else "none",
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
                _heading(results, model, "filters of the first layer"),
                f"The filters of {MODELS[model]}'s first layer after training, as RGB images; a "
                "LinearConv stores its primary filters and generates the secondary ones. Each "
                "filter is scaled by its largest weight, grey is zero.",
                [line for run in runs.values() for line in _filter_lines(run)],
                missing,
                lambda width, runs=runs: _draw_filters(runs, width),
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


def _draw_filters(runs: dict[str, Filters], width: float) -> Canvas:
    """A row for each run: all filters of a plain layer, or those of either kind in a block."""
    columns = 16 if width == SINGLE else 32
    parts = {name: _parts(run) for name, run in runs.items()}
    heights = [
        max(-(-len(images) * len(of_run) // columns) for images in of_run.values())
        for of_run in parts.values()
    ]
    size = width / (columns + 4)  # of a filter
    canvas = Canvas(figsize=(width, 0.4 + 0.25 * len(runs) + size * sum(heights)))
    canvas.set_layout_engine("constrained", wspace=0.04, hspace=0.02)
    rows = canvas.add_gridspec(len(runs), 1, height_ratios=heights)
    for row, height, (name, of_run) in zip(rows, heights, parts.items(), strict=True):
        blocks = row.subgridspec(1, len(of_run))
        for block, (kind, images) in zip(blocks, of_run.items(), strict=True):
            axes = canvas.add_subplot(block)
            axes.axis("off")
            axes.imshow(_mosaic(images, height, columns // len(of_run)), interpolation="none")
            axes.set_title(f"{name}: {kind}", fontsize=7)
    return canvas


def _parts(run: Filters) -> dict[str, np.ndarray]:
    """The first layer's filters as images (N, H, W, 3), by kind."""
    largest = np.abs(run.filters).max(axis=(1, 2, 3), keepdims=True)
    scaled = run.filters / np.where(largest == 0, 1, largest)
    images = 0.5 + scaled.transpose(0, 2, 3, 1) / 2
    split = run.primary[0]
    if split == len(images):
        return {"all filters": images}
    return {"primary": images[:split], "secondary": images[split:]}


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
                _heading(results, model, "coefficients of the first layer"),
                f"The coefficients A that generate the secondary filters of {MODELS[model]}'s "
                "first layer from its primary ones (of LRr the product A1 A2) after training.",
                [line for run in runs.values() for line in _coefficient_lines(run)],
                missing,
                lambda width, runs=runs: _draw_coefficients(runs, width),
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


def _draw_coefficients(runs: dict[str, Filters], width: float) -> Canvas:
    rows, columns = in_a_row(width, len(runs))
    canvas = Canvas(figsize=(width, 0.4 + 2.3 * rows), layout="compressed")
    largest = max(np.abs(run.coefficients[0]).max() for run in runs.values())
    panels = canvas.subplots(rows, columns, squeeze=False)
    for axes, (name, run) in zip(panels.ravel(), runs.items(), strict=True):
        image = _draw_matrix(axes, run.coefficients[0].T, largest)
        axes.set_title(name)
        axes.set_xlabel("primary filter")
        axes.set_ylabel("secondary filter")
        axes.tick_params(length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    canvas.colorbar(image, ax=panels, shrink=0.8, label="coefficient", aspect=20)
    return canvas
