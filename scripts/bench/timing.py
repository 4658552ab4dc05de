"""Timing a network and a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from data import SIZE
from linearconv.engine.precision import autocast

KERNELS, NAME = 40, 200
"""How many kernels a profile lists, and how much of their names: cuDNN's end in tile and layout."""


def latency_ms(network: nn.Module, images: Tensor, precision: str) -> float:
    """Median milliseconds of a forward pass."""
    times = []
    with torch.no_grad(), autocast(precision, images.device):
        for i in range(4 if len(images) > 1 else 13):
            synchronise(images.device)
            began = time.perf_counter()
            network(images)
            synchronise(images.device)
            if i:  # the first pass is a warm-up
                times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def device_limit(precision: str, device: torch.device) -> float:
    """Peak multiply-adds per second, measured with a large convolution in this precision."""
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device)
    conv = conv.to(memory_format=torch.channels_last)
    images = torch.randn(32, 256, SIZE, SIZE, device=device)
    images = images.to(memory_format=torch.channels_last)
    calls = 20 if device.type == "cuda" else 2  # enough to make launch overhead negligible
    macs = calls * 32 * SIZE**2 * 256 * 256 * 9
    repeated = nn.Sequential(*[conv] * calls)
    return macs / (latency_ms(repeated, images, precision) / 1e3)


def profiled(run: Callable[[], int], device: torch.device) -> str:
    """The kernels (on a CPU: operations) of training steps with their time, the longest first.

    Args:
        run: takes steps and returns their number.
        device: what they run on.
    """
    # A replayed graph shows as its kernels.
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        steps = run()
        synchronise(device)
        wall = (time.perf_counter() - began) / steps
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = sorted(profiler.key_averages(), key=lambda kernel: -getattr(kernel, key))
    count = sum(kernel.count for kernel in kernels) / steps
    inside = sum(getattr(kernel, key) for kernel in kernels) / steps
    lines = [f"a step: {count:.0f} kernels, {inside:.0f} us in them of {1e6 * wall:.0f}"]
    for kernel in kernels[:KERNELS]:
        us = getattr(kernel, key) / steps
        lines.append(f"{us:9.1f} us {kernel.count / steps:6.1f}x  {kernel.key[:NAME]}")
    return "\n".join(lines)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios taken within each round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))
