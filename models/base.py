"""Base: the paper's own small network of four convolutions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from models.registry import register
from models.variants import ConvFactory


@register("base", chain=True)
def base(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (32, 64, 128, 256),
) -> nn.Module:
    """Base of Table 1: four 3x3 stages, each halving the image. (N, C, 32, 32) -> (N, classes).

    ReLU and pooling are modules, since the paper's operation count hooks modules.
    """
    layers: dict[str, nn.Module] = {}
    for i, width in enumerate(widths, 1):
        layers[f"conv{i}"] = conv(in_channels, width, 3, padding=1)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        in_channels = width
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(4 * in_channels, classes)
    return nn.Sequential(OrderedDict(layers))
