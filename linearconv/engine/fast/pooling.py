"""Max pooling before the ReLU that it follows, so that ReLU processes a quarter of the values.

ReLU is monotonic, so both orders give the same numbers, bit for bit, gradients included: if the
maximum is not positive, neither order passes a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import nn


@contextmanager
def pooling_before_relu(model: nn.Module) -> Iterator[None]:
    """Temporarily swap each ReLU with the MaxPool2d that directly follows it."""
    sequences = [module for module in model.modules() if type(module) is nn.Sequential]
    original = [sequence._modules for sequence in sequences]
    for sequence in sequences:
        sequence._modules = _reordered(sequence._modules)
    try:
        yield
    finally:
        for sequence, modules in zip(sequences, original, strict=True):
            sequence._modules = modules


def _reordered(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules of an nn.Sequential by name, each pair of ReLU and pooling swapped."""
    names = list(modules)
    for i, (first, second) in enumerate(pairwise(list(modules))):
        relu, pool = modules[first], modules[second]
        if isinstance(relu, nn.ReLU) and isinstance(pool, nn.MaxPool2d) and not pool.return_indices:
            names[i], names[i + 1] = second, first
    return {name: modules[name] for name in names}
