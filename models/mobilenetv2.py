"""MobileNetV2 (Sandler et al., 2018) for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register
from models.resnet18 import projection
from models.variants import ConvFactory

STAGES = ((1, 1, 1), (6, 2, 1), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
"""(expansion, blocks, stride of the first block) of each stage."""


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, 1x1 projection: (N, C, H, W) -> (N, width, H/s, W/s)."""

    def __init__(
        self, conv: ConvFactory, in_channels: int, width: int, expansion: int, stride: int
    ) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.conv1 = conv(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        # With stride 1 there is always a shortcut; it is a projection if the width changes.
        self.shortcut = projection(conv, in_channels, width, 1) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, 1x1 convolution, global average and a linear layer.

    ReLU (not ReLU6) and pooling are functions, as in the network that the paper counts.
    """

    def __init__(
        self, conv: ConvFactory, in_channels: int, classes: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        stem, *stages, head = widths
        self.conv1 = conv(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        blocks: list[nn.Module] = []
        before = stem
        for width, (expansion, count, first_stride) in zip(stages, STAGES, strict=True):
            for stride in (first_stride, *[1] * (count - 1)):
                blocks.append(InvertedResidual(conv, before, width, expansion, stride))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = conv(before, head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head)
        self.fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, classes)."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


@register("mobilenetv2", multiple_of=2)
def mobilenetv2(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (32, 16, 24, 32, 64, 96, 160, 320, 1280),
) -> nn.Module:
    """MobileNetV2 of Table 1: stem, seven stages, head. (N, C, 32, 32) -> (N, classes)."""
    return MobileNetV2(conv, in_channels, classes, widths)
