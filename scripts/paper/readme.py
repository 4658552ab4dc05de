"""The generated blocks of README.md: how they are replaced, and that of the accuracies."""

from __future__ import annotations

import re

from linearconv.errors import UserError
from scripts.paper.comparison import Accuracy
from scripts.paper.formats import markdown_grid
from scripts.paper.results import Results
from scripts.paper.speeds import Benchmarks
from scripts.paper.tables import Row, tables
from scripts.paper.text import NOT_RUN, Grid

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
    """The networks of Tables 3 and 4 that have run on CIFAR-10: costs and accuracies."""
    found = {recipe: _rows(results) for recipe, results in by_recipe.items()}
    header = ["CIFAR-10, best test accuracy (%)", "parameters", "multiply-adds (M)", "the paper"]
    body = []
    for rows in zip(*found.values(), strict=True):
        accuracies = [row.accuracies[DATASET] for row in rows]
        if all(accuracy.runs.empty for accuracy in accuracies):
            continue
        row = rows[0]
        cells = [row.printed.name, f"{row.counts.params:,}", _macs(row), f"{_printed(row):.1f}"]
        body.append(cells + [_here(accuracy) for accuracy in accuracies])
    return "\n".join(markdown_grid(Grid([*header, *(f"recipe={r}" for r in found)], body)))


def _rows(results: Results) -> list[Row]:
    """The rows of Tables 3 and 4, each network once and those of a model together."""
    found = [t for t in tables(results, "best", Benchmarks()) if t.number in (3, 4)]
    rows = {row.printed.name: row for table in found for row in table.rows}
    models = list(dict.fromkeys(row.printed.model for row in rows.values()))
    return sorted(rows.values(), key=lambda row: models.index(row.printed.model))


def _macs(row: Row) -> str:
    return f"{row.counts.macs['inference', 'factored'] / 1e6:.1f}"


def _printed(row: Row) -> float:
    """The paper's accuracy, absolute."""
    baseline = 0.0 if row.baseline is None else float(row.baseline.accuracies[DATASET])
    return float(row.printed.accuracies[DATASET]) + baseline


def _here(accuracy: Accuracy) -> str:
    if accuracy.runs.empty:
        return NOT_RUN
    spread = "" if accuracy.spread is None else f" ± {accuracy.spread:.2f}"
    return f"{accuracy.accuracy:.2f}{spread} (n={len(accuracy.runs)})"
