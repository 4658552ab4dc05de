"""A run's filters for figures: those of the first layer, and correlations in chosen layers."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from linearconv.layer import LinearConv2d
from linearconv.regularizer import correlation_matrix

LARGEST = 256
"""Layers with more filters are not chosen: their matrices would make the artifacts large."""


def chosen_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """At most two convolutions by name: the first and the last with at most `LARGEST` filters."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    small = [name for name, conv in convs.items() if conv.out_channels <= LARGEST]
    return {name: convs[name] for name in dict.fromkeys([*small[:1], *small[-1:]])}


def primary_count(conv: nn.Conv2d) -> int:
    """Number of primary filters; for a plain convolution, of all filters."""
    return conv.primary.shape[0] if isinstance(conv, LinearConv2d) else conv.out_channels


@torch.no_grad()
def filter_artifacts(model: nn.Module) -> dict[str, np.ndarray]:
    """Arrays for Figures 1 and 3 of the paper.

    Returns:
        `layers` (L,) names of the chosen layers and `primary` (L,) their numbers of primary
        filters; `filters` (F, C, KH, KW) float16 of the first chosen layer; `correlation_<i>`
        (F, F) float16, the correlations between all filters of chosen layer i.
    """
    layers = chosen_layers(model)
    arrays = {
        "layers": np.array(list(layers)),
        "primary": np.array([primary_count(conv) for conv in layers.values()]),
    }
    for i, conv in enumerate(layers.values()):
        weight = conv.weight.float().cpu()
        if i == 0:
            arrays["filters"] = weight.half().numpy()
        arrays[f"correlation_{i}"] = correlation_matrix(weight).half().numpy()
    return arrays
