"""Two trained networks compared image by image: McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Comparison:
    """A network and its baseline, trained with the same seed, on the same test images.

    Attributes:
        name: of the network.
        baseline: name of the baseline.
        dataset: the dataset's name in print.
        seed: of both runs.
        images: number of test images.
        only_network: number of images that only the network classifies correctly.
        only_baseline: number of images that only the baseline classifies correctly.
    """

    name: str
    baseline: str
    dataset: str
    seed: int
    images: int
    only_network: int
    only_baseline: int

    @property
    def p_value(self) -> float:
        """Two-sided p value of McNemar's test in its exact, binomial form; 1 if none differs."""
        differing = self.only_network + self.only_baseline
        return float(binomtest(self.only_network, differing).pvalue) if differing else 1.0

    @property
    def error(self) -> float:
        """Standard error of `points`."""
        differing = self.only_network + self.only_baseline
        return math.sqrt((differing / self.images - (self.points / 100) ** 2) / self.images) * 100

    @property
    def points(self) -> float:
        """Difference between the accuracies, in points."""
        return 100 * (self.only_network - self.only_baseline) / self.images


def comparisons(results: Results) -> Iterator[Comparison]:
    """Every network of the tables with its baseline, for each seed that both kept images of.

    Args:
        results: the records of one recipe.

    Raises:
        UserError: damaged artifacts.
    """
    done = set()
    for row in paper_rows():
        for dataset in row.accuracies if row.baseline else ():
            cell, baseline = row.cell(dataset), Cell(row.baseline, "Conv", dataset)
            if cell in done:
                continue
            done.add(cell)
            plain = results.records(baseline)
            for seed, record in results.records(cell).items():
                if seed not in plain:
                    continue
                ours = if_readable(read_correct, results.folder, record["run_id"], "last")
                theirs = if_readable(read_correct, results.folder, plain[seed]["run_id"], "last")
                if ours is None or theirs is None:
                    continue
                alpha = "" if cell.alpha is None else f", alpha {cell.alpha:g}"
                yield Comparison(
                    name=row.name + alpha,
                    baseline=MODELS[row.baseline],
                    dataset=DATASETS[dataset],
                    seed=seed,
                    images=len(ours),
                    only_network=int(np.count_nonzero(ours & ~theirs)),
                    only_baseline=int(np.count_nonzero(theirs & ~ours)),
                )


def comparisons_grid(results: Results) -> Grid:
    """A row for each comparison; no rows if no two runs can be compared."""
    header = ["Network", "Baseline", "Dataset", "Seed", "Test images", "Only the network right"]
    header += ["Only the baseline right", "Difference (points)", "Its standard error"]
    header.append("p (McNemar, exact)")
    body = [
        [
            found.name,
            found.baseline,
            found.dataset,
            str(found.seed),
            f"{found.images:,}",
            str(found.only_network),
            str(found.only_baseline),
            f"{found.points:+.2f}",
            f"{found.error:.2f}",
            f"{found.p_value:.2g}",
        ]
        for found in comparisons(results)
    ]
    return Grid(header, body)
