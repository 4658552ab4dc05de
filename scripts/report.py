"""Write the tables, figures, claims and pages from the records.

    python scripts/report.py                  # all of it
    python scripts/report.py tables           # results/tables/: table{2,3,4,5}.*, costs.md
    python scripts/report.py figures          # results/figures/: *.svg (--pdf), their data in data/
    python scripts/report.py claims           # results/claims.{md,csv}, of other recipes claims/
    python scripts/report.py studies          # results/studies.{md,csv}
    python scripts/report.py page             # results/report.html: everything on one page
    python scripts/report.py tables --recipe short --metric last
    python scripts/report.py --frame runs.csv # instead: one row for each record

What is written depends on results/ and configs/ alone. A run fills a cell only if its identity is
that of the cell's run, except for the seed. A figure without any of its runs is not drawn. Claims
and studies also renew the generated blocks of README.md, results/README.md and
docs/your_network.md, if the results are the repository's own. Damaged records are named and left
out (--strict: exit code 1).
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from functools import cached_property
from pathlib import Path

from configs.cli import FAILED, MISTAKE
from linearconv.engine.files import CHECKOUT, atomic_write
from linearconv.errors import UserError
from scripts.evidence import claims_text, costs, formats, page, studies
from scripts.evidence.claims_text import Verdicts, judged
from scripts.evidence.conversion import conversion_blocks
from scripts.evidence.figures import all_figures
from scripts.evidence.readme import claims_pages, renew
from scripts.evidence.results import (
    METRICS,
    RESULTS,
    Results,
    listed,
    read_records,
    recipes,
    runs_frame,
)
from scripts.evidence.speeds import read_benchmarks
from scripts.evidence.studies import Outcome, outcomes, read_studies
from scripts.evidence.tables import tables


class Report:
    """What the parts are written from.

    Args:
        folder: the results.
        metric: of tables, figures and the page: best, last or settled.
        recipe: of tables and figures; default: the paper's, and all others that have runs.
        pdf: figures as PDF, too.
    """

    def __init__(self, folder: Path, metric: str, recipe: str | None, *, pdf: bool = False) -> None:
        self.folder, self.metric, self.pdf = folder, metric, pdf
        self.damaged: list[str] = []
        self.records = self.read(folder)
        found = {name: Results(folder, name, self.records) for name in recipes()}
        self.results = {n: each for n, each in found.items() if each.cells() or n == "paper"}
        self.shown = list(self.results) if recipe is None else [recipe]
        self.results |= {recipe: found[recipe]} if recipe else {}

    def read(self, *folders: Path) -> list[studies.Record]:
        """The usable records of the folders; the damaged ones are named on stderr, each once."""
        records = read_records(*folders)
        for message in records.damaged:
            if message not in self.damaged:
                print(message, file=sys.stderr)
                self.damaged.append(message)
        return records.usable

    @property
    def is_own(self) -> bool:
        """Whether these are the repository's results, which its pages show."""
        return self.folder.resolve() == RESULTS

    @cached_property
    def claims(self) -> dict[str, Verdicts]:
        """The claims by recipe."""
        runs = {n: each for n, each in self.results.items() if each.cells() or n == "paper"}
        return {name: judged(each, list(runs.values())) for name, each in runs.items()}

    @cached_property
    def studies(self) -> list[Outcome]:
        """The studies with their records."""
        more = self.folder / "studies"
        records = self.read(self.folder, more) if (more / "runs").is_dir() else self.records
        return outcomes(read_studies(), records)

    def of_recipe(self, kind: str, recipe: str) -> Path:
        """The folder of a recipe's tables or figures: that of the paper's is the kind's own."""
        return self.folder / kind / ("" if recipe == "paper" else recipe)


