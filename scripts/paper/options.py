"""What the commands that read the records share: their options, and damaged records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from configs.cli import FAILED
from scripts.paper.results import METRICS, RESULTS, Records, read_records, recipes


def add_options(parser: argparse.ArgumentParser, *, recipe: bool) -> None:
    """Add `--metric`, `--results-dir`, `--strict` and, to write one recipe, `--recipe`."""
    if recipe:
        parser.add_argument("--recipe", choices=recipes(), default="paper")
    parser.add_argument("--metric", choices=list(METRICS), default="best")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    add_strict(parser)


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add `--strict`, which `exit_code` reads."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with code 1, after everything was written, if a record is damaged",
    )


def read_and_name(*folders: Path) -> Records:
    """The records of the folders; on stderr which are damaged and left out, or have no digest.

    Raises:
        UserError: no such folder.
    """
    records = read_records(*folders)
    for note in records.notes:
        print(note, file=sys.stderr)
    return records


def exit_code(args: argparse.Namespace, records: Records) -> int:
    """The exit code of a command that has written everything that the usable records give."""
    return FAILED if args.strict and records.damaged else 0


def recipe_folder(args: argparse.Namespace, kind: str) -> Path:
    """The folder of a recipe's tables or figures: that of the paper's recipe is the kind's own."""
    return args.results_dir / kind / ("" if args.recipe == "paper" else args.recipe)
