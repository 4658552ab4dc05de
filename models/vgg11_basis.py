"""VGG11 with learned filter bases (Li et al., 2019): a comparison system of Table 5.

The input channels of a layer are split into pieces of 128; one basis of 128 filters, shared by
all pieces, is applied to each, and a 1x1 convolution combines the resulting activations. The
network starts from a trained VGG11, whose split weights the bases approximate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.registry import register
from models.variants import ConvFactory
from models.vgg11 import POOLED

PIECE = 128
"""Input channels of one piece."""
BASIS = 128
"""Filters in a basis."""
PLAIN_LAYERS = 2
"""The first layers stay plain convolutions."""


class BasisConv2d(nn.Conv2d):
    """One basis of filters, applied to each piece of the input channels.

    (N, pieces * PIECE, H, W) -> (N, pieces * BASIS, H, W): the pieces become samples of one 3x3
    convolution with padding 1.
    """

    def __init__(self, pieces: int) -> None:
        super().__init__(PIECE, BASIS, 3, padding=1)
        self.pieces = pieces

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        batch, _, height, width = input.shape
        pieces = input.reshape(batch * self.pieces, PIECE, height, width)
        return super().forward(pieces).reshape(batch, -1, height, width)


@torch.no_grad()
def decompose(conv: nn.Conv2d, basis: BasisConv2d, combination: nn.Conv2d) -> None:
    """Set a basis and its 1x1 combination to the truncated SVD of a trained convolution.

    The convolution's weight, split into pieces (F * pieces, PIECE * 9), is approximated by
    coefficients times a basis of the leading right singular vectors; with no module between them,
    `basis` and `combination` then approximate `conv`, exactly if the split weight's rank is at
    most BASIS.
    """
    filters, pieces = conv.out_channels, basis.pieces
    split = conv.weight.reshape(filters * pieces, PIECE * 9)
    left, values, right = torch.linalg.svd(split.double(), full_matrices=False)
    rank = min(BASIS, len(values))
    # Split the singular values evenly, so that filters and coefficients are of similar size.
    root = values[:rank].sqrt()
    vectors = torch.zeros(BASIS, PIECE * 9, dtype=torch.float64)
    vectors[:rank] = root[:, None] * right[:rank]
    coefficients = torch.zeros(filters * pieces, BASIS, dtype=torch.float64)
    coefficients[:, :rank] = left[:, :rank] * root
    basis.weight.copy_(vectors.view_as(basis.weight))
    basis.bias.zero_()
    combination.weight.copy_(coefficients.view_as(combination.weight))
    combination.bias.copy_(conv.bias)


class BasisVGG11(nn.Sequential):
    """VGG11 whose layers from the third on are a basis and a 1x1 combination of its outputs."""

    @torch.no_grad()
    def start_from(self, baseline: nn.Module) -> None:
        """Load the weights of a trained VGG11-Conv, decomposed in layers with a basis.

        The BN between basis and combination has no counterpart and keeps its initial state.
        """
        for name, theirs in baseline.named_children():
            if isinstance(theirs, nn.Conv2d) and hasattr(self, f"basis_{name}"):
                decompose(theirs, getattr(self, f"basis_{name}"), getattr(self, name))
            else:
                getattr(self, name).load_state_dict(theirs.state_dict())


@register("vgg11_basis", replaceable=False, baseline="vgg11")
def vgg11_basis(
    conv: ConvFactory,
    *,
    in_channels: int,
    classes: int,
    widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
) -> nn.Module:
    """VGG11 with filter bases. (N, C, 32, 32) -> (N, classes). ReLU and pooling are modules."""
    modules: dict[str, nn.Module] = {}
    for i, (width, pooled) in enumerate(zip(widths, POOLED, strict=True), 1):
        if i <= PLAIN_LAYERS:
            modules[f"conv{i}"] = conv(in_channels, width, 3, padding=1)
        else:
            pieces = in_channels // PIECE
            modules[f"basis_conv{i}"] = BasisConv2d(pieces)
            modules[f"basis_bn{i}"] = nn.BatchNorm2d(pieces * BASIS)
            modules[f"basis_relu{i}"] = nn.ReLU(inplace=True)
            modules[f"conv{i}"] = conv(pieces * BASIS, width, 1)
        modules[f"bn{i}"] = nn.BatchNorm2d(width)
        modules[f"relu{i}"] = nn.ReLU(inplace=True)
        if pooled:
            modules[f"pool{i}"] = nn.MaxPool2d(2)
        in_channels = width
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(in_channels, classes)
    return BasisVGG11(OrderedDict(modules))
