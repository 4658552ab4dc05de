"""Seeds derived from names, independent of the machine and of previous draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(purpose: str, *parts: int) -> int:
    """A 64-bit seed: the first 8 bytes of sha256("<purpose>:<part>:...").

    Args:
        purpose: what is drawn, e.g. "epoch-plan".
        parts: what it depends on, e.g. the run's seed and the epoch.
    """
    text = ":".join([purpose, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(purpose: str, *parts: int) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(purpose, *parts)`."""
    return torch.Generator().manual_seed(derive_seed(purpose, *parts))


@contextmanager
def seeded(purpose: str, *parts: int) -> Iterator[None]:
    """Temporarily seed torch's global CPU generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(purpose, *parts))
        yield