def write_tables(report: Report) -> None:
    """Tables 2 to 5 and what a run costs; names what is not measured and fills no cell."""
    benchmarks = read_benchmarks(report.folder)
    for recipe in report.shown:
        results, folder = report.results[recipe], report.of_recipe("tables", recipe)
        for table in tables(results, report.metric, benchmarks):
            for kind, text in formats.TABLES.items():
                write(folder / f"table{table.number}.{kind}", text(table))
        write(folder / "costs.md", costs.markdown(report.folder, recipe))
        print(f"{folder}/table{{2,3,4,5}}: {len(results.cells())} accuracies have runs")
    for note in benchmarks.notes:
        print(note, file=sys.stderr)
    filling = [report.results[recipe] for recipe in report.shown]
    unused = set.intersection(*({r["run_id"] for r in each.unused} for each in filling))
    if unused:
        print(f"records that fill no cell: {listed(sorted(unused))}", file=sys.stderr)


def write_figures(report: Report) -> None:
    """All figures; those of networks whose runs are gone are deleted."""
    for recipe in report.shown:
        folder = report.of_recipe("figures", recipe)
        figures = all_figures(report.results[recipe], report.metric)
        for figure in figures:
            figure.write(folder, pdf=report.pdf)
            print(figure.outcome)
        names = {figure.name for figure in figures}
        for kind in ("curves", "differences", "redundancy"):
            for path in (*folder.glob(f"{kind}-*"), *folder.glob(f"data/{kind}-*")):
                if path.stem not in names:
                    path.unlink()
        print(f"figures in {folder}, their data in {folder / 'data'}")


def write_claims(report: Report) -> None:
    """The claims' pages; those of recipes whose runs are gone are deleted."""
    for recipe in recipes():
        path = report.folder / ("claims" if recipe == "paper" else f"claims/{recipe}")
        for kind, text in (("md", claims_text.markdown), ("csv", claims_text.csv_text)):
            if recipe in report.claims:
                write(path.with_suffix(f".{kind}"), text(report.claims[recipe]))
            else:
                path.with_suffix(f".{kind}").unlink(missing_ok=True)
    if report.is_own:
        for path, blocks in claims_pages(report.results, report.claims).items():
            renew(path, blocks)
    print(f"{report.folder}/claims.md, and of other recipes claims/*.md")


def write_studies(report: Report) -> None:
    """The studies' page; prints the commands that train what is missing."""
    write(report.folder / "studies.md", studies.markdown(report.studies))
    lines, path = studies.run_lines(report.studies), report.folder / "studies.csv"
    if lines:
        write(path, formats.lines_csv(lines))
    else:
        path.unlink(missing_ok=True)
    if report.is_own:
        blocks = conversion_blocks(report.results["paper"], report.studies)
        renew(CHECKOUT / "docs" / "your_network.md", blocks)
    runs = {line["run_id"] for line in lines}
    print(f"{report.folder}/studies.{{md,csv}}: {len(runs)} runs")
    for command in studies.missing(report.studies):
        print(f"to train what is missing: {command}")


def write_page(report: Report) -> None:
    """Everything on one self-contained HTML page."""
    path, benchmarks = report.folder / "report.html", read_benchmarks(report.folder)
    text = page.render(report.claims.values(), report.metric, benchmarks)
    write(path, text)
    print(f"{path}: {len(report.records)} runs, {len(text.encode()) / 1e6:.1f} MB")


PARTS = {
    "tables": write_tables,
    "figures": write_figures,
    "claims": write_claims,
    "studies": write_studies,
    "page": write_page,
}


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def main() -> int:
    """Write the parts; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []])
    parser.add_argument("--recipe", choices=recipes(), help="tables and figures of this one alone")
    parser.add_argument("--metric", choices=METRICS, default="best")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    parser.add_argument("--frame", type=Path, metavar="FILE.csv", help="write all records instead")
    parser.add_argument("--pdf", action="store_true", help="figures as PDF, too")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a record is damaged")
    args = parser.parse_args()
    try:
        if args.frame is not None and args.frame.is_dir():
            raise UserError(f"--frame must be a file, got the folder {args.frame}")
        report = Report(args.results_dir, args.metric, args.recipe, pdf=args.pdf)
        if args.frame is not None:
            frame = runs_frame(report.records)
            write(args.frame, frame.to_csv(index=False, lineterminator="\n"))
            print(f"{args.frame}: {len(frame)} runs")
        else:
            for part in args.parts or PARTS:
                PARTS[part](report)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    return FAILED if args.strict and report.damaged else 0


if __name__ == "__main__":
    exit_with(main)
