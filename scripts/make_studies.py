"""Write results/studies.md: what changes if the recipe or the layer is changed.

    python scripts/make_studies.py     # results/studies.md, results/studies.csv

Also renews what docs/your_network.md says of conversion, if the results are the repository's own.
Reads configs/studies.yaml, the records of its runs in results/studies/runs/ and those of the tables
in results/runs/, and prints the commands that train what is missing. Damaged records are named and
left out (--strict: exit code 1).
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
from scripts.paper.claims_text import epochs_of
from scripts.paper.conversion import conversion_blocks
from scripts.paper.formats import lines_csv, markdown_grid
from scripts.paper.judging import ENOUGH
from scripts.paper.options import add_strict, exit_code, read_and_name
from scripts.paper.readme import renew
from scripts.paper.results import RESULTS, Results
from scripts.paper.studies import (
    SETTING,
    Outcome,
    noise_of,
    outcomes,
    read_studies,
    run_lines,
    study_grid,
)

YOUR_NETWORK = RESULTS.parent / "docs" / "your_network.md"


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
        if args.results_dir.resolve() == RESULTS:
            paper = Results(args.results_dir, "paper", records.usable)
            renew(YOUR_NETWORK, conversion_blocks(paper, found))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    runs = {line["run_id"] for line in lines}
    print(f"{args.results_dir}/studies.{{md,csv}}: {len(runs)} runs")
    for command in missing(found):
        print(f"to train what is missing: {command}")
    return exit_code(args, records)


def missing(found: Sequence[Outcome]) -> list[str]:
    """The commands of the arms that lack seeds, each once."""
    return list(dict.fromkeys(command for outcome in found for command in outcome.missing))


def page(found: Sequence[Outcome]) -> str:
    """The studies as Markdown."""
    parts = [
        "# Studies",
        "",
        f"Questions that the paper's tables do not answer: `{' '.join(SETTING)}`. Differences are "
        "of the settled accuracy (the mean of the last fifth of the epochs), in points, with the "
        "95 % interval that the spread of all networks with the same recipe over their seeds gives "
        "(between two recipes: Welch's, of the two networks alone); with fewer than "
        f"{ENOUGH} seeds on a side they decide nothing. Each run, with device and version, is in "
        "`studies.csv`.",
        "",
    ]
    for outcome in found:
        study = outcome.study
        used = dict.fromkeys(arm.recipe for arm in study.arms)
        noises = {recipe: noise_of(found, recipe, "settled") for recipe in used}
        noise = noises.get(study.recipe)
        parts += [f"## {study.name[0].upper()}{study.name[1:]}", "", study.question, ""]
        said = f"`recipe={study.recipe}`, {epochs_of(study.recipe)} epochs."
        if not any(outcome.runs.values()):
            parts += [f"{said} Not run yet.", ""]
            continue
        if noise is not None:
            said += f" Noise of a run: {noise.sigma:.2f} points ({noise.freedom} df)."
        parts += [said, "", *markdown_grid(study_grid(outcome, noises)), ""]
    commands = missing(found)
    if commands:
        parts += ["## To train what is missing", "", "```bash", *commands, "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    exit_with(main)
