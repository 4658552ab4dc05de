"""The network with fewer filters instead of combined ones, to compare with."""

from __future__ import annotations

import copy

import torch_pruning
from torch import Tensor, nn

HALVINGS = 8
"""Of the interval in which the share of filters to remove is looked for."""


def narrowed(network: nn.Module, images: Tensor, parameters: int) -> nn.Module:
    """A copy without the filters of the least norm, the same share in each layer.

    Filters that belong together, as those of one residual stream, are removed together
    (torch-pruning; Fang and others, "DepGraph: towards any structural pruning", 2023).

    Args:
        network: with plain convolutions.
        images: an input of it.
        parameters: how many to keep at most.

    Raises:
        ValueError: its filters cannot be removed so.
    """
    low, high, found = 0.0, 1.0, None
    for _ in range(HALVINGS):
        share = (low + high) / 2
        smaller = _without(network, images, share)
        if smaller is not None and sum(p.numel() for p in smaller.parameters()) > parameters:
            low = share
        else:
            high, found = share, smaller
    if found is None:
        raise ValueError("torch-pruning cannot remove its filters")
    return found


def _without(network: nn.Module, images: Tensor, share: float) -> nn.Module | None:
    """A copy without a share of the filters; None if torch-pruning cannot remove them."""
    smaller = copy.deepcopy(network).eval()
    last = [m for m in smaller.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    try:
        torch_pruning.pruner.BasePruner(
            smaller, images[:1], importance, pruning_ratio=share, ignored_layers=[last]
        ).step()
        smaller(images[:1])
    except Exception:  # it raises whatever a network that it does not understand leads to
        return None
    return smaller
