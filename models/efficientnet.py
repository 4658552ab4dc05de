"""EfficientNet-B0 (Tan and Le, 2019) for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from linearconv.dropout import CounterDropout
from models.registry import register
from models.variants import ConvFactory

STAGES = ((1, 1, 1, 3), (6, 2, 1, 3), (6, 2, 2, 5), (6, 3, 2, 3), (6, 3, 1, 5), (6, 4, 2, 5),
          (6, 1, 1, 3))  # fmt: skip
"""(expansion, blocks, stride of the first block, kernel) of each stage.

The total stride is a quarter of the original's: 32x32 images keep their size up to stage 2.
"""

DROP_PATH = 0.2
"""Block i of n drops its branch with probability DROP_PATH * i / n, i from 0."""


class SqueezeExcite(nn.Module):
    """Channel weights from the global average: (N, C, H, W) -> (N, C, H, W).

    Its 1x1 convolutions act on single pixels, like linear layers, and are plain in every variant.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weights = self.expand(F.silu(self.reduce(x.mean(dim=(2, 3), keepdim=True))))
        return x * weights.sigmoid()


class MBConv(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, 1x1 projection.

    (N, C, H, W) -> (N, width, H/stride, W/stride), with a shortcut if the shape does not change.
    """

    def __init__(
        self,
        conv: ConvFactory,
        in_channels: int,
        width: int,
        *,
        expansion: int,
        stride: int,
        kernel: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        inner = expansion * in_channels
        self.expand = nn.Identity()
        if expansion != 1:
            self.expand = nn.Sequential(
                conv(in_channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.SiLU()
            )
        self.depthwise = conv(
            inner, inner, kernel, stride=stride, padding=kernel // 2, groups=inner, bias=False
        )
        self.bn1 = nn.BatchNorm2d(inner)
        self.excite = SqueezeExcite(inner, max(1, in_channels // 4))
        self.project = conv(inner, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.has_shortcut = stride == 1 and in_channels == width
        self.drop_path = CounterDropout(drop_path, per_sample=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.silu(self.bn1(self.depthwise(self.expand(x))))
        y = self.bn2(self.project(self.excite(y)))
        return x + self.drop_path(y) if self.has_shortcut else y


@register("efficientnet", multiple_of=2)
def efficientnet(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (32, 16, 24, 40, 80, 112, 192, 320, 1280),
) -> nn.Module:
    """EfficientNet-B0: stem, seven stages, head. (N, C, 32, 32) -> (N, classes)."""
    stem, *stages, head = widths
    layers: list[nn.Module] = [
        nn.Sequential(
            conv(in_channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.SiLU()
        )
    ]
    blocks = sum(count for _, count, _, _ in STAGES)
    before = stem
    for width, (expansion, count, first_stride, kernel) in zip(stages, STAGES, strict=True):
        for stride in (first_stride, *[1] * (count - 1)):
            drop_path = DROP_PATH * (len(layers) - 1) / blocks
            layers.append(
                MBConv(
                    conv,
                    before,
                    width,
                    expansion=expansion,
                    stride=stride,
                    kernel=kernel,
                    drop_path=drop_path,
                )
            )
            before = width
    return nn.Sequential(
        *layers,
        nn.Sequential(conv(before, head, 1, bias=False), nn.BatchNorm2d(head), nn.SiLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        CounterDropout(0.2),
        nn.Linear(head, classes),
    )
