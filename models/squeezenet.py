"""SqueezeNet 1.0 (Iandola et al., 2016) for 32x32 images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.registry import register
from models.variants import ConvFactory


class Fire(nn.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions in parallel: (N, C, H, W) -> (N, 8 s, H, W).

    `squeeze` s is the number of squeeze filters; each expansion has 4 s. ReLUs are modules.
    """

    def __init__(self, conv: ConvFactory, in_channels: int, squeeze: int) -> None:
        super().__init__()
        self.squeeze = conv(in_channels, squeeze, 1)
        self.squeeze_relu = nn.ReLU(inplace=True)
        self.expand1 = conv(squeeze, 4 * squeeze, 1)
        self.expand3 = conv(squeeze, 4 * squeeze, 3, padding=1)
        self.expand_relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.squeeze_relu(self.squeeze(x))
        return self.expand_relu(torch.cat([self.expand1(x), self.expand3(x)], dim=1))


@register("squeezenet", multiple_of=2)
def squeezenet(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (96, 16, 32, 48, 64),
) -> nn.Module:
    """SqueezeNet: stem and eight fire modules. (N, C, 32, 32) -> (N, classes).

    `widths` are the stem's filters and the squeeze filters of the fire modules, two of each. The
    last fire module and the class convolution are plain in every variant: the simplest of the
    definitions that match the paper's counts. ReLU and pooling are modules.
    """
    stem, a, b, c, d = widths
    modules: dict[str, nn.Module] = {
        "conv1": conv(in_channels, stem, 3, padding=1),
        "bn1": nn.BatchNorm2d(stem),
        "relu1": nn.ReLU(inplace=True),
        "pool1": nn.MaxPool2d(2),
        "fire2": Fire(conv, stem, a),
        "fire3": Fire(conv, 8 * a, a),
        "fire4": Fire(conv, 8 * a, b),
        "pool4": nn.MaxPool2d(2),
        "fire5": Fire(conv, 8 * b, b),
        "fire6": Fire(conv, 8 * b, c),
        "fire7": Fire(conv, 8 * c, c),
        "fire8": Fire(conv, 8 * c, d),
        "pool8": nn.MaxPool2d(2),
        "fire9": Fire(nn.Conv2d, 8 * d, d),
        "class_conv": nn.Conv2d(8 * d, classes, 1),
        "pool": nn.AvgPool2d(4),
        "flatten": nn.Flatten(),
    }
    return nn.Sequential(OrderedDict(modules))
