"""Write Tables 2 to 5 of the paper beside the results of the recorded runs.

    python scripts/make_tables.py                   # results/tables/table{2,3,4,5}.{md,csv,tex}
    python scripts/make_tables.py --metric last     # the last epoch instead of the best
    python scripts/make_tables.py --recipe short    # results/tables/short/
    python scripts/make_tables.py --frame runs.csv  # instead: one row per record

Reads results/runs/*.json, results/benchmarks/*.csv and results/paper/tables.csv. A run fills a
cell only if its identity is that of the cell's run in the current code, except for the seed. The
output depends on those files only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.paper.formats import csv_text, latex, markdown
from scripts.paper.results import METRICS, RESULTS, Results, read_records, recipes, runs_frame
from scripts.paper.speeds import read_benchmarks
from scripts.paper.tables import tables

LISTED = 8
"""How many records that fill no cell are listed by name."""


def main() -> int:
    """Write the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", choices=recipes(), default="paper")
    parser.add_argument("--metric", choices=list(METRICS), default="best")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    parser.add_argument("--frame", type=Path, metavar="FILE.csv", help="write all records instead")
    args = parser.parse_args()
    try:
        if args.frame is not None:
            frame = runs_frame(read_records(args.results_dir))
            frame.to_csv(args.frame, index=False, lineterminator="\n")
            print(f"{args.frame}: {len(frame)} runs")
        else:
            write_tables(args.results_dir, args.recipe, args.metric)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write_tables(results_dir: Path, recipe: str, metric: str) -> None:
    """Write the tables of one recipe; print which records are unused and what is not measured."""
    results = Results(results_dir, recipe)
    benchmarks = read_benchmarks(results_dir)
    folder = results_dir / "tables" / ("" if recipe == "paper" else recipe)
    for table in tables(results, metric, benchmarks):
        for kind, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
            with atomic_write(folder / f"table{table.number}.{kind}") as file:
                file.write(text(table).encode())
    for note in benchmarks.notes:
        print(note, file=sys.stderr)
    if results.unused:
        print(unused_text([record["run_id"] for record in results.unused]), file=sys.stderr)
    print(f"{folder}/table{{2,3,4,5}}.{{md,csv,tex}}: {len(results.cells())} accuracies have runs")


def unused_text(names: Sequence[str]) -> str:
    """One line on the records that fill no cell."""
    listed = ", ".join(names[:LISTED])
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{len(names)} records fill no cell of these tables: {listed}{more}"


if __name__ == "__main__":
    sys.exit(main())
