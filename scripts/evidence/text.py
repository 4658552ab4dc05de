"""The tables as plain Unicode text, cell by cell.

`formats.py` converts it to Markdown and LaTeX, `page.py` to HTML.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from scripts.evidence.comparison import Accuracy
from scripts.evidence.printed import DATASETS
from scripts.evidence.speeds import Benchmarks, Setting
from scripts.evidence.tables import Count, Row, Table, speeds

NOT_RUN = "not run"
NOTHING = "-"
TITLES = {
    2: "VGG11-Lr with different shares of primary filters on CIFAR-10",
    3: "Versions of Conv and LinearConv",
    4: "Common architectures with LinearConv",
    5: "LinearConv and other methods",
}


def mean_text(values: Sequence[float], *, spread: bool = False) -> str:
    """The mean of some accuracies in percent, perhaps their standard deviation, and of how many."""
    if not values:
        return NOT_RUN
    deviation = f" ± {statistics.stdev(values):.2f}" if spread and len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation} (n={len(values)})"


@dataclass(frozen=True)
class Entry:
    """A cell as text.

    Attributes:
        paper: what the paper prints.
        ours: what was measured or counted here.
        difference: ours minus the paper's, `=` if none; empty if there is nothing to compare.
        verdict: see `Accuracy.verdict`; `same` or `different` for counts.
        accuracy: the source of the text, for accuracies.
        detail: source of a count, in a sentence.
        compared: run_ids of the runs and of those they are compared with; `accuracy` has its own.
    """

    paper: str
    ours: str
    difference: str
    verdict: str
    accuracy: Accuracy | None = None
    detail: str = ""
    compared: tuple[Sequence[str], Sequence[str]] = ((), ())

    @property
    def runs(self) -> tuple[Sequence[str], Sequence[str]]:
        """The run_ids of the runs and of those they are compared with."""
        if self.accuracy is None:
            return self.compared
        return tuple(self.accuracy.runs.run_id), tuple(self.accuracy.baseline.run_id)

    @property
    def parts(self) -> list[str]:
        """Paper, ours and difference, the last only where there is one."""
        return [part for part in (self.paper, self.ours, self.difference) if part]


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        header: one text for each column.
        body: rows of texts and entries.
        groups: indices of the rows that start a new group.
    """

    header: list[str]
    body: list[list[str | Entry]]
    groups: set[int] = field(default_factory=set)


def with_runs(grid: Grid) -> Grid:
    """The grid without the rows and columns whose accuracies are all not run.

    No rows are left if none has run.
    """
    if all(entry.verdict == NOT_RUN for row in grid.body for entry in filter(_is_accuracy, row)):
        return Grid(grid.header, [])
    rows = [i for i, row in enumerate(grid.body) if _has_run(row)]
    columns = [j for j, column in enumerate(zip(*grid.body, strict=True)) if _has_run(column)]
    return Grid(
        [grid.header[j] for j in columns],
        [[grid.body[i][j] for j in columns] for i in rows],
        {new for new, old in enumerate(rows) if old in grid.groups},
    )


def not_run(grid: Grid) -> int:
    """The number of accuracies in a grid that are not run."""
    return sum(_is_accuracy(cell) and cell.verdict == NOT_RUN for row in grid.body for cell in row)


def _is_accuracy(cell: str | Entry) -> bool:
    return isinstance(cell, Entry) and cell.accuracy is not None


def _has_run(cells: Sequence[str | Entry]) -> bool:
    """Whether there is an accuracy that has run, or none at all."""
    verdicts = [cell.verdict for cell in cells if _is_accuracy(cell)]
    return not verdicts or any(verdict != NOT_RUN for verdict in verdicts)


