"""McNemar's test on the images that runs got right."""

import numpy as np
from scipy.stats import binom

from configs.experiments import Cell
from scripts.evidence.image_by_image import comparisons_grid, mcnemar
from scripts.evidence.results import Results
from tests.records import add_artifacts, add_runs


def bits(*right: int) -> np.ndarray:
    images = np.zeros(20, dtype=bool)
    images[list(right)] = True
    return images


def test_networks_are_compared_with_their_baseline_seed_by_seed(tmp_path):
    conv = add_runs(tmp_path, Cell("base", "Conv", "cifar10"), [(87, 86), (87, 86), (87, 86)])
    lrr = add_runs(tmp_path, Cell("base", "LRr", "cifar10"), [(86, 85), (86, 85)])
    everything = bits(*range(20))
    for i, record in enumerate(conv):
        kept = bits(0, 1, 2, 3, 4, 5, 6, 7) if i == 0 else everything
        add_artifacts(tmp_path, record, correct={"best": everything, "last": kept})
    add_artifacts(tmp_path, lrr[0], correct={"best": everything, "last": bits(0, 1, 8)})
    add_artifacts(tmp_path, lrr[1])  # of a run that kept none
    (row,) = comparisons_grid(Results(tmp_path, "paper")).body
    assert row[:4] == ["Base-LRr", "Base", "CIFAR-10", "0"]
    assert row[4:9] == ["20", "1", "6", "-25.00", "11.99"]  # sqrt((7 / 20 - 0.25**2) / 20)
    assert row[9] == f"{2 * binom.cdf(1, 7, 0.5):.2g}"


def test_equal_networks_do_not_differ():
    assert mcnemar(bits(1), bits(1)) == ["20", "0", "0", "+0.00", "0.00", "1"]
