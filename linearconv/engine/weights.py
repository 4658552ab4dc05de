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
from linearconv.engine.record import check_file
from linearconv.errors import UserError

MAX_PARAMETERS = 1_000_000
"""Runs of networks with more parameters publish no weights."""


def weights_path(results: Path, run_id: str) -> Path:
    """Where a run's weights are published in a results folder."""
    return results / "weights" / f"{run_id}.safetensors"


def published_runs(results: Path) -> list[str]:
    """The run_ids of all weights in a results folder, sorted."""
    return sorted(path.stem for path in weights_path(results, "any").parent.glob("*.safetensors"))


def write_weights(path: Path, checkpoints: Mapping[str, dict[str, Any]]) -> None:
    """Write the weights of a run's checkpoints atomically.

    Args:
        path: a .safetensors file.
        checkpoints: by name, "best" or "last": `run_id` and `science` of the run, `epoch` and
            `model`, the network's state dict; other entries are not written.
    """
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().contiguous().clone()  # tied weights share storage
        for name, checkpoint in checkpoints.items()
        for key, tensor in checkpoint["model"].items()
    }
    any_one = next(iter(checkpoints.values()))
    about = {
        "run_id": any_one["run_id"],
        "science": any_one["science"],
        "epochs": {name: checkpoint["epoch"] for name, checkpoint in checkpoints.items()},
    }
    with atomic_write(path) as file:
        # One entry, since safetensors writes several in an arbitrary order.
        file.write(to_safetensors(tensors, {"run": json.dumps(about)}))


def read_weights(path: Path, name: str) -> dict[str, Any]:
    """The weights `name`, best or last, as a checkpoint: `run_id, science, epoch, model`.

    Raises:
        UserError: as `read_all_weights`, or the file does not contain these weights.
    """
    try:
        return read_all_weights(path)[name]
    except KeyError:
        raise UserError(f"{path} does not contain the {name} weights") from None


def read_all_weights(path: Path) -> dict[str, dict[str, Any]]:
    """The `checkpoints` that `write_weights` was given.

    Raises:
        UserError: the file is missing, damaged, was not written by `write_weights`, or is not the
            one that the record beside it names.
    """
    try:
        check_file(path)
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
        raise UserError(
            f"{path} not found; networks with more than {MAX_PARAMETERS:,} parameters publish no "
            "weights"
        ) from None
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); restore or delete it") from None
