"""The command-line options that every benchmark takes."""

from __future__ import annotations

import argparse

from linearconv.engine.precision import PRECISIONS


def add_options(parser: argparse.ArgumentParser, folder: str = "") -> None:
    """Add the arguments common to all benchmarks.

    Args:
        parser: the benchmark's parser.
        folder: where `--write` saves, relative to results/benchmarks/.
    """
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32")
    parser.add_argument("--device", default="auto")
    where = f"save under results/benchmarks/{folder}"
    parser.add_argument("--write", action="store_true", help=where)
