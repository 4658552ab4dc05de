"""VGG11 with octave convolutions (Chen et al., 2019): a comparison system of Table 5.

An octave convolution keeps part of its channels at half the resolution ("low frequency") and
exchanges information between both parts with four convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register
from models.variants import ConvFactory
from models.vgg11 import POOLED

LOW_SHARE = 0.5
"""The paper's alpha for octave convolution: the share of low-frequency channels between layers."""

Octave = tuple[Tensor | None, Tensor | None]
"""High-frequency maps (N, Ch, H, W) and low-frequency ones (N, Cl, H/2, W/2)."""


class OctaveConv(nn.Module):
    """Up to four convolutions between high and low frequency, each with its own bias.

    high -> high and low -> low convolve; high -> low first averages 2x2; low -> high afterwards
    upsamples by nearest neighbour (a function). Outputs of the same frequency are added.

    Args:
        conv: builds a convolution.
        inputs: numbers of high and low input channels; 0 if a part is absent.
        outputs: the same for the output.
    """

    def __init__(
        self, conv: ConvFactory, inputs: tuple[int, int], outputs: tuple[int, int]
    ) -> None:
        super().__init__()

        def path(source: int, target: int) -> nn.Module | None:
            return conv(source, target, 3, padding=1) if source and target else None

        (high_in, low_in), (high_out, low_out) = inputs, outputs
        self.high_to_high, self.high_to_low = path(high_in, high_out), path(high_in, low_out)
        self.low_to_high, self.low_to_low = path(low_in, high_out), path(low_in, low_out)
        # A module, and a pair: the paper's operation count needs both.
        self.pool = nn.AvgPool2d((2, 2)) if self.high_to_low is not None else None

    def forward(self, octave: Octave) -> Octave:
        """Exchange and convolve: (high, low) -> (high, low)."""
        high, low = octave
        to_high, to_low = [], []
        if self.high_to_high is not None:
            to_high.append(self.high_to_high(high))
        if self.low_to_high is not None:
            to_high.append(F.interpolate(self.low_to_high(low), scale_factor=2, mode="nearest"))
        if self.high_to_low is not None:
            to_low.append(self.high_to_low(self.pool(high)))
        if self.low_to_low is not None:
            to_low.append(self.low_to_low(low))
        return sum(to_high) if to_high else None, sum(to_low) if to_low else None


class PerFrequency(nn.Module):
    """One module for each frequency; `None` if that part is absent."""

    def __init__(self, high: nn.Module | None, low: nn.Module | None) -> None:
        super().__init__()
        self.high, self.low = high, low

    def forward(self, octave: Octave) -> Octave:
        """(high, low) -> (high, low)."""
        high, low = octave
        return (
            None if self.high is None else self.high(high),
            None if self.low is None else self.low(low),
        )


class OctaveVGG11(nn.Module):
    """Stages of octave convolution, BN, ReLU and pooling on both parts, then a linear layer."""

    def __init__(self, stages: Sequence[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, classes)."""
        high, _ = self.stages((x, None))
        return self.fc(high.flatten(1))


@register("vgg11_octconv", replaceable=False)
def vgg11_octconv(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
) -> nn.Module:
    """VGG11 with octave convolutions instead of 3x3 ones. (N, C, 32, 32) -> (N, classes).

    The first layer has no low-frequency input, the last no low-frequency output. ReLU and max
    pooling are modules.
    """
    stages: list[nn.Module] = []
    parts = (in_channels, 0)
    for i, (width, pooled) in enumerate(zip(widths, POOLED, strict=True)):
        low = 0 if i == len(widths) - 1 else int(LOW_SHARE * width)
        outputs = (width - low, low)
        stages.append(OctaveConv(conv, parts, outputs))
        kinds = [nn.BatchNorm2d, lambda _: nn.ReLU(inplace=True)]
        kinds += [lambda _: nn.MaxPool2d(2)] if pooled else []
        stages += [PerFrequency(*[kind(c) if c else None for c in outputs]) for kind in kinds]
        parts = outputs
    return OctaveVGG11(stages, widths[-1], classes)
