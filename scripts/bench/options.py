"""The command line of a benchmark: its own options, and those that all have."""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

from linearconv.engine.precision import PRECISIONS


def parser_of(mode: ModuleType, **texts: Any) -> argparse.ArgumentParser:
    """The parser of a mode of scripts/benchmark.py.

    Args:
        mode: a module with `add_options`.
        texts: further arguments of `argparse.ArgumentParser`.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, **texts)
    mode.add_options(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="save under results/benchmarks/")
    return parser
