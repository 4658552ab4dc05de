"""The paper's claims, judged by the recorded runs, the counts and the benchmarks.

    python scripts/make_claims.py    # results/claims.{md,csv}; of other recipes results/claims/

Also renews the accuracies and verdicts in README.md, results/README.md and docs/your_network.md, if
the results are the repository's own.
The claims are in configs/claims.yaml. The output depends only on the files in results/. Damaged
records are named and left out (--strict: exit code 1).
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
from scripts.paper.claims_text import Verdicts, claims_block, csv_text, judged, markdown
from scripts.paper.options import add_strict, exit_code, read_and_name
from scripts.paper.readme import from_scratch_block, renew, results_block, results_blocks
from scripts.paper.results import RESULTS, Record, Results, recipes

ROOT = RESULTS.parent


def main() -> int:
    """Write the pages; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results-dir", type=Path, default=RESULTS)
    add_strict(parser)
    args = parser.parse_args()
    try:
        records = read_and_name(args.results_dir)
        results = results_by_recipe(args.results_dir, records.usable)
        others = list(results.values())
        claims = {recipe: judged(found, others) for recipe, found in results.items()}
        for recipe, found in claims.items():
            name = "claims" if recipe == "paper" else f"claims/{recipe}"
            for kind, text in (("md", markdown), ("csv", csv_text)):
                with atomic_write(args.results_dir / f"{name}.{kind}") as file:
                    file.write(text(found).encode())
        for recipe in set(recipes()) - set(claims):  # its runs are gone
            for kind in ("md", "csv"):
                (args.results_dir / f"claims/{recipe}.{kind}").unlink(missing_ok=True)
        if args.results_dir.resolve() == RESULTS:
            for page, blocks in pages(results, claims).items():
                renew(page, blocks)
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{args.results_dir}/claims.md, and of other recipes claims/*.md")
    return exit_code(args, records)


def results_by_recipe(folder: Path, records: Sequence[Record]) -> dict[str, Results]:
    """The results of the paper's recipe, and of each other one that has runs."""
    found = {recipe: Results(folder, recipe, records) for recipe in recipes()}
    return {name: results for name, results in found.items() if results.cells() or name == "paper"}


def pages(results: dict[str, Results], claims: dict[str, Verdicts]) -> dict[Path, dict[str, str]]:
    """The blocks of each page that is renewed."""
    paper = claims["paper"]
    return {
        ROOT / "README.md": {"results": results_block(results), "claims": claims_block(paper)},
        ROOT / "results" / "README.md": results_blocks(claims),
        ROOT / "docs" / "your_network.md": {"from scratch": from_scratch_block(paper)},
    }


if __name__ == "__main__":
    exit_with(main)