def paper_grid(table: Table) -> Grid:
    """The table as the paper lays it out."""
    columns = [
        *([accuracy_entry(row.accuracies[name]) for row in table.rows] for name in table.datasets),
        [params_entry(row) for row in table.rows],
        [flops_entry(row) for row in table.rows],
    ]
    names = [*(f"{DATASETS[name]} (%)" for name in table.datasets), "Parameters (M)", "FLOPs (B)"]
    if table.number == 2:  # printed with one column for each alpha
        header = ["alpha", *(f"{row.printed.alpha:g}" for row in table.rows)]
        names[0] = "Accuracy (%)"
        return Grid(header, [[name, *column] for name, column in zip(names, columns, strict=True)])
    rows = [row.printed.name for row in table.rows]
    body = [list(cells) for cells in zip(rows, *columns, strict=True)]
    return Grid(["Model", *names], body, _groups(table))


def _groups(table: Table) -> set[int]:
    return {i for i, row in enumerate(table.rows) if row.baseline is None}


def accuracy_entry(found: Accuracy) -> Entry:
    """The entry of an accuracy."""
    signed = "+" if found.relative else ""
    paper = f"{found.paper:{signed}.1f}"
    if found.runs.empty:
        return Entry(paper, NOT_RUN, "", found.verdict, found)
    count = f"n={found.n}"
    if found.ours is None:
        ours = f"{found.accuracy:.2f} absolute ({count}), baseline not run"
        return Entry(paper, ours, "", found.verdict, found)
    spread = "" if found.std is None else f" ± {found.std:.2f}"
    if found.relative and found.differences.empty:
        count += f", baseline n={len(found.baseline)} of other seeds"
    elif found.n < len(found.runs):
        count += f" of {len(found.runs)}: the baseline's seeds"
    ours = f"{found.ours:{signed}.2f}{spread} ({count})"
    return Entry(paper, ours, f"{found.difference:+.2f}", found.verdict, found)


def params_entry(row: Row) -> Entry:
    """Parameters in millions; in Table 4 with the change relative to the baseline."""
    return _count_entry(row.params, times_params if row.printed.table == 4 else None)


def flops_entry(row: Row) -> Entry:
    """FLOPs of training in billions, after those of inference where the paper gives them."""
    times, inference = (
        times_flops if row.printed.table == 4 else None,
        row.printed.flops_inference_b,
    )
    if inference is None:
        return _count_entry(row.flops, times)
    return _count_entry(row.flops, times, (f"({inference}) ", f"({row.flops_inference}) "))


def _count_entry(
    count: Count, times: Callable[[Decimal], str] | None, before: tuple[str, str] = ("", "")
) -> Entry:
    star = "*" if count.additional else ""
    values = (count.paper, count.paper_change), (count.ours, count.ours_change)
    texts = [
        f"{star}{times(relative) if times and relative is not None else ''}{prefix}{value}"
        for (value, relative), prefix in zip(values, before, strict=True)
    ]
    same = count.difference == 0
    return Entry(
        *texts,
        "=" if same else f"{count.difference:+}",
        "same" if same else "different",
        detail=f"{count.exact:,} exactly, counted from this repository's network.{count.remark}",
    )


def times_params(relative: Decimal) -> str:
    """A relative change of parameters, as printed in Table 4: (×0.43↓)."""
    return _times(relative, abs(relative).quantize(Decimal("0.01"), ROUND_HALF_UP))


def times_flops(relative: Decimal) -> str:
    """A relative change of FLOPs, as printed in Table 4: (×2.5↑), (×1↑), (×166↑)."""
    digits = "0.1" if abs(relative) < 10 else "1"
    rounded = abs(relative).quantize(Decimal(digits), ROUND_HALF_UP)
    return _times(relative, rounded.to_integral() if rounded == rounded.to_integral() else rounded)


def _times(relative: Decimal, rounded: Decimal) -> str:
    arrow = "↑" if relative > 0 else "↓"
    return f"(×{rounded}{arrow}) " if rounded else ""


