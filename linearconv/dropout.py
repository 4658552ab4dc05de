"""Dropout whose masks depend only on (seed, layer, step, element).

torch's dropout draws from a global generator, so a mask depends on all previous draws, on the
device and on the memory layout. Here a mask is a hash of counters: it is the same on every machine
and in every layout, exact on resuming, and new in each replay of a captured graph, since the step
is a tensor on the device that the forward pass increments.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_MASK = 0xFFFFFFFF
_MULTIPLIER = 0x45D9F3B
_GOLDEN = 0x9E3779B9


def hash32(values: Tensor) -> Tensor:
    """A 32-bit integer hash (xor-shift-multiply, as in MurmurHash's finaliser), elementwise.

    Args:
        values: int64, any shape; only the lowest 32 bits are used.

    Returns:
        int64 in [0, 2^32), the same shape.
    """
    values = values & _MASK
    # A product of 32 and 27 bits stays below 2^63, so int64 holds it exactly.
    values = ((values ^ (values >> 16)) * _MULTIPLIER) & _MASK
    values = ((values ^ (values >> 16)) * _MULTIPLIER) & _MASK
    return values ^ (values >> 16)


class CounterDropout(nn.Module):
    """Dropout by a counter-based hash; `seed_dropout` sets the key of each layer of a model.

    In training each element is zeroed with probability `p` and the others are divided by 1 - p;
    in evaluation the input is returned unchanged. Do not put it under `torch.utils.checkpoint`:
    the forward pass that it repeats would draw the next step's mask.

    Args:
        p: probability of zeroing an element, in [0, 1).
        per_sample: one draw for each sample instead of each element, which drops the whole branch
            (stochastic depth, "drop path").

    Attributes:
        step: int64 scalar buffer, the number of training forward passes so far; part of the state
            dict, so that a resumed run continues with the next masks.
        key: Python integer, different for every layer and seed.

    Raises:
        ValueError: p is outside [0, 1).
    """

    def __init__(self, p: float, *, per_sample: bool = False) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be at least 0 and below 1, got {p}")
        self.p, self.per_sample, self.key = p, per_sample, 0
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """(N, ...) -> (N, ...)."""
        if not self.training or self.p == 0.0:
            return input
        shape = input.shape[:1] + (1,) * (input.dim() - 1) if self.per_sample else input.shape
        keep = self.mask(shape).to(input.dtype)
        self.step += 1
        return input * (keep / (1.0 - self.p))

    def mask(self, shape: torch.Size) -> Tensor:
        """The current step's mask: bool, True where an element is kept.

        Elements are numbered in row-major order of the logical shape, whatever the memory layout.
        """
        count = torch.Size(shape).numel()
        element = torch.arange(count, device=self.step.device).view(shape)
        of_step = hash32(self.step * _GOLDEN + self.key)
        return hash32(element * _GOLDEN + of_step) >= round(self.p * 2**32)

    def extra_repr(self) -> str:
        """The probability and what is dropped."""
        return f"p={self.p}" + (", per_sample=True" if self.per_sample else "")


def seed_dropout(model: nn.Module, seed: int) -> None:
    """Set the key of every CounterDropout of a model from the run's seed and the layer's name."""
    for name, module in model.named_modules():
        if isinstance(module, CounterDropout):
            digest = hashlib.sha256(f"dropout:{seed}:{name}".encode()).digest()
            module.key = int.from_bytes(digest[:4], "big")
