"""The command-line options of the commands that read the records."""

from __future__ import annotations

import argparse
from pathlib import Path

from scripts.paper.results import METRICS, RESULTS, recipes


def add_options(parser: argparse.ArgumentParser, *, recipe: bool) -> None:
    """Add `--metric` and `--results-dir`, and `--recipe` where a command writes one recipe."""
    if recipe:
        parser.add_argument("--recipe", choices=recipes(), default="paper")
    parser.add_argument("--metric", choices=list(METRICS), default="best")
    parser.add_argument("--results-dir", type=Path, default=RESULTS)


def recipe_folder(args: argparse.Namespace, kind: str) -> Path:
    """The folder of a recipe's tables or figures: that of the paper's recipe is the kind's own."""
    return args.results_dir / kind / ("" if args.recipe == "paper" else args.recipe)
