"""The measured speed of each network, from `results/benchmarks/*.csv`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from linearconv.errors import UserError

KEYS = ("model", "variant", "device", "mode", "precision")
MEASURES = {
    "step_usual": ("usual", "ms_per_step"),
    "step_fast": ("fast", "ms_per_step"),
    "latency_b1": ("fast", "latency_ms_fused_b1"),
    "latency_b256": ("fast", "latency_ms_fused_b256"),
}
"""By name: the row's mode and the column with the number in milliseconds."""

Setting = tuple[str, str]
"""(file name without .csv, precision)."""


@dataclass
class Benchmarks:
    """Milliseconds by setting, network and measure.

    Attributes:
        devices: the device of each setting.
        origins: of each file, the dates and commits of its rows, where they are known.
        times: by (setting, model, variant), then by measure; missing if not measured.
        notes: what is missing, in sentences.
    """

    devices: dict[Setting, str] = field(default_factory=dict)
    origins: dict[str, list[str]] = field(default_factory=dict)
    times: dict[tuple[Setting, str, str], dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, stem: str, frame: pd.DataFrame) -> None:
        """Add the rows of a file; of several rows of the same kind, the last one counts."""
        pairs = zip(frame["date"], frame["commit"], strict=True)
        self.origins[stem] = sorted({f"{date} at {commit}" for date, commit in pairs if date})
        for row in frame.to_dict("records"):
            setting = (stem, row["precision"])
            self.devices[setting] = row["device"]
            times = self.times.setdefault((setting, row["model"], row["variant"]), {})
            for measure, (mode, column) in MEASURES.items():
                if mode == row["mode"] and pd.notna(row[column]):
                    times[measure] = row[column]


def read_benchmarks(folder: Path) -> Benchmarks:
    """Read `folder/benchmarks/*.csv`.

    Raises:
        UserError: a file lacks key columns, or a number cannot be read.
    """
    found = Benchmarks()
    columns = list(dict.fromkeys(column for _, column in MEASURES.values()))
    for path in sorted((folder / "benchmarks").glob("*.csv")):
        whole = _read(path)
        frame = _of_one_day(whole)
        if others := len(whole) - len(frame):
            found.notes.append(
                f"{path.name}: {others} rows were measured on another day than their Conv, and no "
                "time of theirs is shown."
            )
        if missing := [key for key in KEYS if key not in frame]:
            raise UserError(f"{path} lacks the columns {', '.join(missing)}")
        if absent := [column for column in columns if column not in frame]:
            found.notes.append(f"{path.name} has no column {', '.join(absent)}.")
        frame = frame.reindex(columns=[*KEYS, "date", "commit", *columns], fill_value="")
        numbers = frame[columns].apply(pd.to_numeric, errors="coerce")
        if (wrong := numbers.isna() & (frame[columns] != "")).any(axis=None):
            line = wrong.any(axis=1).idxmax() + 2  # after the header
            raise UserError(f"{path}, line {line}: not a number among {', '.join(columns)}")
        found.add(path.stem, frame.assign(**numbers))
    if not found.times:
        found.notes.append("Step time and latency are not measured yet (results/benchmarks).")
    return found


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, or not a table
        raise UserError(f"{path} is not a readable CSV file ({error})") from None


def _of_one_day(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that were measured on the day of their Conv.

    A machine's speed differs from day to day (results/benchmarks/README.md), so that times of two
    days do not belong beside each other.
    """
    keys = ["model", "device", "mode", "precision"]
    if not {*keys, "variant", "date"} <= set(frame):
        return frame
    plain = frame[frame["variant"] == "Conv"].drop_duplicates(keys, keep="last").set_index(keys)
    days = [plain["date"].get(tuple(row)) for row in frame[keys].itertuples(index=False)]
    return frame[[day in (None, date) for day, date in zip(days, frame["date"], strict=True)]]


def measured(folder: Path, column: str, mode: str) -> pd.DataFrame:
    """A column of `folder/benchmarks/*.csv`.

    Of several rows of the same kind, whatever file they are in, the newest counts, and of these
    only what was measured on the day of its Conv.

    Args:
        folder: the results.
        column: its name.
        mode: "usual" or "fast".

    Returns:
        Columns `model, variant, device, precision, rounds, value, superseded`; a row for each that
        is known. Superseded are those measured with settings that are no longer the default.
    """
    columns = ["model", "variant", "device", "precision"]
    paths = sorted((folder / "benchmarks").glob("*.csv"))
    known = [
        frame for frame in map(_read, paths) if {*columns, "rounds", "mode", column} <= set(frame)
    ]
    if not known:
        return pd.DataFrame(columns=[*columns, "rounds", "value", "superseded"])
    rows = pd.concat(known, ignore_index=True)
    if "date" in rows:
        rows = rows.sort_values("date", kind="stable", na_position="first")
    rows = _of_one_day(rows[rows["mode"] == mode].drop_duplicates(columns, keep="last"))
    value = pd.to_numeric(rows[column], errors="coerce")
    old = rows.get("cudnn_heuristics", pd.Series(index=rows.index, dtype=str)) == "A"
    rows = rows.assign(value=value, superseded=old)
    return rows.dropna(subset="value")[[*columns, "rounds", "value", "superseded"]]
