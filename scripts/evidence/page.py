"""All results as one HTML page: a section for each recipe."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.experiments import all_cells
from scripts.evidence.claims import read_rules
from scripts.evidence.claims_text import (
    Verdicts,
    claims_grid,
    epochs_of,
    evidence_grid,
    frozen_lines,
    heading,
    noise_grid,
)
from scripts.evidence.comparison import CLOSE
from scripts.evidence.figures import Figure, all_figures
from scripts.evidence.figures.base import DOUBLE, SINGLE
from scripts.evidence.image_by_image import NOTE, comparisons_grid
from scripts.evidence.readme import results_grid
from scripts.evidence.results import Record, Results
from scripts.evidence.speeds import Benchmarks
from scripts.evidence.tables import Table, tables
from scripts.evidence.text import (
    TITLES,
    Grid,
    extra_grid,
    extra_notes,
    not_run,
    notes,
    own_notes,
    paper_grid,
    with_runs,
)

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Section:
    """The section of one recipe."""

    recipe: str
    results: Results
    tables: list[Table]
    figures: list[Figure]
    claims: Verdicts

    @property
    def runs(self) -> list[Record]:
        """All records that fill cells."""
        cells = self.results.cells()
        return [record for cell in cells for record in self.results.records(cell).values()]

    @property
    def epochs(self) -> int:
        """How long the recipe trains."""
        return epochs_of(self.recipe)

    @property
    def verdicts(self) -> dict[str, int]:
        """The number of accuracies in the tables by verdict."""
        found = [a.verdict for t in self.tables for row in t.rows for a in row.accuracies.values()]
        return {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}


def sections_of(
    claims: Iterable[Verdicts], metric: str, benchmarks: Benchmarks
) -> tuple[list[Section], list[Record]]:
    """A section for each recipe, those without runs last, and the records that fill no cell."""
    sections, left = [], None
    for verdicts in claims:
        results = verdicts.evidence.results
        found, figures = tables(results, metric, benchmarks), all_figures(results, metric)
        sections.append(Section(results.recipe, results, found, figures, verdicts))
        unused = {record["run_id"]: record for record in results.unused}
        left = unused if left is None else {k: v for k, v in left.items() if k in unused}
    return sorted(sections, key=lambda section: not section.runs), list((left or {}).values())


def render(claims: Iterable[Verdicts], metric: str, benchmarks: Benchmarks) -> str:
    """The page as HTML, with a section for each recipe whose claims were judged."""
    sections, unused = sections_of(claims, metric, benchmarks)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections,
        results=results_grid({section.recipe: section.results for section in sections}, metric),
        with_runs=with_runs,
        not_run=not_run,
        unused=unused,
        metric=metric,
        close=CLOSE,
        titles=TITLES,
        total=len(all_cells()),
        paper_grid=paper_grid,
        extra_grid=extra_grid,
        notes=notes,
        own_notes=own_notes,
        extra_notes=extra_notes,
        grid_rows=grid_rows,
        filled=filled,
        claims_grid=claims_grid,
        evidence_grid=evidence_grid,
        noise_grid=noise_grid,
        heading=heading,
        rules=read_rules().rules,
        frozen=frozen_lines(),
        comparisons_grid=comparisons_grid,
        mcnemar_note=NOTE,
        image=image,
        widths={"page": DOUBLE, "phone": SINGLE},
        provenance=provenance,
    )


def grid_rows(grid: Grid) -> list[tuple[bool, list[Any]]]:
    """The rows, each with whether it starts a group."""
    return [(i in grid.groups, row) for i, row in enumerate(grid.body)]


def filled(grid: Grid) -> Grid:
    """The grid without its empty columns."""
    columns = [j for j, column in enumerate(zip(*grid.body, strict=True)) if any(column)]
    body = [[row[j] for j in columns] for row in grid.body]
    return Grid([grid.header[j] for j in columns], body, grid.groups)


def image(figure: Figure, width: float) -> str:
    """The figure as a data URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(figure.render('svg', width)).decode()}"


def provenance(record: Record) -> dict[str, str]:
    """The provenance of a run, as text by column."""
    starts = record["provenance"]
    recipe = record["science"].get("recipe", {})
    return {
        "seed": str(record["science"].get("seed")),
        "best": f"{record['test_acc_best']:.2f} % (epoch {record['best_epoch']})",
        "last": f"{record['test_acc_last']:.2f} % (epoch {recipe.get('epochs')})",
        "device": _distinct(start.get("device") for start in starts),
        "versions": _distinct(_versions(start) for start in starts),
        "commit": _distinct(_commit(start) for start in starts),
        "date": _distinct((start.get("started") or "")[:10] for start in starts),
    }


def _versions(start: dict[str, Any]) -> str:
    known = {name: start.get("versions", {}).get(name) for name in ("python", "torch")}
    known["cuda"] = start.get("cuda")
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _commit(start: dict[str, Any]) -> str:
    changed = " (changed)" if start.get("git_dirty") else ""
    return (start.get("git_commit") or "unknown")[:12] + changed


def _distinct(texts: Iterable[str | None]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text)) or "unknown"
