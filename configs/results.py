"""The records of finished runs, the cells of the paper's tables that they fill, and their means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from configs.compose import CONFIG_DIR
from configs.experiments import TABLES, Cell, cell_runs, table_cells
from configs.paper import PaperRow
from configs.science import variant_name
from linearconv.engine.record import identity_hash, read_record
from linearconv.errors import UserError

Record = dict[str, Any]
Seeds = Mapping[int, Record]
"""The records that fill one cell, by seed in ascending order."""

RESULTS = CONFIG_DIR.parent / "results"
"""The repository's own results."""

METRICS = {"best": "test_acc_best", "last": "test_acc_last"}
"""The record's key by the name of the metric."""

CURVE = {"epoch", "test_acc", "train_acc", "correlation_loss"}
"""What is read of each epoch of a curve."""

CLOSE = 0.5
"""Points within which a result counts as close to the paper's."""


def recipes() -> list[str]:
    """Names of the recipes, the paper's first."""
    names = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))
    return sorted(names, key=lambda name: name != "paper")


def read_records(folder: Path) -> list[Record]:
    """All records of `folder/runs`, in the order of their names.

    Raises:
        UserError: no such folder, a damaged record, or two records of the same run.
    """
    if not (folder / "runs").is_dir():
        raise UserError(f"there are no records: {folder / 'runs'} is not there")
    records: dict[str, Record] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        record = read_record(path)
        _check_record(path, record)
        other = records.setdefault(identity_hash(record["science"]), record)
        if other is not record:
            raise UserError(f"{path} is another record of the run {other['run_id']}; delete one")
    return list(records.values())


def _check_record(path: Path, record: Record) -> None:
    """Refuse a record that lacks what tables, figures and the report read."""
    keys = {"run_id": str, "science": dict, "curve": list, "provenance": list, "best_epoch": int}
    wrong = [key for key, kind in keys.items() if not isinstance(record.get(key), kind)]
    if not all(isinstance(start, dict) for start in record.get("provenance") or ()):
        wrong.append("provenance")
    for key in METRICS.values():
        value = record.get(key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            wrong.append(key)
    curve = record.get("curve")
    if not curve or (isinstance(curve, list) and not all(map(_is_epoch, curve))):
        wrong.append("curve")
    if wrong:
        names = ", ".join(dict.fromkeys(wrong))
        raise UserError(f"{path} is damaged ({names} missing or wrong); restore or delete it")


def _is_epoch(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) >= CURVE
        and all(isinstance(entry[name], int | float) for name in CURVE - {"correlation_loss"})
    )


class Results:
    """The records of a results folder, sorted into the cells of one recipe's tables.

    Args:
        folder: holds `runs/` and `artifacts/`.
        recipe: a recipe's name.
        records: of the folder, if they are read already.

    Attributes:
        unused: the records that fill no cell.

    Raises:
        UserError: a damaged record.
    """

    def __init__(self, folder: Path, recipe: str, records: Iterable[Record] | None = None) -> None:
        self.folder, self.recipe = folder, recipe
        records = read_records(folder) if records is None else list(records)
        self._filled = _fill(records, recipe)
        used = {id(record) for seeds in self._filled.values() for record in seeds.values()}
        self.unused = [record for record in records if id(record) not in used]

    def records(self, cell: Cell) -> Seeds:
        """The records that fill a cell."""
        return self._filled.get(cell, {})

    def cells(self) -> list[Cell]:
        """The cells that have records, in the order of the tables."""
        return [cell for cell in all_cells() if cell in self._filled]

    def artifacts(self, record: Record) -> Path:
        """Where the arrays of a run lie, if they were kept."""
        return self.folder / "artifacts" / f"{record['run_id']}.npz"


@cache
def all_cells() -> tuple[Cell, ...]:
    """The cells of all tables, each once, in the order of the tables."""
    return tuple(dict.fromkeys(cell for table in TABLES for cell in table_cells(table)))


