"""One self-contained page with all tables, figures, curves and where each number comes from.

    python scripts/make_report.py                   # results/report.html

A section for each recipe whose runs fill cells, the paper's always. The page loads nothing from
anywhere: styles, script and images are in it.
"""

from __future__ import annotations

import argparse
import base64
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.benchmarks import Benchmarks, read_benchmarks
from configs.paper import DATASETS, MODELS
from configs.results import (
    CLOSE,
    METRICS,
    RESULTS,
    Record,
    Results,
    all_cells,
    read_records,
    recipes,
)
from configs.table_text import (
    TITLES,
    Grid,
    extra_grid,
    extra_notes,
    notes,
    own_notes,
    paper_grid,
)
from configs.tables import Table, tables
from figures import Figure, all_figures
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError

TEMPLATE = "report.html.j2"
WIDTH, HEIGHT = 300, 90
"""Of a run's chart, in pixels of its own."""


@dataclass(frozen=True)
class Section:
    """One recipe of the page."""

    recipe: str
    results: Results
    tables: list[Table]
    figures: list[Figure]

    @property
    def networks(self) -> dict[str, list[Record]]:
        """The records of each network and dataset, `Base on CIFAR-10`."""
        found: dict[str, list[Record]] = {}
        for cell in self.results.cells():
            name = f"{MODELS[cell.model]} on {DATASETS[cell.dataset]}"
            found.setdefault(name, []).extend(self.results.records(cell).values())
        return found

    @property
    def runs(self) -> list[Record]:
        """All records that fill cells."""
        return [record for records in self.networks.values() for record in records]

    @property
    def verdicts(self) -> dict[str, int]:
        """How many accuracies of the tables there are of each verdict."""
        found = [a.verdict for t in self.tables for row in t.rows for a in row.accuracies.values()]
        return {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}


def main() -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metric", choices=list(METRICS), default="best")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    path = args.results_dir / "report.html"
    try:
        records = read_records(args.results_dir)
        benchmarks = read_benchmarks(args.results_dir)
        sections, unused = read_sections(args.results_dir, records, args.metric, benchmarks)
        page = render(sections, unused, args.metric)
        with atomic_write(path) as file:
            file.write(page.encode())
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path}: {len(records)} runs, {len(page.encode()) / 1e6:.1f} MB")
    return 0


def read_sections(
    folder: Path, records: list[Record], metric: str, benchmarks: Benchmarks
) -> tuple[list[Section], list[Record]]:
    """A section for each recipe that has runs, and the records that fill no cell of any."""
    sections = []
    for recipe in recipes():
        results = Results(folder, recipe, records)
        records = results.unused  # a record is of one recipe at most
        if results.cells() or recipe == "paper":
            found = tables(results, metric, benchmarks)
            sections.append(Section(recipe, results, found, all_figures(results, metric)))
    return sections, records


def render(sections: Sequence[Section], unused: Sequence[Record], metric: str) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections,
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
        image=image,
        chart=chart,
        provenance=provenance,
    )


def grid_rows(grid: Grid) -> list[tuple[bool, list[Any]]]:
    """The rows, each with whether it starts a group."""
    return [(i in grid.groups, row) for i, row in enumerate(grid.body)]


def image(figure: Figure) -> str:
    """The figure as a data URI."""
    return f"data:image/svg+xml;base64,{base64.b64encode(figure.render('svg')).decode()}"


def provenance(record: Record) -> dict[str, str]:
    """Where a run's numbers come from, by what it is, as texts."""
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


def _distinct(texts: Any) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text)) or "unknown"


def chart(record: Record) -> dict[str, Any]:
    """A run's curves as points of polylines, and the ends of their axes.

    Accuracies share one linear axis; the correlation loss has a logarithmic one below.
    """
    curve = record["curve"]
    accuracies = [entry[name] for entry in curve for name in ("test_acc", "train_acc")]
    low, high = math.floor(min(accuracies)), math.ceil(max(accuracies))
    found: dict[str, Any] = {"epochs": len(curve), "low": low, "high": high, "correlation": None}
    for name in ("test_acc", "train_acc"):
        found[name] = _points([entry[name] for entry in curve], low, high)
    losses = [entry.get("correlation_loss") for entry in curve]
    if all(loss is not None and loss > 0 for loss in losses):
        logs = [math.log10(loss) for loss in losses]
        found["correlation"] = _points(logs, min(logs), max(logs))
        found["correlation_low"], found["correlation_high"] = min(losses), max(losses)
    return found


def _points(values: Sequence[float], low: float, high: float) -> str:
    """Points of a polyline over the whole chart, its height from `low` to `high`."""
    step, height = WIDTH / max(1, len(values) - 1), HEIGHT / ((high - low) or 1)
    return " ".join(f"{i * step:.1f},{(high - v) * height:.1f}" for i, v in enumerate(values))


if __name__ == "__main__":
    sys.exit(main())
