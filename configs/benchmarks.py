"""Measured speed: what `results/benchmarks/*.csv` say of each network."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from linearconv.errors import UserError

KEYS = ("model", "variant", "device", "mode", "precision")
MEASURES = {
    "step_usual": ("usual", "ms_per_step"),
    "step_fast": ("fast", "ms_per_step"),
    "latency_b1": (None, "latency_ms_fused_b1"),
    "latency_b256": (None, "latency_ms_fused_b256"),
}
"""Name: the row's mode (None: any) and the column that the number, in milliseconds, is of."""

Setting = tuple[str, str]
"""(file's name without .csv, precision)."""


@dataclass
class Benchmarks:
    """Milliseconds by setting, network and measure.

    Attributes:
        devices: the device of each setting.
        times: by (setting, model, variant), then by measure; what was not measured is absent.
        notes: what is missing, in sentences.
    """

    devices: dict[Setting, str] = field(default_factory=dict)
    times: dict[tuple[Setting, str, str], dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, stem: str, row: dict[str, str]) -> None:
        """Take over one row; of several rows of the same kind in a file the last one counts."""
        setting = (stem, row["precision"])
        self.devices[setting] = row["device"]
        times = self.times.setdefault((setting, row["model"], row["variant"]), {})
        for measure, (mode, column) in MEASURES.items():
            if row.get(column) and mode in (None, row["mode"]):
                times[measure] = float(row[column])


def read_benchmarks(folder: Path) -> Benchmarks:
    """Read `folder/benchmarks/*.csv`.

    Raises:
        UserError: a file that lacks what its rows are told apart by, or an unreadable number.
    """
    found = Benchmarks()
    for path in sorted((folder / "benchmarks").glob("*.csv")):
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            if missing := [key for key in KEYS if key not in columns]:
                raise UserError(f"{path} lacks the columns {', '.join(missing)}")
            absent = dict.fromkeys(c for _, c in MEASURES.values() if c not in columns)
            if absent:
                found.notes.append(f"{path.name} has no column {', '.join(absent)}.")
            try:
                for row in reader:
                    found.add(path.stem, row)
            except ValueError as error:
                raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    if not found.times:
        found.notes.append("Step time and latency are not measured yet (results/benchmarks).")
    return found
