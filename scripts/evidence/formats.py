"""The tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pandas as pd

from scripts.evidence.tables import Row, Table, speeds
from scripts.evidence.text import (
    TITLES,
    Entry,
    Grid,
    extra_grid,
    extra_notes,
    notes,
    own_notes,
    paper_grid,
)


def title(table: Table) -> str:
    """The table's heading."""
    recipe = "" if table.recipe == "paper" else f", recipe {table.recipe}"
    return f"Table {table.number}: {TITLES[table.number]}{recipe}"


def _notes(table: Table) -> list[str]:
    return [*notes(table.recipe, table.metric), *own_notes(table)]


def markdown(table: Table) -> str:
    """The table, and what goes beyond the paper, in GitHub Markdown."""
    lines = [
        f"# {title(table)}",
        "",
        *_paragraphs(_notes(table)),
        *markdown_grid(paper_grid(table)),
    ]
    lines += ["", "## Beyond the paper", "", *_paragraphs(extra_notes(table))]
    return "\n".join([*lines, *markdown_grid(extra_grid(table)), ""])


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in (_markdown_cell(sentence), "")]


def markdown_grid(grid: Grid) -> list[str]:
    """A grid's lines in GitHub's Markdown."""
    rows = [grid.header, ["---"] * len(grid.header), *grid.body]
    return [f"| {' | '.join(map(_markdown_cell, row))} |" for row in rows]


def _markdown_cell(cell: str | Entry) -> str:
    text = cell if isinstance(cell, str) else " | ".join(cell.parts)
    return text.replace("|", r"\|").replace("*", r"\*")


def csv_text(table: Table) -> str:
    """One line for each row of the paper, with every number in its own column."""
    return lines_csv([_csv_line(table, row) for row in table.rows])


def lines_csv(lines: Sequence[dict[str, Any]]) -> str:
    """Lines as CSV; columns that a line lacks are empty."""
    frame = pd.DataFrame(lines, dtype=object)  # written with str(), whatever their type
    return frame.to_csv(index=False, lineterminator="\n")


def _csv_line(table: Table, row: Row) -> dict[str, object]:
    line: dict[str, object] = {
        "table": table.number,
        "recipe": table.recipe,
        "metric": table.metric,
        "model": row.printed.model,
        "variant": row.printed.variant,
        "alpha": row.printed.alpha,
        "baseline": row.printed.baseline,
    }
    for name, found in row.accuracies.items():
        line |= {
            f"{name}_paper": row.printed.accuracies[name],
            f"{name}_here": _number(found.ours, 4),
            f"{name}_std": _number(found.std, 4),
            f"{name}_n": found.n,
            f"{name}_n_baseline": len(found.baseline) if found.relative else None,
            f"{name}_difference": _number(found.difference, 4),
            f"{name}_accuracy": _number(found.accuracy, 4),
            f"{name}_seeds": " ".join(map(str, found.runs.index)),
            f"{name}_runs": " ".join(found.runs.run_id),
        }
    for key, count in (("params_m", row.params), ("flops_b", row.flops)):
        line |= {
            f"{key}_paper": count.paper,
            f"{key}_paper_change": _number(count.paper_change, 4),
            f"{key}_here": count.ours,
            f"{key}_here_change": _number(count.ours_change, 4),
            f"{key}_difference": count.difference,
        }
    line |= {"params": row.counts.params, "flops": row.counts.flops}
    line |= {f"macs_{phase}_{how}": value for (phase, how), value in row.counts.macs.items()}
    for setting in table.settings:
        times = speeds(table, row, setting)
        for measure in ("step_usual", "step_fast", "latency_b1", "latency_b256"):
            line[f"{measure}_ms ({', '.join(setting)})"] = times.get(measure)
    return line


def _number(value: float | Decimal | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


PREAMBLE = r"""% \usepackage{booktabs}
\providecommand{\stacked}[1]{\begin{tabular}[t]{@{}c@{}}#1\end{tabular}}
"""


def latex(table: Table) -> str:
    """The table, and what goes beyond the paper, for a document that uses booktabs."""
    name = f"Table {table.number} of the paper"  # LaTeX numbers the tables itself
    if table.recipe != "paper":
        name += f", recipe {table.recipe}"
    label = f"table{table.number}"
    parts = (
        (f"{name}: {TITLES[table.number]}", _notes(table), paper_grid(table), label),
        (f"{name}, beyond the paper", extra_notes(table), extra_grid(table), f"{label}-beyond"),
    )
    return PREAMBLE + "\n".join(_latex_float(*part) for part in parts)


def _latex_float(heading: str, sentences: Sequence[str], grid: Grid, label: str) -> str:
    lines = [
        "\\begin{table*}",
        "\\centering\\scriptsize\\setlength{\\tabcolsep}{2pt}\\setlength{\\belowcaptionskip}{4pt}",
        f"\\caption{{{_tex(' '.join([heading + '.', *sentences]))}}}",
        f"\\label{{tab:{label}}}",
        f"\\begin{{tabular}}{{l{'c' * (len(grid.header) - 1)}}}",
        "\\toprule",
        " & ".join(_latex_header(name) for name in grid.header) + r" \\",
    ]
    for i, row in enumerate(grid.body):
        lines.append("\\midrule" if i == 0 or i in grid.groups else "\\addlinespace")
        lines.append(" & ".join(map(_latex_cell, row)) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table*}", ""])


TEX = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "*": r"$^*$",
    "|": r"$|$",
}


def _tex(text: str) -> str:
    text = "".join(TEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.])([-+])(?=\d)", r"$\1$", text)


def _latex_header(name: str) -> str:
    return _stack(re.split(r"(?<=,) |(?<=:) ", name))


def _latex_cell(cell: str | Entry) -> str:
    """A cell in LaTeX, with the parts of an entry stacked."""
    return _tex(cell) if isinstance(cell, str) else _stack(cell.parts)


def _stack(lines: Sequence[str]) -> str:
    stacked = r" \\ ".join(map(_tex, lines))
    return stacked if len(lines) == 1 else rf"\stacked{{{stacked}}}"


TABLES: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": csv_text, "tex": latex}
"""The formats of a table by the endings of its files."""
