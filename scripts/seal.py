"""Add digests to records that older code wrote without them (layout 1).

    python scripts/seal.py                        # results/ and results/learning_rates/
    python scripts/seal.py --results-dir FOLDER   # another results folder

A sealed record holds its own sha256 and those of its run's artifacts and weights where they exist.
From then on any change of these files is found. A change made before cannot be found, but a record
that contradicts itself, or a file that cannot be read, is named and the record stays as it is.
Neither what was run nor its results change. Sealed records are left alone.
"""

from __future__ import annotations

try:
    from scripts.command import exit_with
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run `make setup`, or pip install -e '.[train]'") from None

import argparse
import sys
from pathlib import Path

from configs.cli import FAILED, MISTAKE
from configs.identity import identity_hash
from linearconv.engine.artifacts import artifacts_path
from linearconv.engine.record import SCHEMA, file_digests, is_sealed, write_record
from linearconv.engine.weights import read_all_weights, weights_path
from linearconv.errors import UserError
from scripts.paper.artifacts import read_filters
from scripts.paper.results import RESULTS, Record, read_checked


def main() -> int:
    """Seal the records and print one line for each; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results-dir", type=Path, action="append", help="a results folder; may be repeated"
    )
    args = parser.parse_args()
    failed = False
    for folder in args.results_dir or [RESULTS, RESULTS / "learning_rates"]:
        if not (folder / "runs").is_dir():
            print(f"no records: {folder / 'runs'} not found", file=sys.stderr)
            return MISTAKE
        for path in sorted((folder / "runs").glob("*.json")):
            try:
                print(f"{path}: {seal(path)}")
            except (UserError, OSError) as error:
                print(f"not sealed: {error}", file=sys.stderr)
                failed = True
    return FAILED if failed else 0


def seal(path: Path) -> str:
    """Bring a record of layout 1 to the current layout; returns what was done.

    Raises:
        UserError: the record, the run's artifacts or its weights are damaged.
    """
    record = read_checked(path)
    if is_sealed(record):
        return "sealed before"
    if wrong := contradictions(path, record):
        raise UserError(f"{path} contradicts itself ({', '.join(wrong)}); restore or delete it")
    folder, run_id = path.parent.parent, record["run_id"]
    files = artifacts_path(folder, run_id), weights_path(folder, run_id)
    read_filters(folder, run_id)
    if files[1].exists():
        read_all_weights(files[1])
    digests = file_digests(*files)
    write_record(path, record | {"schema": SCHEMA, "files": digests})
    return f"sealed with {', '.join(digests) or 'neither artifacts nor weights'}"


def contradictions(path: Path, record: Record) -> list[str]:
    """The keys of a record without digest that cannot all be right."""
    curve, best = record["curve"], record["best_epoch"]
    checks = {
        "run_id": record["run_id"] == path.stem,
        "science": record["run_id"].endswith(identity_hash(record["science"])[:8]),
        "test_acc_last": record["test_acc_last"] == curve[-1]["test_acc"],
        "test_acc_best": record["test_acc_best"] == max(entry["test_acc"] for entry in curve),
        "best_epoch": 1 <= best <= len(curve)
        and record["test_acc_best"] == curve[best - 1]["test_acc"],
    }
    return [key for key, holds in checks.items() if not holds]


if __name__ == "__main__":
    exit_with(main)
