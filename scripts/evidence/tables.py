"""Tables 2 to 5 as data: what was measured and counted here, beside the paper's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from configs import TrainConfig
from models import architecture
from scripts.evidence.comparison import Accuracy, accuracy
from scripts.evidence.counts import Counts, counts
from scripts.evidence.printed import PaperRow, change, paper_rows, printed
from scripts.evidence.quirks import QUIRKS
from scripts.evidence.results import Results
from scripts.evidence.speeds import Benchmarks, Setting


@dataclass(frozen=True)
class Count:
    """Parameters in millions, or FLOPs in billions, at the printed precision.

    Attributes:
        paper: as printed.
        ours: as counted here.
        paper_change: relative to the printed baseline (`printed.change`); None for baselines.
        ours_change: the same for our counts.
        additional: counted on top of the baseline's, which is trained first; has no change.
        exact: our count, unscaled.
        remark: a note on the counting.
    """

    paper: Decimal
    ours: Decimal
    paper_change: Decimal | None
    ours_change: Decimal | None
    additional: bool
    exact: int
    remark: str = ""

    @property
    def difference(self) -> Decimal:
        """Ours minus the paper's."""
        return self.ours - self.paper


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        printed: the paper's row.
        baseline: the printed row that it is relative to; None for a baseline.
        counts: this project's counts.
        accuracies: accuracies by dataset.
    """

    printed: PaperRow
    baseline: PaperRow | None
    counts: Counts
    accuracies: dict[str, Accuracy]

    @property
    def params(self) -> Count:
        """Parameters in millions."""
        return self._count("params", "params_m", 1e6)

    @property
    def flops(self) -> Count:
        """FLOPs of training in billions, in the paper's convention."""
        quirks = "".join(f" Quirk: {QUIRKS[name].meaning}." for name in self.counts.quirks)
        return self._count("flops", "flops_b", 1e9, quirks)

    @property
    def flops_inference(self) -> Decimal | None:
        """FLOPs of inference in billions; None if the paper gives none."""
        like = self.printed.flops_inference_b
        return None if like is None else printed(self.counts.flops_inference, 1e9, like)

    def _count(self, name: str, column: str, unit: float, remark: str = "") -> Count:
        paper, exact = getattr(self.printed, column), getattr(self.counts, name)
        ours = printed(exact, unit, paper)
        additional = architecture(self.printed.model).baseline is not None
        changes = None, None
        if self.baseline is not None and not additional:
            base = getattr(self.baseline, column)
            base_ours = printed(getattr(counts(*self.baseline.network), name), unit, base)
            changes = change(paper, base), change(ours, base_ours)
        return Count(paper, ours, *changes, additional, exact, remark)


@dataclass(frozen=True)
class Table:
    """One of Tables 2 to 5 under one recipe."""

    number: int
    recipe: str
    metric: str
    rows: list[Row]
    benchmarks: Benchmarks

    @property
    def settings(self) -> list[Setting]:
        """The settings in which any of the networks was benchmarked."""
        measured = sorted(self.benchmarks.devices)
        return [s for s in measured if any(speeds(self, row, s) for row in self.rows)]

    @property
    def datasets(self) -> list[str]:
        """The datasets in the columns."""
        return list(self.rows[0].printed.accuracies)


def tables(results: Results, metric: str, benchmarks: Benchmarks) -> list[Table]:
    """Tables 2 to 5 from the records of one recipe."""
    numbers = sorted({row.table for row in paper_rows()})
    return [
        Table(number, results.recipe, metric, _rows(results, number, metric), benchmarks)
        for number in numbers
    ]


def _rows(results: Results, number: int, metric: str) -> list[Row]:
    rows = [row for row in paper_rows() if row.table == number]
    baselines = {row.model: row for row in rows if row.baseline is None}
    return [
        Row(
            printed=row,
            baseline=baselines.get(row.baseline),
            counts=counts(*row.network),
            accuracies={name: accuracy(results, row, name, metric) for name in row.accuracies},
        )
        for row in rows
    ]


def speeds(table: Table, row: Row, setting: Setting) -> dict[str, float]:
    """Milliseconds of a row's network by measure; only the default alpha is benchmarked."""
    model, variant, alpha = row.printed.network
    if alpha not in (None, TrainConfig.alpha):
        return {}
    return table.benchmarks.times.get((setting, model, variant), {})
