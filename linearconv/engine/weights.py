"""The published weights of small networks: the best and the last of a run, in one safetensors file.

A checkpoint is for going on with a training; these are for checking a record, and need neither
pickle nor this project to be read. The file's tensors are named `best/<name>` and `last/<name>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from linearconv.engine.files import atomic_write
from linearconv.errors import UserError

LARGEST = 1_000_000
"""Runs of networks with more parameters publish no weights."""


def weights_path(results: Path, run_id: str) -> Path:
    """Where a run's weights are published in a results folder."""
    return results / "weights" / f"{run_id}.safetensors"


def write_weights(path: Path, checkpoints: Mapping[str, dict[str, Any]]) -> None:
    """Write the weights of a run's checkpoints atomically.

    Args:
        path: a .safetensors file.
        checkpoints: of "last", and of "best" if it is known: `run_id`, `science`, `epoch` and
            `model`, the network's state dict; other entries are not written.
    """
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().contiguous()
        for name, checkpoint in checkpoints.items()
        for key, tensor in checkpoint["model"].items()
    }
    last = checkpoints["last"]
    about = {
        "run_id": last["run_id"],
        "science": last["science"],
        "epochs": {name: checkpoint["epoch"] for name, checkpoint in checkpoints.items()},
    }
    with atomic_write(path) as file:
        # One entry, since safetensors writes several in an arbitrary order.
        file.write(to_safetensors(tensors, {"run": json.dumps(about)}))


def read_weights(path: Path, name: str) -> dict[str, Any]:
    """The weights `name`, best or last, as a checkpoint: `run_id, science, epoch, model`.

    Raises:
        UserError: the file is missing, damaged, was not written by `write_weights`, or does not
            contain these weights.
    """
    try:
        return read_all_weights(path)[name]
    except KeyError:
        raise UserError(f"{path} does not contain the {name} weights") from None


def read_all_weights(path: Path) -> dict[str, dict[str, Any]]:
    """The `checkpoints` that `write_weights` was given.

    Raises:
        UserError: as `read_weights`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return {
            name: {
                "run_id": about["run_id"],
                "science": about["science"],
                "epoch": epoch,
                "model": {
                    key.removeprefix(f"{name}/"): tensor
                    for key, tensor in tensors.items()
                    if key.startswith(f"{name}/")
                },
            }
            for name, epoch in about["epochs"].items()
        }
    except FileNotFoundError:
        raise UserError(f"weights {path} not found") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore or delete it") from None
