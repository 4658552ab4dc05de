"""AllConv (Springenberg et al., 2015): strides instead of pooling, no batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from linearconv.dropout import CounterDropout
from models.registry import register
from models.variants import ConvFactory


class AllConv(nn.Module):
    """All-CNN-C of Table 1: (N, C, 32, 32) -> (N, classes).

    ReLU (also after the class convolution) and global pooling are functions; dropouts are modules.
    The class convolution is plain in every variant.
    """

    def __init__(
        self, conv: ConvFactory, in_channels: int, classes: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        narrow, wide = widths
        self.dropout0 = CounterDropout(0.2)
        self.conv1 = conv(in_channels, narrow, 3, padding=1)
        self.conv2 = conv(narrow, narrow, 3, padding=1)
        self.conv3 = conv(narrow, narrow, 3, padding=1, stride=2)
        self.dropout3 = CounterDropout(0.5)
        self.conv4 = conv(narrow, wide, 3, padding=1)
        self.conv5 = conv(wide, wide, 3, padding=1)
        self.conv6 = conv(wide, wide, 3, padding=1, stride=2)
        self.dropout6 = CounterDropout(0.5)
        self.conv7 = conv(wide, wide, 3, padding=1)
        self.conv8 = conv(wide, wide, 1)
        self.class_conv = nn.Conv2d(wide, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, classes)."""
        x = self.dropout0(x)
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout3(F.relu(self.conv3(x)))
        x = F.relu(self.conv4(x))
        x = F.relu(self.conv5(x))
        x = self.dropout6(F.relu(self.conv6(x)))
        x = F.relu(self.conv7(x))
        x = F.relu(self.conv8(x))
        return F.relu(self.class_conv(x)).mean(dim=(2, 3))


@register("allconv")
def allconv(
    conv: ConvFactory, *, in_channels: int, classes: int, widths: Sequence[int] = (96, 192)
) -> nn.Module:
    """AllConv: seven 3x3 and one 1x1 convolution, then the class convolution."""
    return AllConv(conv, in_channels, classes, widths)
