"""This project's counts for the networks of the paper's tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from configs import TrainConfig, compose, identify
from linearconv import LinearConv2d, fuse
from linearconv.complexity import count_macs_by_phase, count_parameters, paper_flops
from linearconv.regularizer import regularized_filters
from linearconv.theory import correlation_loss_bound
from models import Variant, build_model
from scripts.paper.quirks import ROW_QUIRKS, quirky_flops

INPUT = (3, 32, 32)
"""(C, H, W): the paper counts for CIFAR-10 images and 10 classes."""


@dataclass(frozen=True)
class Counts:
    """This project's counts for a network and one CIFAR-10 image.

    Attributes:
        params: number of learnable parameters.
        flops: operations in the paper's convention, including the quirks of the paper's row.
        flops_without_quirks: the same for the network as it is trained here.
        quirks: names of the quirks (`scripts.paper.quirks`).
        macs: exact multiply-adds of the forward pass by (phase, execution); in training,
            generating the weights counts once per batch of the paper's recipe.
    """

    params: int
    flops: int
    flops_without_quirks: int
    quirks: tuple[str, ...]
    macs: dict[tuple[str, str], float]


@cache
def counts(model: str, variant: str, alpha: float | None = None) -> Counts:
    """Count the network of a row.

    Raises:
        UserError: unknown network.
    """
    config = _config(model, variant, alpha)
    net, quirks = network(config, INPUT[0], 10), ROW_QUIRKS.get((model, variant), ())
    flops = paper_flops(net, INPUT)
    macs = count_macs_by_phase(net, INPUT, batch_size=config.recipe.batch_size)
    return Counts(
        params=count_parameters(net),
        flops=quirky_flops(net, INPUT, quirks) if quirks else flops,
        flops_without_quirks=flops,
        quirks=quirks,
        macs={(phase, how): count for phase in macs for how, count in macs[phase].items()},
    )


@cache
def inference_flops(model: str, variant: str, alpha: float | None = None) -> int:
    """FLOPs, in the paper's convention, of the fused network of a row."""
    net = network(_config(model, variant, alpha), INPUT[0], 10)
    return paper_flops(fuse(net), INPUT)


def _config(model: str, variant: str, alpha: float | None) -> TrainConfig:
    overrides = [f"model={model}", f"variant={variant}"]
    return compose(overrides if alpha is None else [*overrides, f"alpha={alpha}"])


def network(config: TrainConfig, channels: int, classes: int) -> nn.Module:
    """The network of a config, on the meta device."""
    variant = Variant.from_identity(identify(config)["variant"])
    with torch.device("meta"):
        return build_model(config.model.name, variant, in_channels=channels, classes=classes)


@cache
def correlation_bound(model: str, variant: str, channels: int) -> float:
    """Lower bound of a network's correlation loss: the sum over its regularised layers.

    Args:
        model: its model.
        variant: its variant, with the default alpha.
        channels: of the images, since few of them leave the first layer's filters few dimensions.
    """
    net = network(_config(model, variant, None), channels, 10)
    filters = (weight.shape for _, weight in regularized_filters(net))
    return sum(correlation_loss_bound(n, math.prod(size)) for n, *size in filters)


@cache
def reducing_1x1(model: str, variant: str, alpha: float | None = None) -> float:
    """The share of 1x1 layers without groups that condition (2) holds in; NaN without such layers.

    Where it holds, a LinearConv layer has no more parameters than the convolution it replaces.
    """
    net = network(_config(model, variant, alpha), INPUT[0], 10)
    holds = [
        layer.primary.shape[0] <= layer.in_channels
        for layer in net.modules()
        if isinstance(layer, LinearConv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    ]
    return sum(holds) / len(holds) if holds else math.nan


@cache
def filter_size(model: str, variant: str, alpha: float | None, layer: str) -> int:
    """Number of values in a filter of a layer."""
    conv = network(_config(model, variant, alpha), INPUT[0], 10).get_submodule(layer)
    return conv.weight[0].numel()
