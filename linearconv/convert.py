"""Convert the LinearConv layers of any torch model: fuse them or set their execution."""

from __future__ import annotations

import copy

from torch import nn

from linearconv.layer import LinearConv2d


def fuse(model: nn.Module) -> nn.Module:
    """A copy of `model` with each LinearConv2d fused into a plain Conv2d; equal outputs.

    The original is unchanged. A layer used in several places stays one shared layer.
    """
    model = copy.deepcopy(model)
    if isinstance(model, LinearConv2d):
        return model.fuse()
    fused: dict[LinearConv2d, nn.Conv2d] = {}
    for parent in list(model.modules()):
        # named_children() would skip a layer registered twice in one parent.
        for name, child in list(parent._modules.items()):
            if isinstance(child, LinearConv2d):
                if child not in fused:
                    fused[child] = child.fuse()
                setattr(parent, name, fused[child])
    return model


def set_execution(model: nn.Module, execution: str) -> None:
    """Set how every LinearConv2d of `model` computes its output (see `LinearConv2d`).

    Grouped layers cannot be factored: with execution="factored" they use "generate".
    """
    for module in model.modules():
        if isinstance(module, LinearConv2d):
            grouped = execution == "factored" and module.groups != 1
            module.execution = "generate" if grouped else execution