def _fill(records: list[Record], recipe: str) -> dict[Cell, dict[int, Record]]:
    """The records of each cell: those alone whose science is what the cell's run computes."""
    known = set(all_cells())
    claims: dict[Cell, list[Record]] = {}
    for record in records:
        cell = _claimed_cell(record["science"])
        if cell in known:
            claims.setdefault(cell, []).append(record)
    filled = {}
    for cell, claiming in claims.items():
        # What a record says it is decides only with which runs it is compared.
        seeds = sorted({record["science"]["seed"] for record in claiming})
        runs = cell_runs(cell, recipe=recipe, seeds=seeds)
        found = {
            run.seed: record
            for run in runs
            for record in claiming
            if record["science"] == run.science
        }
        if found:
            filled[cell] = found
    return filled


def _claimed_cell(science: dict[str, Any]) -> Cell | None:
    """The cell that a science config is about; None if it is of another layout."""
    try:
        variant = science["variant"]
        if not isinstance(science["seed"], int):
            return None
        return Cell(
            science["model"]["name"],
            variant_name(variant),
            science["dataset"]["name"],
            variant["alpha"] if variant["linear"] or variant["widths"] == "matched" else None,
        )
    except (KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Accuracy:
    """One accuracy of a table: the paper's, and what the runs here give.

    Attributes:
        paper: as printed, in percent, or in points from the baseline where `relative`.
        relative: whether it is a difference from the baseline.
        records: the cell's records, by seed.
        baseline: those of the baseline's cell, where `relative`.
        metric: "best" or "last".
    """

    paper: float
    relative: bool
    records: Seeds
    baseline: Seeds
    metric: str

    @property
    def values(self) -> list[float]:
        """Test accuracies in percent, by seed."""
        return [self._value(record) for record in self.records.values()]

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy in percent; None if not run."""
        return statistics.fmean(self.values) if self.records else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (n - 1) of `accuracy` over several seeds, else None."""
        return statistics.stdev(self.values) if len(self.records) > 1 else None

    @property
    def here(self) -> float | None:
        """What stands against `paper`; None if not run, or not comparable for want of a baseline.

        The mean over the seeds; where `relative`, that of the differences seed by seed, or, if no
        seed is also one of the baseline's, the difference of the means.
        """
        if not self.records or (self.relative and not self.baseline):
            return None
        if not self.relative:
            return self.accuracy
        if self.differences:
            return statistics.fmean(self.differences.values())
        return self.accuracy - statistics.fmean(map(self._value, self.baseline.values()))

    @property
    def differences(self) -> dict[int, float]:
        """Accuracy minus the baseline's by seed, of the seeds that both have."""
        return {
            seed: self._value(record) - self._value(self.baseline[seed])
            for seed, record in self.records.items()
            if seed in self.baseline
        }

    @property
    def n(self) -> int:
        """Number of seeds that `here` is the mean of."""
        return len(self.differences) or len(self.records)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) of `here`, where it is the mean of several."""
        if not self.relative:
            return self.spread
        differences = self.differences.values()
        return statistics.stdev(differences) if len(differences) > 1 else None

    @property
    def difference(self) -> float | None:
        """Here minus the paper, in points."""
        return None if self.here is None else self.here - self.paper

    @property
    def verdict(self) -> str:
        """`close` (within `CLOSE` points of the paper), `above`, `below`, or why there is none."""
        if not self.records:
            return "not run"
        if self.difference is None:
            return "no baseline"
        if abs(self.difference) <= CLOSE + 1e-9:  # 92.9 - 92.4 is a little above 0.5 in floats
            return "close"
        return "above" if self.difference > 0 else "below"

    def _value(self, record: Record) -> float:
        return record[METRICS[self.metric]]


def accuracy(results: Results, row: PaperRow, dataset: str, metric: str) -> Accuracy:
    """What the runs give for one accuracy of a row."""
    baseline = {}
    if row.baseline is not None:
        baseline = results.records(Cell(row.baseline, "Conv", dataset))
    return Accuracy(
        paper=float(row.accuracies[dataset]),
        relative=row.baseline is not None,
        records=results.records(row.cell(dataset)),
        baseline=baseline,
        metric=metric,
    )
