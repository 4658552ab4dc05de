"""Numerical precision of a run (part of its identity)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

PRECISIONS = ("tf32", "fp32", "bf16")


@contextmanager
def precision_flags(precision: str) -> Iterator[None]:
    """Temporarily set torch's numerical flags for a precision.

    "tf32" allows TF32 only in convolutions, as PyTorch does by default; "fp32" and "bf16" do not
    allow it. Matrix products (weight generation, correlation loss, classifier) never use it.
    Convolutions use only deterministic algorithms, so that a resumed run ends bit-identically.
    The flags affect only CUDA; on a CPU "tf32" and "fp32" are the same.
    """
    values = {
        (torch.backends.cudnn, "allow_tf32"): precision == "tf32",
        (torch.backends.cuda.matmul, "allow_tf32"): False,
        (torch.backends.cudnn, "deterministic"): True,
        (torch.backends.cudnn, "benchmark"): False,
    }
    before = {switch: getattr(*switch) for switch in values}
    try:
        for switch, value in values.items():
            setattr(*switch, value)
        yield
    finally:
        for switch, value in before.items():
            setattr(*switch, value)


def effective_precision(precision: str, device: torch.device) -> str:
    """What a precision is on a device: on a CPU, "tf32" is "fp32"."""
    return "fp32" if (precision, device.type) == ("tf32", "cpu") else precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of the forward pass: bfloat16 autocast for "bf16", none otherwise.

    Under autocast, LinearConv2d still generates its weight, and the correlation loss is still
    computed, in fp32.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
