"""The devices of this machine that train.py may run on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from configs.schema import TrainConfig
from linearconv.engine.device import cuda_devices, usable_threads
from scripts.jobs.runner import Slot


def slots(config: TrainConfig, count: int) -> list[Slot]:
    """`count` slots on each visible device; on a CPU, they share its threads."""
    devices = visible_devices(config.device)
    if devices:
        arguments = () if config.device == "auto" else ("device=cuda",)
        return [
            Slot(arguments, {"CUDA_VISIBLE_DEVICES": device})
            for _ in range(count)
            for device in devices
        ]
    if count == 1 or config.runtime.threads is not None:
        return [Slot()] * count
    threads = max(1, usable_threads() // count)
    return [Slot((f"runtime.threads={threads}",))] * count


def sharing_note(chosen: Sequence[Slot]) -> str:
    """That several processes will take turns on a GPU, if NVIDIA's MPS does not run; else ""."""
    devices = [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in chosen]
    shared = len(set(devices)) < len(devices) and None not in devices
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control")
    if not shared or pipe.exists():
        return ""
    return (
        "several runs share a GPU and take turns on it; with NVIDIA's MPS they run at the same "
        "time: `nvidia-cuda-mps-control -d` starts it (docs/gpu.md)"
    )


def visible_devices(device: str) -> list[str]:
    """The CUDA devices to use, as CUDA_VISIBLE_DEVICES names them; empty for the CPU."""
    count = 0 if device == "cpu" else cuda_devices()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(count))
    devices = [name.strip() for name in names][:count]
    index = device.partition(":")[2]
    return [devices[int(index)]] if index else devices
