"""Trained networks with fewer filters, to compare with (torch-pruning)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

HALVINGS = 8
"""Of the interval in which the share of filters to keep is looked for."""


def pruned(network: nn.Module, images: Tensor, keep: float | Mapping[str, int]) -> nn.Module:
    """A copy with fewer filters.

    Removed are those that matter least by the norms of the filter, of its batch norm's scale and of
    the weights that read it; filters that belong together, as those of one residual stream, are
    removed together (Fang and others, "DepGraph: towards any structural pruning", 2023).

    Args:
        network: with plain convolutions.
        images: an input of it.
        keep: the share of each layer's filters, or how many by the name of the layer.

    Raises:
        ValueError: torch-pruning is not there, or cannot remove them.
    """
    try:
        import torch_pruning
    except ImportError:
        raise ValueError("it takes torch-pruning: pip install torch-pruning") from None
    smaller = copy.deepcopy(network).eval()
    layers = [m for m in smaller.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    options: dict[str, Any] = {"ignored_layers": layers[-1:]}
    if isinstance(keep, Mapping):
        convs = {smaller.get_submodule(name): count for name, count in keep.items()}
        options["pruning_ratio"] = 0.0
        options["pruning_ratio_dict"] = {  # half a filter more, since it rounds down
            conv: 1 - (count + 0.5) / conv.out_channels
            for conv, count in convs.items()
            if count < conv.out_channels
        }
    else:
        options["pruning_ratio"] = 1 - keep
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    try:
        torch_pruning.pruner.BasePruner(smaller, images[:1], importance, **options).step()
        smaller(images[:1])
    except Exception as error:  # it raises whatever a network that it does not understand leads to
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"torch-pruning cannot remove its filters ({reason})") from error
    return smaller.train(network.training)


def pruned_to(network: nn.Module, images: Tensor, parameters: int) -> nn.Module:
    """The network `pruned` by one share in all layers, so that it has at most so many parameters.

    Raises:
        ValueError: as `pruned`.
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        keep = (low + high) / 2
        try:
            found = pruned(network, images, keep)
            fits = sum(parameter.numel() for parameter in found.parameters()) <= parameters
        except ValueError:  # also if a layer has none left
            fits = True
        low, high = (keep, high) if fits else (low, keep)
    return pruned(network, images, low)
