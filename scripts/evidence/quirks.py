"""Quirks of the authors' counts.

The networks trained here have none of them. Where a printed FLOPs cell of the paper needs one, it
is applied to the regular count as a named correction.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from linearconv.complexity import paper_flops
from linearconv.layer import LinearConv2d

PAPER_RANK = 10


@dataclass(frozen=True)
class Quirk:
    """One deviation of the authors' scripts or counting.

    Attributes:
        meaning: a description in one sentence.
        edit: changes a copy of the network into the one that the authors counted.
        options: further arguments of `paper_flops`.
    """

    meaning: str
    edit: Callable[[nn.Module], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _pad_1x1(model: nn.Module) -> None:
    for layer in _linear_layers(model):
        if layer.kernel_size == (1, 1):
            layer.padding = (1, 1)


def _add_bias(model: nn.Module) -> None:
    for layer in _linear_layers(model):
        layer.bias = nn.Parameter(torch.zeros(layer.out_channels, device=layer.primary.device))


def _drop_basis_bias(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "pieces"):
            module.bias = None


def _linear_layers(model: nn.Module) -> list[LinearConv2d]:
    return [module for module in model.modules() if isinstance(module, LinearConv2d)]


QUIRKS = {
    "padded_1x1": Quirk(
        "the 1x1 LinearConv layer of AllConv has padding 1, so that it and the class convolution "
        "run on 10x10 maps",
        edit=_pad_1x1,
    ),
    "linearconv_bias": Quirk(
        "the LinearConv layers have a bias, which the convolutions that they replace do not",
        edit=_add_bias,
    ),
    "all_input_channels": Quirk(
        "the combination in grouped layers is counted with all input channels instead of those "
        "of one group",
        options={"all_input_channels": True},
    ),
    "rank_not_cut": Quirk(
        f"rank {PAPER_RANK} is counted even in layers whose maximum rank is lower",
        options={"rank": PAPER_RANK},
    ),
    "basis_bias_not_counted": Quirk(
        "the bias of the shared basis is not counted",
        edit=_drop_basis_bias,
    ),
}

ROW_QUIRKS: dict[tuple[str, str], tuple[str, ...]] = {
    ("allconv", "Lr"): ("padded_1x1",),
    ("allconv", "LRr"): ("padded_1x1",),
    ("resnet18", "Lr"): ("linearconv_bias",),
    ("resnext29", "Lr"): ("all_input_channels",),
    ("resnext29", "LRr"): ("all_input_channels",),
    ("mobilenetv2", "Lr"): ("all_input_channels",),
    ("mobilenetv2", "LRr"): ("all_input_channels", "rank_not_cut"),
    ("squeezenet", "LRr"): ("rank_not_cut",),
    ("vgg11_basis", "Conv"): ("basis_bias_not_counted",),
}
"""The quirks with which the paper's row for (model, variant) is counted; most rows have none.

Seven rows agree only with theirs. MobileNetV2-LRr comes nearest with them (docs/counting.md), and
SqueezeNet-LRr, which would agree without, has that of the other low-rank layers.
"""


def quirky_flops(model: nn.Module, input_shape: tuple[int, int, int], quirks: Sequence[str]) -> int:
    """`paper_flops` of a network with the named quirks applied to a copy of it."""
    model, options = copy.deepcopy(model), {}
    for name in quirks:
        quirk = QUIRKS[name]
        options |= quirk.options
        if quirk.edit is not None:
            quirk.edit(model)
    return paper_flops(model, input_shape, **options)
