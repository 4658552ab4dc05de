"""Arguments common to all benchmarks, and the CSV files of their rows."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from linearconv.engine.files import atomic_write
from linearconv.engine.precision import PRECISIONS

RESULTS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"


def add_common(parser: argparse.ArgumentParser, folder: str = "") -> None:
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


KEYS = ("model", "variant", "mode", "precision")
"""The columns that identify a row in a file."""


def write(rows: list[dict[str, Any]], folder: Path = RESULTS, keys: Sequence[str] = KEYS) -> Path:
    """Save rows to the device's file in a folder, replacing older rows with the same keys."""
    words = re.sub(r"[^a-z0-9]+", "-", rows[0]["device"].lower()).strip("-")
    path = folder / f"{words}-torch{torch.__version__.partition('+')[0]}.csv"
    columns = list(rows[0])
    # As strings, so that older rows are not reformatted.
    frame = pd.DataFrame(rounded(rows), dtype=object).fillna("").astype(str)
    if path.exists():
        older = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame = pd.concat([older.reindex(columns=columns, fill_value=""), frame])
    frame = frame.drop_duplicates(list(keys), keep="last").sort_values(list(keys), kind="stable")
    with atomic_write(path) as file:
        file.write(frame.to_csv(index=False, lineterminator="\n").encode())
    return path


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with floats rounded to four significant digits."""
    return [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
