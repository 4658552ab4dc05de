"""VGG11 (Simonyan and Zisserman, 2015) with batch normalisation and one linear layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from models.registry import register
from models.variants import ConvFactory

POOLED = (True, True, False, True, False, True, False, True)
"""Whether each of the eight convolutions is followed by pooling."""


@register("vgg11", chain=True)
def vgg11(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
) -> nn.Module:
    """VGG11 of Table 1: eight 3x3 convolutions. (N, C, 32, 32) -> (N, classes).

    ReLU and pooling are modules, since the paper's operation count hooks modules.
    """
    layers: dict[str, nn.Module] = {}
    for i, (width, pooled) in enumerate(zip(widths, POOLED, strict=True), 1):
        layers[f"conv{i}"] = conv(in_channels, width, 3, padding=1)
        layers[f"bn{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        if pooled:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        in_channels = width
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(in_channels, classes)
    return nn.Sequential(OrderedDict(layers))
