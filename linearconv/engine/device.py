"""The device of a run, and its name."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

import torch

from linearconv.errors import UserError, first_line

log = logging.getLogger(__name__)

CUDNN_HEURISTICS = "TORCH_CUDNN_USE_HEURISTIC_MODE_B"
"""Environment variable: 1 lets cuDNN choose its algorithms by the slower and better of its two
heuristics, 0 by the faster. PyTorch reads it once, at the first convolution of the process."""


def resolve_device(name: str) -> torch.device:
    """The named device, made current; "auto" is the first CUDA device, else the CPU.

    On CUDA, cuDNN is told to use its better heuristics, unless the environment says otherwise:
    among the deterministic algorithms the faster ones miss by much (docs/gpu.md has the times).

    Raises:
        UserError: the CUDA device cannot be used.
    """
    if name == "auto":
        name = "cuda" if cuda_devices() else "cpu"
        reason = unusable_cuda()
        if reason:
            log.warning("using the CPU: there is a GPU, but torch cannot use it: %s", reason)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        check_cuda(device)
        if device.index is not None:
            torch.cuda.set_device(device)  # or pinned memory would create a context on device 0
        os.environ.setdefault(CUDNN_HEURISTICS, "1")
        _try(device)
    return device


def cudnn_heuristics(device: torch.device) -> str | None:
    """The heuristics by which cuDNN chooses algorithms in this process, A or B; None on a CPU."""
    if device.type != "cuda":
        return None
    return "B" if os.environ.get(CUDNN_HEURISTICS) == "1" else "A"


def check_cuda(device: torch.device) -> None:
    """Check that torch can use a CUDA device, without using it.

    Raises:
        UserError: it cannot.
    """
    count, reason = cuda_devices(), unusable_cuda()
    if (device.index or 0) >= count:
        raise UserError(
            f"device={device} is not available: torch can use {count} CUDA device(s)"
            f"{f' ({reason})' if reason else ''}; use device=cpu or install a torch build that "
            "matches the driver"
        )


def cuda_devices() -> int:
    """Number of CUDA devices that torch can use.

    `torch.cuda.device_count()` alone also counts those whose driver is too old for this torch.
    """
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unusable_cuda() -> str | None:
    """Why torch cannot use the CUDA devices that it counts; None if it can, or counts none."""
    if torch.cuda.is_available() or not torch.cuda.device_count():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "unknown reason"


def usable_threads() -> int:
    """Number of CPU threads that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _try(device: torch.device) -> None:
    """Compute something; torch itself only warns of a device that it has no kernels for."""
    try:
        torch.ones(8, device=device).add(1).sum().item()
    except torch.cuda.OutOfMemoryError as error:
        reason = first_line(error)
        raise UserError(
            f"{device} has too little free memory: {reason} Free some, or choose another device"
        ) from None
    except RuntimeError as error:
        reason = first_line(error)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        advice = "choose another device"
        if "no kernel image" in reason:
            advice = (
                f"torch {torch.__version__} is for {', '.join(torch.cuda.get_arch_list())}: "
                "install a build for this GPU (pytorch.org/get-started), or use device=cpu"
            )
        raise UserError(
            f"{device} ({torch.cuda.get_device_name(device)}, compute capability {capability}) "
            f"cannot be used: {reason}; {advice}"
        ) from None


def device_name(device: torch.device) -> str:
    """The product name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} threads)" if names else platform.processor() or "CPU"


def is_cpu(name: str) -> bool:
    """Whether a `device_name` is that of a CPU."""
    return name.endswith(" threads)")
