"""Trained networks with fewer filters: those of the least norm are removed (torch-pruning)."""

from __future__ import annotations

import copy

from torch import Tensor, nn

HALVINGS = 8
"""Of the interval in which the share of filters to remove is looked for."""


def without(network: nn.Module, images: Tensor, share: float) -> nn.Module:
    """A copy without a share of the filters of each layer, those of the least norm.

    Filters that belong together, as those of one residual stream, are removed together (Fang and
    others, "DepGraph: towards any structural pruning", 2023).

    Args:
        network: with plain convolutions.
        images: an input of it.
        share: how many of a layer's filters to remove.

    Raises:
        ValueError: torch-pruning cannot remove them.
    """
    import torch_pruning  # which takes a second

    smaller = copy.deepcopy(network).eval()
    last = [m for m in smaller.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    try:
        torch_pruning.pruner.BasePruner(
            smaller, images[:1], importance, pruning_ratio=share, ignored_layers=[last]
        ).step()
        smaller(images[:1])
    except Exception as error:  # it raises whatever a network that it does not understand leads to
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"torch-pruning cannot remove its filters ({reason})") from error
    return smaller.train(network.training)


def narrowed(network: nn.Module, images: Tensor, parameters: int) -> nn.Module:
    """A copy `without` so many filters that it has at most as many parameters.

    Raises:
        ValueError: as `without`.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        try:
            found = without(network, images, share)
            fits = sum(parameter.numel() for parameter in found.parameters()) <= parameters
        except ValueError:  # also if a layer has none left
            fits = True
        low, high = (low, share) if fits else (share, high)
    return without(network, images, high)
