"""Check each model's learning rate on validation images, by runs with either rate.

    python scripts/choose_lr.py     # results/learning_rates/: README.md, choices.csv, curves

Reads the records in results/learning_rates/runs/ and prints the command that trains what is
missing. Nothing is changed: a model whose best rate is not the configured one gets the new rate and
the next revision in configs/model/<model>.yaml by hand, which invalidates its older records.
Damaged records are named and left out (--strict: exit code 1).
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from pathlib import Path

from configs.cli import MISTAKE
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.make_figures import write
from scripts.paper.formats import lines_csv, markdown_grid
from scripts.paper.learning_rates import (
    MARGIN,
    THIRD,
    Choice,
    choice_lines,
    choices,
    choices_grid,
    command,
    curves_figure,
)
from scripts.paper.options import add_strict, exit_code, read_and_name
from scripts.paper.results import RESULTS, Records


def main() -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=RESULTS / "learning_rates")
    add_strict(parser)
    args = parser.parse_args()
    try:
        runs = (args.folder / "runs").is_dir()
        records = read_and_name(args.folder) if runs else Records([], [])
        found = choices(records.usable)
        with atomic_write(args.folder / "README.md") as file:
            file.write(page(found).encode())
        with atomic_write(args.folder / "choices.csv") as file:
            file.write(lines_csv(choice_lines(found)).encode())
        write(curves_figure(found), args.folder)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    for choice in found:
        print(f"{choice.model}: {choice.verdict}")
    missing = [choice.model for choice in found if choice.missing]
    if missing:
        print(f"to train what is missing: {command(missing)}")
    return exit_code(args, records)


def page(found: list[Choice]) -> str:
    """The choices as Markdown."""
    return "\n".join(
        [
            "# Learning rates",
            "",
            "The paper trains with 1e-3 or 1e-4 and does not say which network has which. Here the "
            "rates are compared at 30 epochs on a tenth of the training images, held out; the test "
            "images take no part. Where that takes too long, a third of the epochs decides "
            f"meanwhile, with the decays in proportion (add `{' '.join(THIRD)}`). The plain "
            "network (Conv) decides for all variants, so that none is tuned more than another; the "
            f"last epoch counts, not the best. The better rate must lead by {MARGIN:g} points, or "
            "the choice is undecided. A short recipe favours the higher rate, so this says little "
            "of the lower one at 250 epochs.",
            "",
            *markdown_grid(choices_grid(found)),
            "",
            "Devices and versions: `choices.csv`. Curves (dotted: training): `curves.svg` and "
            "`data/curves.csv`."
            if any(choice.runs for choice in found)
            else "No run yet; devices, versions and curves appear here with the first.",
            "",
            "```bash",
            command([choice.model for choice in found]),
            "python scripts/choose_lr.py",
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    exit_with(main)
