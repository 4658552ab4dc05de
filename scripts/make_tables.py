"""Write Tables 2 to 5 of the paper beside the results of the recorded runs.

    python scripts/make_tables.py                   # results/tables/table{2,3,4,5}.{md,csv,tex}
                                                    # and costs.md: how long a run takes
    python scripts/make_tables.py --metric last     # the last epoch instead of the best
    python scripts/make_tables.py --recipe short    # results/tables/short/
    python scripts/make_tables.py --frame runs.csv  # instead: one row per record

Reads results/runs/*.json, results/benchmarks/*.csv and results/paper/tables.csv. A run fills a
cell only if its identity is that of the cell's run in the current code, except for the seed. The
output depends on those files only. Damaged records are named and left out (--strict: exit code 1).
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import MISTAKE
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.paper import costs
from scripts.paper.formats import csv_text, latex, markdown
from scripts.paper.options import add_options, exit_code, read_and_name, recipe_folder
from scripts.paper.results import Records, Results, listed, runs_frame
from scripts.paper.speeds import read_benchmarks
from scripts.paper.tables import tables


def main() -> int:
    """Write the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, recipe=True)
    parser.add_argument("--frame", type=Path, metavar="FILE.csv", help="write all records instead")
    args = parser.parse_args()
    try:
        if args.frame is not None and args.frame.is_dir():
            raise UserError(f"--frame must be a file, got the folder {args.frame}")
        records = read_and_name(args.results_dir)
        if args.frame is None:
            write_tables(args, records)
        else:
            frame = runs_frame(records.usable)
            with atomic_write(args.frame) as file:
                file.write(frame.to_csv(index=False, lineterminator="\n").encode())
            print(f"{args.frame}: {len(frame)} runs")
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    return exit_code(args, records)


def write_tables(args: argparse.Namespace, records: Records) -> None:
    """Write the tables of one recipe; report unused records and missing measurements."""
    results = Results(args.results_dir, args.recipe, records.usable)
    benchmarks = read_benchmarks(args.results_dir)
    folder = recipe_folder(args, "tables")
    for table in tables(results, args.metric, benchmarks):
        for kind, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
            with atomic_write(folder / f"table{table.number}.{kind}") as file:
                file.write(text(table).encode())
    with atomic_write(folder / "costs.md") as file:
        file.write(costs.markdown(args.results_dir, args.recipe).encode())
    for note in benchmarks.notes:
        print(note, file=sys.stderr)
    if results.unused:
        print(unused_text([record["run_id"] for record in results.unused]), file=sys.stderr)
    print(f"{folder}/table{{2,3,4,5}}.{{md,csv,tex}}: {len(results.cells())} accuracies have runs")


def unused_text(names: Sequence[str]) -> str:
    """One line on the records that fill no cell."""
    return f"{len(names)} records fill no cell of these tables: {listed(names)}"


if __name__ == "__main__":
    exit_with(main)
