"""Provenance of a training process: machine, versions and commit."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from linearconv.engine.device import cudnn_heuristics, device_name
from linearconv.engine.files import CHECKOUT

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core")


def provenance(device: torch.device, **known: Any) -> dict[str, Any]:
    """The record's entry for one process: `known`, then time, machine, versions and commit.

    Args:
        device: the training device.
        known: entries from the caller: overrides, runtime, dataset path; paths made `portable`.
    """
    return {
        **known,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": device_name(device),
        "device_kind": device.type,
        "driver": _driver(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | _package_versions(),
        **_cuda(device),
        **git_state(),
    }


def portable(path: str | Path) -> str:
    """A path relative to the current folder; for a path outside it, only the name.

    Records are published and must not reveal where a user keeps files.
    """
    inside = os.path.relpath(path)
    return Path(path).resolve().name if inside.startswith(os.pardir) else inside


def git_state() -> dict[str, Any]:
    """The code's commit, and whether the checkout differs from it outside results/."""
    commit = _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": None, "git_dirty": None}
    changes = _output("git", "-C", str(CHECKOUT), "status", "--porcelain", "--", ".", ":!results")
    return {"git_commit": commit, "git_dirty": bool(changes)}


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


TF32_OVERRIDES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""Environment variables that overrule the run's precision."""


def _cuda(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on, on CUDA, besides the device; all None on a CPU."""
    names = ("cuda", "cudnn", "cudnn_heuristics", "compute_capability", "tf32_overrides")
    if device.type != "cuda":
        return dict.fromkeys(names)
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    overrides = {name: os.environ[name] for name in TF32_OVERRIDES if name in os.environ}
    cudnn = torch.backends.cudnn.version()
    values = (torch.version.cuda, cudnn, cudnn_heuristics(device), capability, overrides)
    return dict(zip(names, values, strict=True))


def _driver(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    answer = _output(*query)
    return answer.splitlines()[0] if answer else None


def _output(*command: str) -> str | None:
    """The output of a command, or None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"provenance: {command[0]}: {error}", file=sys.stderr)
        return None
    return done.stdout.strip()
