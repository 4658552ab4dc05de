"""Write results/studies.md: what changes if the recipe or the layer is changed.

    python scripts/make_studies.py     # results/studies.md, results/studies.csv

Reads configs/studies.yaml, the records of its runs in results/studies/runs/ and those of the tables
in results/runs/, and prints the commands that train what is missing. Damaged records are named and
left out (--strict: exit code 1).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import MISTAKE
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.paper.formats import lines_csv, markdown_grid
from scripts.paper.judging import ENOUGH
from scripts.paper.options import add_strict, exit_code, read_and_name
from scripts.paper.results import RESULTS
from scripts.paper.studies import (
    SEEDS,
    SETTING,
    Outcome,
    outcomes,
    outcomes_grid,
    read_studies,
    run_lines,
)


def main() -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    add_strict(parser)
    args = parser.parse_args()
    try:
        more = args.results_dir / "studies"
        records = read_and_name(args.results_dir, *[more] * (more / "runs").is_dir())
        found = outcomes(read_studies(), records.usable)
        with atomic_write(args.results_dir / "studies.md") as file:
            file.write(page(found).encode())
        lines, table = run_lines(found), args.results_dir / "studies.csv"
        if lines:
            with atomic_write(table) as file:
                file.write(lines_csv(lines).encode())
        else:
            table.unlink(missing_ok=True)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{args.results_dir}/studies.{{md,csv}}: {sum(len(o.runs) for o in found)} runs")
    for command in missing(found):
        print(f"to train what is missing: {command}")
    return exit_code(args, records)


def missing(found: Sequence[Outcome]) -> list[str]:
    """The commands of the studies that lack runs."""
    return list(dict.fromkeys(o.study.command for o in found if len(o.runs) < len(SEEDS)))


def page(found: Sequence[Outcome]) -> str:
    """The studies as Markdown."""
    studies = list({outcome.study.name: outcome.study for outcome in found}.values())
    parts = [
        "# Studies",
        "",
        f"Base on CIFAR-10 at 30 epochs (`{' '.join(SETTING)}`), each variant with and without the "
        "overrides of a study. Differences of means in points, with Welch's 95 % interval from two "
        f"runs on each side on; with fewer than {ENOUGH} on a side they decide nothing. The runs "
        "without are those of the tables; those with the overrides, with device and version, are "
        "in `studies.csv`.",
        "",
    ]
    for metric, heading in (("last", "Last epoch"), ("best", "Best epoch")):
        parts += [f"## {heading}", "", *markdown_grid(outcomes_grid(found, metric)), ""]
    parts += ["## What is asked, and how to train it", ""]
    for study in studies:
        parts += [f"**{study.name}.** {study.question}", "", "```bash", study.command, "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
