"""What a precision means for the arithmetic of a run (hashed into its identity)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

PRECISIONS = ("tf32", "fp32", "bf16")


@contextmanager
def precision_flags(precision: str) -> Iterator[None]:
    """Set torch's TF32 switches for a precision, and put them back afterwards.

    "tf32" allows TF32 in convolutions alone, as PyTorch does by itself; "fp32" and "bf16" allow
    it nowhere. Matrix products (weight generation, correlation loss, classifier) never use it.
    The switches act on CUDA; on a CPU "tf32" and "fp32" are the same.
    """
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    try:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of the forward pass: bfloat16 autocast for "bf16", none otherwise.

    LinearConv2d generates its weight, and the correlation loss is computed, in fp32 under it.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
