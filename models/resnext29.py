"""ResNeXt-29 (2x64d; Xie et al., 2017) for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register
from models.resnet18 import ResNet, projection
from models.variants import ConvFactory

GROUPS = 2


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 to twice the width: (N, C, H, W) -> (N, 2 width, H/s, W/s)."""

    def __init__(self, conv: ConvFactory, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride, padding=1, groups=GROUPS, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.shortcut = projection(conv, in_channels, 2 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


@register("resnext29", multiple_of=2 * GROUPS)
def resnext29(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (64, 128, 256, 512),
) -> nn.Module:
    """ResNeXt-29 of Table 1: a 1x1 stem of the first width, three stages of three blocks.

    (N, C, 32, 32) -> (N, classes). ReLU and pooling are functions.
    """
    stem_width, *stages = widths
    stem = nn.Sequential(conv(in_channels, stem_width, 1, bias=False), nn.BatchNorm2d(stem_width))
    blocks: list[nn.Module] = []
    before = stem_width
    for stage, width in enumerate(stages):
        for stride in (1 if stage == 0 else 2, 1, 1):
            blocks.append(GroupedBottleneck(conv, before, width, stride))
            before = 2 * width
    return ResNet(stem, blocks, before, classes)
