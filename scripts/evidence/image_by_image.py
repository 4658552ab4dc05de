"""Two trained networks compared image by image: McNemar's test."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binomtest

from configs.experiments import Cell
from scripts.evidence.artifacts import if_readable, read_correct
from scripts.evidence.printed import DATASETS, MODELS, paper_rows
from scripts.evidence.results import Results
from scripts.evidence.text import Grid

NOTE = (
    "Of the test images that only one of two networks gets right, McNemar's exact test asks "
    "whether one network gets more of them than chance would give it. Its standard error is about "
    "what two seeds of one network differ by anyway (root 2 times their noise), so what it finds "
    "between two networks may be a difference of seeds, which the claims judge. The weights are "
    "those of the last epoch: the best ones were selected on these very images. p is not corrected "
    "for the number of rows."
)
HEADER = ["Network", "Baseline", "Dataset", "Seed", "Test images", "Only the network right"]
HEADER += ["Only the baseline right", "Difference (points)", "Its standard error"]
HEADER.append("p (McNemar, exact)")


def comparisons_grid(results: Results) -> Grid:
    """A row for each network of the tables and its baseline, with a seed that both have run.

    Raises:
        UserError: damaged artifacts.
    """
    body = []
    rows = {
        row.cell(dataset): row for row in paper_rows() if row.baseline for dataset in row.accuracies
    }
    for cell, row in rows.items():
        plain = results.records(Cell(row.baseline, "Conv", cell.dataset))
        alpha = "" if cell.alpha is None else f", alpha {cell.alpha:g}"
        for seed, record in results.records(cell).items():
            if seed not in plain:
                continue
            ours, theirs = (
                if_readable(read_correct, results.folder, each["run_id"], "last")
                for each in (record, plain[seed])
            )
            if ours is None or theirs is None:
                continue
            body.append(
                [row.name + alpha, MODELS[row.baseline], DATASETS[cell.dataset], str(seed)]
                + mcnemar(ours, theirs)
            )
    return Grid(HEADER, body)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """The numbers of `HEADER` from the number of images on.

    Args:
        ours: (N,) bool, which images the network classifies correctly.
        theirs: the same of its baseline.
    """
    images, first, second = len(ours), int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    differing, apart = first + second, (first - second) / images
    error = math.sqrt((differing / images - apart**2) / images)
    p_value = binomtest(first, differing).pvalue if differing else 1.0
    return [
        f"{images:,}",
        str(first),
        str(second),
        f"{100 * apart:+.2f}",
        f"{100 * error:.2f}",
        f"{p_value:.2g}",
    ]
