"""The runs behind the paper's tables, enumerated from configs/experiment/table<N>.yaml."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from configs.compose import CONFIG_DIR, compose
from configs.schema import TrainConfig
from configs.science import Science, run_id, science
from linearconv.errors import UserError
from models import architecture

TABLES = (2, 3, 4, 5)


@dataclass(frozen=True)
class Cell:
    """One accuracy of a table: what its run trains, but for the seed.

    Attributes:
        model: a registered model.
        variant: Conv, r, e, L, Lr or LRr.
        dataset: a dataset's name.
        alpha: share of primary filters; the default one is None, however it is given.
    """

    model: str
    variant: str
    dataset: str
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha == TrainConfig.alpha:
            object.__setattr__(self, "alpha", None)  # one cell has one name

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


def select_runs(
    tables: Sequence[int],
    *,
    recipe: str = "paper",
    seeds: Sequence[int] = (0,),
    **narrowed: Collection[str],
) -> list[Run]:
    """The runs behind tables, each once, in the order to train them.

    All cells come with one seed before any comes with the next, so that a table is full early; a
    baseline comes before what starts from it, also where the narrowing leaves it out.

    Args:
        tables: numbers of the tables.
        recipe: what is trained with.
        seeds: of each cell.
        narrowed: names to keep, for any of `model`, `variant` and `dataset`; empty for all.

    Raises:
        UserError: a name that none of the tables has, or no cell is left.
    """
    cells = list(dict.fromkeys(cell for table in tables for cell in table_cells(table)))
    for attribute, names in narrowed.items():
        known = list(dict.fromkeys(getattr(cell, attribute) for cell in cells))
        for name in names:
            if name not in known:
                raise UserError(f"no cell has {attribute} {name!r}; choose from {', '.join(known)}")
    kept = [
        cell
        for cell in cells
        if all(not names or getattr(cell, key) in names for key, names in narrowed.items())
    ]
    if not kept:
        raise UserError("no cell of the table has all of the names at once")
    runs = [run for cell in kept for run in cell_runs(cell, recipe=recipe, seeds=seeds)]
    runs.sort(key=lambda run: seeds.index(run.seed))
    ordered = (one for run in runs for one in (run.baseline, run) if one is not None)
    return list({run.run_id: run for run in ordered}.values())


def _cells(block: dict[str, Any]) -> Iterator[Cell]:
    """The product of a block's lists."""
    lists = (value if isinstance(value, list) else [value] for value in block.values())
    for values in itertools.product(*lists):
        yield Cell(**dict(zip(block, values, strict=True)))
