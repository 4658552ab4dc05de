"""Records as finished runs leave them, made without training, for tests of tables and figures."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.experiments import Cell, Run, cell_runs
from linearconv.engine.artifacts import correct_artifacts, pack_symmetric, write_artifacts
from linearconv.engine.record import SCHEMA, write_record

START = {
    "overrides": [],
    "runtime": {"name": "reference"},
    "dataset_path": "datasets/x.npz",
    "started": "2026-01-02T03:04:05+00:00",
    "host": "some-host",
    "device": "Some CPU (2 threads)",
    "device_kind": "cpu",
    "driver": None,
    "threads": 2,
    "platform": "Linux",
    "versions": {"python": "3.11.7", "torch": "2.9.0"},
    "cuda": None,
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_dirty": False,
    "first_epoch": 1,
    "last_epoch": 3,
}


def make_record(run: Run, best: float, last: float) -> dict[str, Any]:
    """The record of a run of three epochs whose best accuracy was reached in the second."""
    correlations = [300.0, 30.0, 3.0]
    if run.cell.variant in ("Conv", "e"):
        correlations = [None] * 3
    curve = [
        {
            "epoch": i + 1,
            "lr": 1e-3,
            "train_loss": 2.0 / (i + 1),
            "train_acc": test_acc - 1,
            "correlation_loss": correlations[i],
            "test_loss": 2.1 / (i + 1),
            "test_acc": test_acc,
        }
        for i, test_acc in enumerate((best - 20, best, last))
    ]
    return {
        "schema": SCHEMA,
        "run_id": run.run_id,
        "science": copy.deepcopy(run.identity),
        "test_acc_best": best,
        "best_epoch": 2,
        "test_acc_last": last,
        "curve": curve,
        "params": 1,
        "macs_train": {"generate": 1, "factored": 1},
        "macs_inference": {"fused": 1, "factored": 1},
        "flops_paper_convention": 1,
        "final_weights_sha256": "0" * 64,
        "provenance": [copy.deepcopy(START)],
        "timing": {
            "seconds": 3.0,
            "seconds_per_epoch": [1.0] * 3,
            "images_per_s_per_epoch": [50_000.0] * 3,
            "images_per_s": 50_000.0,
        },
    }


def save_record(folder: Path, record: dict[str, Any]) -> Path:
    """Write a record where a run of the results folder `folder` would."""
    path = folder / "runs" / f"{record['run_id']}.json"
    write_record(path, record)
    return path


def add_runs(
    folder: Path,
    cell: Cell,
    accuracies: Sequence[tuple[float, float]],
    *,
    recipe: str = "paper",
    first_seed: int = 0,
) -> list[dict[str, Any]]:
    """Write records of a cell's runs, one for each (best, last), with consecutive seeds."""
    seeds = range(first_seed, first_seed + len(accuracies))
    runs = cell_runs(cell, recipe=recipe, seeds=list(seeds))
    records = [make_record(run, *pair) for run, pair in zip(runs, accuracies, strict=True)]
    for record in records:
        save_record(folder, record)
    return records


def add_artifacts(
    folder: Path,
    record: dict[str, Any],
    *,
    filters: int = 8,
    correct: dict[str, np.ndarray] | None = None,
) -> None:
    """Write arrays as a run leaves them: two layers of `filters` filters each."""
    random = np.random.default_rng(record["science"]["seed"])
    primary = filters // 2 if record["science"]["variant"]["linear"] else filters
    arrays = {
        "layers": np.array(["conv1", "conv2"]),
        "primary": np.array([primary, primary]),
        "filters": random.normal(size=(filters, 3, 3, 3)).astype(np.float16),
    }
    for i in range(2):
        matrix = random.uniform(-1, 1, size=(filters, filters))
        matrix = (matrix + matrix.T) / 2
        arrays[f"correlations_{i}"] = pack_symmetric(matrix.astype(np.float16))
        if primary < filters:
            coefficients = random.uniform(-1, 1, size=(primary, filters - primary))
            arrays[f"coefficients_{i}"] = coefficients.astype(np.float16)
    arrays |= correct_artifacts(correct or {})
    write_artifacts(folder / "artifacts" / f"{record['run_id']}.npz", arrays)


def without_provenance(record: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on where, when and in how many starts a run was trained."""
    depends = ("provenance", "timing", "sha256")
    return {key: value for key, value in record.items() if key not in depends}


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of all finished runs below a test's folder, by run_id."""
    return [json.loads(p.read_text()) for p in sorted((folder / "results/runs").glob("*.json"))]