def extra_grid(table: Table) -> Grid:
    """The table beyond the paper: seeds, exact multiply-adds, measured speed."""
    header = [
        "Model",
        "Seeds",
        "Training MACs (M), generated / factored",
        "Inference MACs (M), fused / factored",
    ]
    for stem, precision in table.settings:
        header += [
            f"Step (ms), usual / fast: {stem}, {precision}",
            f"Fused latency (ms), fast, batch 1 / 256: {stem}, {precision}",
        ]
    body = []
    for row in table.rows:
        alpha = f", alpha={row.printed.alpha:g}" if table.number == 2 else ""
        macs = {key: f"{value / 1e6:.1f}" for key, value in row.counts.macs.items()}
        cells = [
            row.printed.name + alpha,
            seeds_text(row),
            f"{macs['train', 'generate']} / {macs['train', 'factored']}",
            f"{macs['inference', 'fused']} / {macs['inference', 'factored']}",
        ]
        for setting in table.settings:
            times = speeds(table, row, setting)
            for pair in (("step_usual", "step_fast"), ("latency_b1", "latency_b256")):
                cells.append(" / ".join(_milliseconds(times.get(name)) for name in pair))
        body.append(cells)
    return Grid(header, body, _groups(table))


def _milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def seeds_text(row: Row) -> str:
    """The seeds that were run; by dataset where they differ."""
    by_dataset = {name: list(found.runs.index) for name, found in row.accuracies.items()}
    if len({tuple(seeds) for seeds in by_dataset.values()}) == 1:
        by_dataset = {"": next(iter(by_dataset.values()))}
    texts = (
        f"{DATASETS.get(name, name)} {', '.join(map(str, seeds))}".strip()
        for name, seeds in by_dataset.items()
        if seeds
    )
    return "; ".join(texts) or NOTHING


def notes(recipe: str, metric: str) -> list[str]:
    """Notes on all tables, in sentences."""
    selection = {
        "best": "the best test accuracy over the epochs, which is the paper's protocol and selects "
        "on test data",
        "settled": "the mean test accuracy of the last fifth of the epochs, which selects nothing; "
        "the paper's is the best over the epochs",
        "last": "the last epoch's test accuracy, which selects nothing; the paper's is the best "
        "over the epochs",
    }[metric]
    found = [
        "Cells: the paper | this repository | difference (this repository minus the paper).",
        f"Accuracy: {selection}. Baselines are absolute (%), the other rows in points from "
        "their baseline, seed by seed; mean ± sample standard deviation over n seeds.",
    ]
    if recipe != "paper":
        found.append(
            f"Trained with recipe={recipe}, not the paper's: the differences show the recipe too."
        )
    found.append("Parameters and FLOPs (the paper's convention, one image) are counted anew.")
    return found


def own_notes(table: Table) -> list[str]:
    """Notes on this table only."""
    found = []
    if table.number == 4:
        found.append("(×) is the change relative to the baseline, taken at the printed precision.")
    if any(row.printed.flops_inference_b for row in table.rows):
        found.append("FLOPs in parentheses are those of inference.")
    if any(row.params.additional for row in table.rows):
        found.append(
            "* in addition to the baseline, whose trained weights it starts from: those of its "
            "best epoch, selected on test data, also for the last epoch's accuracy."
        )
    return found


def extra_notes(table: Table) -> list[str]:
    """Notes on the table beyond the paper."""
    devices = dict.fromkeys(_measured_on(table.benchmarks, setting) for setting in table.settings)
    macs = (
        "MACs are exact multiply-adds of one image's forward pass; weights are generated once "
        "per batch of the paper's 64 in training, and for each image at inference."
    )
    return [macs, *devices, *table.benchmarks.notes]


def _measured_on(benchmarks: Benchmarks, setting: Setting) -> str:
    """A file of speeds, its device, and when and with which commits it was measured."""
    stem, _ = setting
    origins = benchmarks.origins.get(stem)
    measured = f", measured {', '.join(origins)}" if origins else ""
    return f"{stem}: {benchmarks.devices[setting]}{measured}."
