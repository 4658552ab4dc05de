"""ResNet-18 (He et al., 2016) for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register
from models.variants import ConvFactory


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, width, H/stride, W/stride)."""

    def __init__(self, conv: ConvFactory, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = projection(conv, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


def projection(conv: ConvFactory, in_channels: int, width: int, stride: int) -> nn.Module:
    """The shortcut: the identity, or a 1x1 convolution and BN if the shape changes."""
    if stride == 1 and in_channels == width:
        return nn.Identity()
    return nn.Sequential(
        conv(in_channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
    )


class ResNet(nn.Module):
    """Stem, stages of blocks, global average and a linear layer.

    ReLU and pooling are functions, as in the network that the paper counts.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], width: int, classes: int):
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, classes)."""
        x = self.blocks(F.relu(self.stem(x)))
        return self.fc(x.mean(dim=(2, 3)))


@register("resnet18")
def resnet18(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (64, 128, 256, 512),
) -> nn.Module:
    """ResNet-18 of Table 1: four stages of two basic blocks. (N, C, 32, 32) -> (N, classes)."""
    stem = nn.Sequential(
        conv(in_channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
    )
    blocks: list[nn.Module] = []
    before = widths[0]
    for stage, width in enumerate(widths):
        for stride in (1 if stage == 0 else 2, 1):
            blocks.append(BasicBlock(conv, before, width, stride))
            before = width
    return ResNet(stem, blocks, before, classes)
