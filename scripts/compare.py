"""Compare networks of any runs: mean, spread, and the difference from one variant.

    python scripts/compare.py model=narrow dataset=my_photos
    python scripts/compare.py model=base recipe=short --against L --figure curves.svg --csv runs.csv

Takes the records of results/ and results/trials/ whose columns of `load_runs` (docs/runs.md) have
these values. Runs that differ in the seed alone are one network. It is compared with the variant
`--against` of the same dataset, model and recipe: the difference of the means, with the 95 %
interval that the spread of all listed networks of that setting over their seeds gives. Fewer than
three seeds on a side say little. The accuracy is the settled one, the mean of the last fifth of the
epochs.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from pathlib import Path

from configs.cli import FAILED, MISTAKE
from linearconv.engine.files import atomic_write, check_output
from linearconv.errors import UserError
from scripts.evidence.formats import lines_csv, markdown_grid
from scripts.evidence.networks import (
    VALIDATION,
    accuracy_curves,
    chosen,
    networks,
    networks_grid,
    run_lines,
)
from scripts.evidence.results import METRICS, RESULTS, TRIALS, read_records

FIGURES = (".svg", ".pdf")


def main() -> int:
    """Print the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="COLUMN=VALUE", help="which runs; default: all")
    parser.add_argument("--against", default="Conv", metavar="VARIANT", help="default: Conv")
    parser.add_argument("--metric", choices=[*METRICS, VALIDATION], default=METRICS[0])
    parser.add_argument(
        "--results-dir", type=Path, action="append", help="may be repeated; default: as above"
    )
    parser.add_argument("--csv", type=Path, help="write the runs here")
    parser.add_argument("--figure", type=Path, help="draw their curves here, as .svg or .pdf")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a record is damaged")
    args = parser.parse_intermixed_args()
    try:
        if args.figure is not None and args.figure.suffix not in FIGURES:
            raise UserError(f"--figure must end in {' or '.join(FIGURES)}, got {args.figure}")
        for option in ("csv", "figure"):
            if (path := getattr(args, option)) is not None:
                check_output(f"--{option}", path)
        records = read_records(*_folders(args.results_dir))
        for note in records.damaged:
            print(note, file=sys.stderr)
        found = networks(chosen(records.usable, args.runs))
        grid = networks_grid(found, args.against, args.metric)
        if args.csv is not None:
            with atomic_write(args.csv) as file:
                file.write(lines_csv(run_lines(found)).encode())
        if args.figure is not None:
            figure = accuracy_curves(found, " ".join(args.runs))
            with atomic_write(args.figure) as file:
                file.write(figure.render(args.figure.suffix[1:]))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print("\n".join(markdown_grid(grid)))
    return FAILED if args.strict and records.damaged else 0


def _folders(given: list[Path] | None) -> list[Path]:
    """The folders of the records."""
    if given:
        return given
    folders = [RESULTS, TRIALS]
    return [folder for folder in folders if (folder / "runs").is_dir()] or [RESULTS]


if __name__ == "__main__":
    exit_with(main)
