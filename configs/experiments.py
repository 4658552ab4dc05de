"""The runs behind the paper's tables, enumerated from configs/experiment/table<N>.yaml."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from configs.compose import CONFIG_DIR, compose
from configs.science import Science, run_id, science
from models import architecture

TABLES = (2, 3, 4, 5)


@dataclass(frozen=True)
class Cell:
    """One accuracy of a table: what its run trains, but for the seed.

    Attributes:
        model: a registered model.
        variant: Conv, r, e, L, Lr or LRr.
        dataset: a dataset's name.
        alpha: share of primary filters, or None for the default.
    """

    model: str
    variant: str
    dataset: str
    alpha: float | None = None

    def overrides(self, recipe: str, seed: int) -> tuple[str, ...]:
        """What train.py is called with."""
        named = [f"{key}={value}" for key, value in vars(self).items() if value is not None]
        return (*named, f"recipe={recipe}", f"seed={seed}")


@dataclass(frozen=True)
class Run:
    """A run that fills a cell.

    Attributes:
        cell: the cell.
        seed: the run's seed.
        overrides: what train.py is called with; where `baseline` is set, the path of its weights
            is still to be added as `baseline_checkpoint=`.
        science: the science config on the published data, as a record holds it.
        run_id: the run's name, which follows from `science`.
        baseline: the run whose trained network this one starts from, or None.
    """

    cell: Cell
    seed: int
    overrides: tuple[str, ...]
    science: Science
    run_id: str
    baseline: Run | None = None


def table_cells(table: int) -> list[Cell]:
    """The cells of a table, each once, in the order of its experiment file."""
    blocks = OmegaConf.to_container(
        OmegaConf.load(CONFIG_DIR / "experiment" / f"table{table}.yaml")
    )
    return list(dict.fromkeys(cell for block in blocks for cell in _cells(block)))


def cell_runs(cell: Cell, *, recipe: str = "paper", seeds: Sequence[int] = (0,)) -> list[Run]:
    """The runs of a cell, one for each seed.

    Raises:
        UserError: an unknown recipe, or a cell that cannot be run.
    """
    baseline = architecture(cell.model).baseline
    if baseline is not None:
        before = cell_runs(replace(cell, model=baseline), recipe=recipe, seeds=seeds)
    else:
        before = [None] * len(seeds)
    config = compose(cell.overrides(recipe, 0))
    runs = []
    for seed, start in zip(seeds, before, strict=True):
        config.seed = seed
        identity = science(config, baseline=start and start.run_id)
        overrides = cell.overrides(recipe, seed)
        runs.append(Run(cell, seed, overrides, identity, run_id(identity), start))
    return runs


def _cells(block: dict[str, Any]) -> Iterator[Cell]:
    """The product of a block's lists."""
    lists = (value if isinstance(value, list) else [value] for value in block.values())
    for values in itertools.product(*lists):
        yield Cell(**dict(zip(block, values, strict=True)))
