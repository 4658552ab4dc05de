"""Write a self-contained HTML page with all tables and figures and the source of each number.

    python scripts/make_report.py                   # results/report.html

The page has a section for each recipe whose runs fill cells, and always one for the paper's.
Styles, script and images are embedded. Damaged records are named and left out (--strict: exit
code 1).
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys

from configs.cli import MISTAKE
from linearconv.engine.files import atomic_write
from linearconv.errors import UserError
from scripts.paper.options import add_options, exit_code, read_and_name
from scripts.paper.page import read_sections, render
from scripts.paper.speeds import read_benchmarks


def main() -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, recipe=False)
    args = parser.parse_args()
    path = args.results_dir / "report.html"
    try:
        records = read_and_name(args.results_dir)
        benchmarks = read_benchmarks(args.results_dir)
        sections, unused = read_sections(args.results_dir, records.usable, args.metric, benchmarks)
        page = render(sections, unused, args.metric)
        with atomic_write(path) as file:
            file.write(page.encode())
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return MISTAKE
    print(f"{path}: {len(records.usable)} runs, {len(page.encode()) / 1e6:.1f} MB")
    return exit_code(args, records)


if __name__ == "__main__":
    exit_with(main)
