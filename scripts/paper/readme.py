"""The generated blocks of README.md: how they are replaced, and that of the accuracies."""

from __future__ import annotations

import re
from dataclasses import replace

from linearconv.errors import UserError
from scripts.paper.comparison import Accuracy
from scripts.paper.formats import markdown_grid
from scripts.paper.results import Results
from scripts.paper.speeds import Benchmarks
from scripts.paper.tables import Row, tables
from scripts.paper.text import NOT_RUN, Entry, Grid

DATASET = "cifar10"


def renewed(text: str, blocks: dict[str, str]) -> str:
    """README's text with what is between `<!-- NAME -->` and `<!-- end of NAME -->` replaced.

    Raises:
        UserError: a pair of markers is not there exactly once.
    """
    for name, block in blocks.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        new = f"{start}\n{block}\n{end}"
        text, count = re.subn(
            rf"{re.escape(start)}.*?{re.escape(end)}", lambda _, new=new: new, text, flags=re.S
        )
        if count != 1:
            raise UserError(f"README.md must have the markers {start} and {end} once")
    return text


def results_block(by_recipe: dict[str, Results]) -> str:
    """`results_grid` in Markdown."""
    return "\n".join(markdown_grid(results_grid(by_recipe, "best")))


def results_grid(by_recipe: dict[str, Results], metric: str) -> Grid:
    """The networks of Tables 3 and 4 that have run on CIFAR-10: costs and accuracies."""
    found = {recipe: _rows(results, metric) for recipe, results in by_recipe.items()}
    header = [f"CIFAR-10, {metric} test accuracy (%)", "parameters", "multiply-adds (M)"]
    header += ["the paper", *(f"recipe={recipe}" for recipe in found)]
    body = []
    for rows in zip(*found.values(), strict=True):
        accuracies = [row.accuracies[DATASET] for row in rows]
        if all(accuracy.runs.empty for accuracy in accuracies):
            continue
        row = rows[0]
        cells = [row.printed.name, f"{row.counts.params:,}", _macs(row), f"{_printed(row):.1f}"]
        body.append(cells + [_absolute(accuracy) for accuracy in accuracies])
    return Grid(header, body)


def _rows(results: Results, metric: str) -> list[Row]:
    """The rows of Tables 3 and 4, each network once and those of a model together."""
    found = [t for t in tables(results, metric, Benchmarks()) if t.number in (3, 4)]
    rows = {row.printed.name: row for table in found for row in table.rows}
    models = list(dict.fromkeys(row.printed.model for row in rows.values()))
    return sorted(rows.values(), key=lambda row: models.index(row.printed.model))


def _macs(row: Row) -> str:
    return f"{row.counts.macs['inference', 'factored'] / 1e6:.1f}"


def _printed(row: Row) -> float:
    """The paper's accuracy, absolute."""
    baseline = 0.0 if row.baseline is None else float(row.baseline.accuracies[DATASET])
    return float(row.printed.accuracies[DATASET]) + baseline


def _absolute(accuracy: Accuracy) -> Entry:
    """The mean accuracy, also where the tables show the difference from a baseline."""
    accuracy = replace(accuracy, relative=False, baseline=accuracy.baseline[:0])
    if accuracy.runs.empty:
        return Entry("", NOT_RUN, "", accuracy.verdict, accuracy)
    spread = "" if accuracy.spread is None else f" ± {accuracy.spread:.2f}"
    ours = f"{accuracy.accuracy:.2f}{spread} (n={len(accuracy.runs)})"
    return Entry("", ours, "", accuracy.verdict, accuracy)
