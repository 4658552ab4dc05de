"""The runs behind the paper's tables, enumerated from configs/experiment/table<N>.yaml."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.compose import compose
from configs.groups import CONFIG_DIR
from configs.identity import Identity, cell_key, identify
from configs.naming import CUSTOM, recipe_name, run_id
from configs.schema import TrainConfig
from linearconv.engine.files import CHECKOUT, in_checkout
from linearconv.errors import UserError
from models import architecture

TABLES = (2, 3, 4, 5)

RESULTS = "results"
"""The folder of the checkout in which the records are that fill cells."""

CELLS = CHECKOUT / "results" / "paper" / "cells.csv"
"""The cells of the tables under each recipe, with their keys; written by scripts/count.py."""

TRIALS = "results/trials"
"""The folder of all other records; ignored by git."""


@dataclass(frozen=True)
class Cell:
    """One accuracy of a table: what its runs train, except for the seed.

    Attributes:
        model: a registered model.
        variant: Conv, r, e, L, Lr or LRr.
        dataset: a dataset's name.
        alpha: share of primary filters; the default value is stored as None.
    """

    model: str
    variant: str
    dataset: str
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha == TrainConfig.alpha:
            object.__setattr__(self, "alpha", None)  # one form for each cell

    def overrides(self, recipe: str, seed: int) -> tuple[str, ...]:
        """The overrides for train.py."""
        named = [f"{key}={value}" for key, value in vars(self).items() if value is not None]
        return (*named, f"recipe={recipe}", f"seed={seed}")


@dataclass(frozen=True)
class Run:
    """A run that fills a cell.

    Attributes:
        cell: the cell.
        seed: the run's seed.
        overrides: overrides for train.py; if `baseline` is set, its weights must still be added
            as `baseline_checkpoint=`.
        identity: what it computes on the published data; see `configs.identity`.
        run_id: the run's name, derived from `identity`.
        baseline: the run whose trained network this one starts from, or None.
    """

    cell: Cell
    seed: int
    overrides: tuple[str, ...]
    identity: Identity
    run_id: str
    baseline: Run | None = None


def table_cells(table: int) -> list[Cell]:
    """The cells of a table, each once, in the order of its experiment file."""
    blocks = OmegaConf.to_container(
        OmegaConf.load(CONFIG_DIR / "experiment" / f"table{table}.yaml")
    )
    return list(dict.fromkeys(cell for block in blocks for cell in _cells(block)))


@cache
def all_cells() -> tuple[Cell, ...]:
    """The cells of all tables, each once, in the order of the tables."""
    return tuple(dict.fromkeys(cell for table in TABLES for cell in table_cells(table)))


def filled_cell(identity: Identity, recipe: str) -> Cell | None:
    """The cell of a recipe's tables that a run fills, or None."""
    cell, seed = cells_by_key(recipe).get(cell_key(identity)), identity.get("seed")
    if cell is None or not isinstance(seed, int):
        return None
    if architecture(cell.model).baseline is None:
        return cell if identity.get("baseline") is None else None
    (run,) = cell_runs(cell, recipe=recipe, seeds=[seed])
    return cell if run.identity == identity else None


def fills_cell(identity: Identity) -> bool:
    """Whether a run fills a cell of the tables, with whichever recipe."""
    recipe = recipe_name(identity)
    return recipe != CUSTOM and filled_cell(identity, recipe) is not None


def cells_by_key(recipe: str) -> dict[str, Cell]:
    """The cells of all tables by the `cell_key` of their runs.

    They are read from `CELLS`; what it lacks, recipes and cells of one's own, is computed.
    """
    known = _known_keys()
    return {known.get((cell, recipe)) or key_of(cell, recipe): cell for cell in all_cells()}


@cache
def _known_keys() -> dict[tuple[Cell, str], str]:
    """The keys in `CELLS`, by cell and recipe."""
    found = {}
    with CELLS.open(newline="") as file:
        for row in csv.DictReader(file):
            alpha = float(row["alpha"]) if row["alpha"] else None
            cell = Cell(row["model"], row["variant"], row["dataset"], alpha)
            found[cell, row["recipe"]] = row["cell_key"]
    return found


@cache
def key_of(cell: Cell, recipe: str) -> str:
    """The `cell_key` of a cell's runs."""
    return cell_key(identify(compose(cell.overrides(recipe, 0))))


def results_dir(config: TrainConfig, identity: Identity) -> Path:
    """Where a run's record goes: by default to `RESULTS` if it fills a cell, else to `TRIALS`."""
    if config.results_dir is not None:
        return Path(config.results_dir)
    return in_checkout(RESULTS if fills_cell(identity) else TRIALS)


def results_dirs(given: Path | str | None) -> tuple[Path, ...]:
    """Where a run's results may be: in the given folder, else in those that are the defaults."""
    return (in_checkout(RESULTS), in_checkout(TRIALS)) if given is None else (Path(given),)


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
        identity = identify(config, baseline=start and start.run_id)
        overrides = cell.overrides(recipe, seed)
        runs.append(Run(cell, seed, overrides, identity, run_id(identity), start))
    return runs


def select_runs(
    tables: Sequence[int],
    *,
    recipe: str = "paper",
    seeds: Sequence[int] = (0,),
    **filters: Collection[str],
) -> list[Run]:
    """The runs behind tables, each once, in training order.

    All cells are trained with one seed before the next seed, so that a table fills up early. A
    baseline comes before the runs that start from it, even if the filters exclude it.

    Args:
        tables: the table numbers.
        recipe: name of the recipe.
        seeds: the seeds of each cell.
        filters: names to keep, for any of `model`, `variant` and `dataset`; empty: all.

    Raises:
        UserError: a name that is in none of the tables, or no cell matches.
    """
    cells = list(dict.fromkeys(cell for table in tables for cell in table_cells(table)))
    for attribute, names in filters.items():
        known = list(dict.fromkeys(getattr(cell, attribute) for cell in cells))
        for name in names:
            if name not in known:
                raise UserError(f"no cell has {attribute} {name!r}; choose from {', '.join(known)}")
    kept = [
        cell
        for cell in cells
        if all(not names or getattr(cell, key) in names for key, names in filters.items())
    ]
    if not kept:
        raise UserError("no cell matches all filters")
    runs = [run for cell in kept for run in cell_runs(cell, recipe=recipe, seeds=seeds)]
    runs.sort(key=lambda run: seeds.index(run.seed))
    ordered = (one for run in runs for one in (run.baseline, run) if one is not None)
    return list({run.run_id: run for run in ordered}.values())


def _cells(block: dict[str, Any]) -> Iterator[Cell]:
    """The Cartesian product of a block's lists."""
    lists = (value if isinstance(value, list) else [value] for value in block.values())
    for values in itertools.product(*lists):
        yield Cell(**dict(zip(block, values, strict=True)))
