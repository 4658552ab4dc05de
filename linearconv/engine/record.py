"""The record of a finished run: one JSON file, written once, which can tell if it was changed.

It holds its own sha256, and those of the files that the run leaves beside it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from linearconv.complexity import count_macs_by_phase, count_parameters, paper_flops
from linearconv.engine.digests import file_sha256, value_sha256
from linearconv.engine.files import atomic_write
from linearconv.engine.loop import Training
from linearconv.errors import UserError

SCHEMA = 2
"""Version of the record's layout."""

SEAL = "sha256"
"""The key of a record's own digest, over its canonical JSON without this key."""

RESTORE = "restore it from git or a copy, or delete it and run the training again"


def weights_sha256(model: nn.Module) -> str:
    """sha256 over name, type, shape and bytes of each tensor of the state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def network_counts(
    model: nn.Module, input_shape: tuple[int, int, int], *, batch_size: int
) -> dict[str, Any]:
    """Parameters, multiply-adds and the paper's FLOPs of a network, as its record has them.

    Args:
        model: any module.
        input_shape: (C, H, W) of one image.
        batch_size: images per training batch, which share one generation of the weights.
    """
    macs = count_macs_by_phase(model, input_shape, batch_size=batch_size)
    return {
        "params": count_parameters(model),
        "macs_train": macs["train"],
        "macs_inference": macs["inference"],
        "flops_paper_convention": paper_flops(model, input_shape),
    }


def build_record(
    run_id: str,
    identity: dict[str, Any],
    training: Training,
    *,
    counts: dict[str, Any],
    images_per_epoch: int,
) -> dict[str, Any]:
    """The record of a finished run.

    Everything except `provenance` and `timing` depends only on the identity, the runtime, the
    versions and, on a CPU, its instruction set and the number of threads, on CUDA the model of the
    GPU.

    Args:
        run_id: the run's name.
        identity: what the run computes, as a plain dict; the record's `science`.
        training: finished.
        counts: see `network_counts`.
        images_per_epoch: training images per epoch, for the throughput.

    Returns:
        Accuracies in percent; `best_epoch` and the curve's epochs count from 1; MACs and FLOPs
        are for one image, training MACs for its forward pass; seconds include evaluation.
    """
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "science": identity,
        **_accuracies(training),
        "curve": training.curve,
        **counts,
        "final_weights_sha256": weights_sha256(training.model),
        "provenance": training.starts,
        "timing": _timing(training.seconds, images_per_epoch),
    }


def _accuracies(training: Training) -> dict[str, Any]:
    """The best and the last test accuracy, and those of the validation images if there are any."""
    best, last = training.best("test_acc"), training.curve[-1]
    found = {
        "test_acc_best": best["test_acc"],
        "best_epoch": best["epoch"],
        "test_acc_last": last["test_acc"],
    }
    if "val_acc" not in last:
        return found
    selected = training.best("val_acc")
    return found | {
        "val_acc_best": selected["val_acc"],
        "val_acc_best_epoch": selected["epoch"],
        "val_acc_last": last["val_acc"],
        "test_acc_at_val_acc_best": selected["test_acc"],
    }


def _timing(seconds: list[float], images_per_epoch: int) -> dict[str, Any]:
    return {
        "seconds": sum(seconds),
        "seconds_per_epoch": seconds,
        "images_per_s_per_epoch": [images_per_epoch / s for s in seconds],
        "images_per_s": images_per_epoch * len(seconds) / sum(seconds),
    }


def write_record(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record atomically, with its digest; returns what was written."""
    content = _unsealed(record)
    record = content | {SEAL: value_sha256(content)}
    with atomic_write(path) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return record


def _unsealed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != SEAL}


def read_record(path: Path) -> dict[str, Any]:
    """Read a record and verify its digest.

    Raises:
        UserError: it is missing, was changed after it was written, or is not a record.
    """
    try:
        record = json.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise UserError(f"record {path} not found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"record {path} is not readable ({error}); {RESTORE}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a record of layout {SCHEMA}; {RESTORE}")
    if not _seal_holds(record):
        raise UserError(f"{path} was changed after it was written (its sha256 differs); {RESTORE}")
    return record


def _seal_holds(record: dict[str, Any]) -> bool:
    try:
        found = value_sha256(_unsealed(record))
    except ValueError:  # NaN, which is never written
        return False
    return found == record.get(SEAL)


def file_digests(*paths: Path) -> dict[str, str]:
    """The sha256 of those of a run's files that exist, by the name of their folder."""
    return {path.parent.name: file_sha256(path) for path in paths if path.exists()}


def check_file(path: Path) -> None:
    """Compare a run's file with the digest in its record, where there is one.

    Args:
        path: `<results>/<kind>/<run_id>.<suffix>`; the record is `<results>/runs/<run_id>.json`.

    Raises:
        UserError: the file was changed after it was written, or the record is damaged.
        FileNotFoundError: there is no such file.
    """
    path = path.absolute()
    record = path.parent.parent / "runs" / f"{path.stem}.json"
    if not record.exists():
        return
    expected = read_record(record).get("files", {}).get(path.parent.name)
    if expected is not None and file_sha256(path) != expected:
        raise UserError(
            f"{path} was changed after it was written, or is of another start of the run (its "
            f"sha256 is not the one in {record}); restore it from git or a copy, or delete it"
        )
