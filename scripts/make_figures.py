"""Draw the paper's figures from the recorded runs, as PDF and SVG, with their data as CSV.

    python scripts/make_figures.py                  # results/figures/*.{pdf,svg}, data/*.csv
    python scripts/make_figures.py --recipe short   # results/figures/short/

Reads results/runs/*.json, results/artifacts/*.npz and results/benchmarks/*.csv. A figure without
any of its runs is not drawn; one with some of its runs shows those. Missing runs are listed in
both cases. Damaged records are named and left out (--strict: exit code 1).
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

from configs.cli import MISTAKE
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.paper.figures import Figure, all_figures
from scripts.paper.formats import lines_csv
from scripts.paper.options import add_options, exit_code, read_and_name, recipe_folder
from scripts.paper.results import Results


def main() -> int:
    """Draw the figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, recipe=True)
    args = parser.parse_args()
    folder = recipe_folder(args, "figures")
    try:
        records = read_and_name(args.results_dir)
        results = Results(args.results_dir, args.recipe, records.usable)
        figures = all_figures(results, args.metric)
        for figure in figures:
            write(figure, folder)
            print(outcome(figure))
        delete_old_curves(folder, {figure.name for figure in figures})
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"figures in {folder}, their data in {folder / 'data'}")
    return exit_code(args, records)


def outcome(figure: Figure) -> str:
    """One line: drawn or not, and what is missing."""
    lacks = f"missing: {', '.join(figure.missing)}" if figure.missing else ""
    if not figure.data:
        return f"{figure.name}: not drawn; {lacks}"
    return f"{figure.name}: drawn" + (f"; {lacks}" if lacks else "")


def write(figure: Figure, folder: Path) -> None:
    """Write a figure and its data; if it cannot be drawn, delete those of an earlier call."""
    images = {kind: folder / f"{figure.name}.{kind}" for kind in ("pdf", "svg")}
    data = folder / "data" / f"{figure.name}.csv"
    if not figure.data:
        for path in (*images.values(), data):
            path.unlink(missing_ok=True)
        return
    for kind, path in images.items():
        with atomic_write(path) as file:
            file.write(figure.render(kind))
    with atomic_write(data) as file:
        file.write(lines_csv(figure.data).encode())


def delete_old_curves(folder: Path, names: Collection[str]) -> None:
    """Delete curves of networks whose runs are gone: there is no figure of them."""
    for pattern in ("curves-*", "data/curves-*", "differences-*", "data/differences-*"):
        for path in folder.glob(pattern):
            if path.stem not in names:
                path.unlink()


if __name__ == "__main__":
    exit_with(main)
