"""The paper's claims, judged by the recorded runs, the counts and the benchmarks.

    python scripts/make_claims.py    # results/claims.{md,csv}; of other recipes results/claims/

Also renews the block of verdicts in README.md, if the results are the repository's own. The claims
are in configs/claims.yaml. The output depends only on the files in results/.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from configs.cli import MISTAKE
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.paper.claims_text import Judged, csv_text, judged, markdown, readme_block
from scripts.paper.results import RESULTS, Results, read_records, recipes

README = RESULTS.parent / "README.md"
MARKERS = "<!-- claims -->", "<!-- end of claims -->"


def main() -> int:
    """Write the pages; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    try:
        by_recipe = judge_recipes(args.results_dir)
        for recipe, found in by_recipe.items():
            name = "claims" if recipe == "paper" else f"claims/{recipe}"
            for kind, text in (("md", markdown), ("csv", csv_text)):
                with atomic_write(args.results_dir / f"{name}.{kind}") as file:
                    file.write(text(recipe, found).encode())
        if args.results_dir.resolve() == RESULTS:
            renew_readme(by_recipe)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{args.results_dir}/claims.md, and of other recipes claims/*.md")
    return 0


def judge_recipes(folder: Path) -> dict[str, Judged]:
    """The judged claims of the paper's recipe, and of each other one that has runs."""
    records, found = read_records(folder), {}
    for recipe in recipes():
        results = Results(folder, recipe, records)
        if results.cells() or recipe == "paper":
            found[recipe] = judged(results)
    return found


def renew_readme(by_recipe: dict[str, Judged]) -> None:
    """Replace what is between the markers in README.md."""
    start, end = MARKERS
    text = README.read_text()
    block = f"{start}\n{readme_block(by_recipe)}\n{end}"
    renewed, count = re.subn(
        rf"{re.escape(start)}.*?{re.escape(end)}", lambda _: block, text, flags=re.S
    )
    if count != 1:
        raise UserError(f"{README} must have the markers {start} and {end} once")
    with atomic_write(README) as file:
        file.write(renewed.encode())


if __name__ == "__main__":
    sys.exit(main())
