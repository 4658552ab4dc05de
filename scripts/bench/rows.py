"""The files in results/benchmarks/ that rows of a benchmark are saved in."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from linearconv.engine.files import atomic_write
from linearconv.engine.provenance import git_state

BENCHMARKS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"

KEYS = ("model", "variant", "mode", "precision")
"""The columns that identify a row in a file."""


def write(
    rows: list[dict[str, Any]], folder: Path = BENCHMARKS, keys: Sequence[str] = KEYS
) -> Path:
    """Save rows to the device's file in a folder, replacing older rows with the same keys.

    Columns `date` and `commit` are added: when and with which code they were measured.
    """
    rows = [row | _origin() for row in rows]
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


def _origin() -> dict[str, str]:
    state = git_state()
    commit = (state["git_commit"] or "unknown")[:12]
    changed = " (changed)" if state["git_dirty"] else ""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit + changed,
    }


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with floats rounded to four significant digits."""
    return [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
