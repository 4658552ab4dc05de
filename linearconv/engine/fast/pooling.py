"""Max pooling before the ReLU that it follows, so that ReLU processes a quarter of the values.

ReLU is monotonic, so both orders give the same numbers, bit for bit, gradients included: if the
maximum is not positive, neither order passes a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import Tensor, nn

from linearconv.engine.fast.rewriting import replaced
from linearconv.stand_in import has_hooks

MAKERS = (nn.Conv2d, nn.BatchNorm2d)
"""Layers whose output is a new tensor."""


@contextmanager
def pooling_before_relu(model: nn.Module) -> Iterator[None]:
    """Temporarily swap each ReLU with the MaxPool2d that directly follows it in an nn.Sequential.

    Only in calls of the whole container, which nothing can read in between. A model that iterates
    over it or indexes it gets the layers in their order.
    """
    sequences = [
        module
        for module in model.modules()
        if type(module) is nn.Sequential and "forward" not in vars(module)
    ]
    with replaced("forward", _pooled_first, sequences):
        yield


def _pooled_first(sequence: nn.Sequential, input: Tensor) -> Tensor:
    """nn.Sequential's forward, with each pair of ReLU and pooling swapped."""
    given = list(sequence)
    layers = list(given)
    for i, (relu, pool) in enumerate(pairwise(given)):
        # What an in-place ReLU changes others may read, unless the layer before has just made it.
        if _swappable(relu, pool) and (not relu.inplace or i and isinstance(given[i - 1], MAKERS)):
            layers[i], layers[i + 1] = pool, relu
    for layer in layers:
        input = layer(input)
    return input


def _swappable(relu: nn.Module, pool: nn.Module) -> bool:
    return (
        type(relu) is nn.ReLU
        and type(pool) is nn.MaxPool2d
        and not pool.return_indices
        and not has_hooks(relu)
        and not has_hooks(pool)
    )
