"""Which device computes, and what it is called."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from pathlib import Path

import torch


def resolve_device(name: str) -> torch.device:
    """The device of a name: "auto" is the first CUDA device, else the CPU; makes it current."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # else pinned memory would open a context on the first one
    return device


def device_name(device: torch.device) -> str:
    """The accelerator's or the processor's name, as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} threads)" if names else platform.processor() or "CPU"


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep freed memory for the next step instead of returning it.

    Activations of some MB are otherwise given back to the system within each training step on a
    CPU, and their pages faulted in again in the next. Has no effect where the C library is not
    glibc; changes no result.

    Args:
        keep: False goes back to what glibc does by itself once it has adapted to large blocks.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # M_TRIM_THRESHOLD, ... of malloc.h
    mib = 2**20
    if keep:
        options = {mmap_max: 0, trim_threshold: 2**31 - 1}
    else:
        options = {mmap_max: 65536, mmap_threshold: 32 * mib, trim_threshold: 64 * mib}
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)
