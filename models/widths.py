"""The widths of variant e: a plain network with about as many parameters as the -Lr one.

Parameters are counted for 3-channel images and 10 classes, as in the paper, so that the widths are
the same for every dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from linearconv.complexity import count_parameters
from linearconv.layer import LinearConv2d
from models.variants import ConvFactory

Build = Callable[..., nn.Module]

TOLERANCE = 0.02
"""Largest relative difference between the parameters of e and of -Lr."""

BISECTIONS = 40


def on_meta(build: Build, conv: ConvFactory, widths: Sequence[int]) -> nn.Module:
    """The network on the meta device, for counting."""
    with torch.device("meta"):
        return build(conv, in_channels=3, classes=10, widths=widths)


def chain_widths(build: Build, linear: ConvFactory, widths: Sequence[int]) -> list[int]:
    """Widths of a plain chain, layer by layer: a rule that matches the paper's counts.

    The first width stays; each later layer gets the smallest width whose convolution, on the
    narrowed input, has at least the parameters of the LinearConv layer that it replaces.
    """
    model = on_meta(build, linear, widths)
    layers = [m for m in model.modules() if isinstance(m, LinearConv2d)]
    matched = [widths[0]]
    for layer in layers[1:]:
        target = count_parameters(layer)
        per_filter = math.prod(layer.kernel_size) * matched[-1] + (layer.bias is not None)
        matched.append(math.ceil(target / per_filter))
    return matched


def scaled_widths(widths: Sequence[int], factor: float, multiple_of: int) -> list[int]:
    """All widths times a factor, rounded to multiples of `multiple_of`, at least one of them."""
    return [max(1, round(factor * width / multiple_of)) * multiple_of for width in widths]


def uniform_widths(
    build: Build, linear: ConvFactory, widths: Sequence[int], multiple_of: int
) -> list[int]:
    """All widths times one factor, found by bisection, rounded to multiples of `multiple_of`.

    Raises:
        ValueError: the -Lr network has more parameters than the plain one, or no factor comes
            within `TOLERANCE` of its parameters.
    """
    target = count_parameters(on_meta(build, linear, widths))
    plain = count_parameters(on_meta(build, nn.Conv2d, widths))
    if target >= plain:
        raise ValueError(f"-Lr has {target:,} parameters, no fewer than Conv with {plain:,}")

    def scaled(factor: float) -> list[int]:
        return scaled_widths(widths, factor, multiple_of)

    def parameters(factor: float) -> int:
        return count_parameters(on_meta(build, nn.Conv2d, scaled(factor)))

    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(middle) < target else (low, middle)
    best = min((low, high), key=lambda factor: abs(parameters(factor) - target))
    if abs(parameters(best) - target) > TOLERANCE * target:
        raise ValueError(
            f"no width factor comes within {TOLERANCE:.0%} of the {target:,} parameters of -Lr; "
            f"the nearest gives {parameters(best):,}"
        )
    return scaled(best)
