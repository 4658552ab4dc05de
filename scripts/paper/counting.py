"""Count the networks of the paper's tables; what is found is in results/paper/counts.csv."""

from __future__ import annotations

import math

import torch
from torch import nn

from configs import TrainConfig, compose, identify
from linearconv import LinearConv2d, fuse
from linearconv.complexity import count_macs_by_phase, count_parameters, paper_flops
from linearconv.regularizer import regularized_filters
from linearconv.theory import correlation_loss_bound
from models import Variant, build_model
from scripts.paper.counts import CHANNELS, Counts, Key
from scripts.paper.quirks import ROW_QUIRKS, quirky_flops

INPUT = (3, 32, 32)
"""(C, H, W): the paper counts for CIFAR-10 images and 10 classes."""


def count(key: Key) -> Counts:
    """Count a network.

    Raises:
        UserError: unknown network.
    """
    model, variant, alpha = key
    overrides = [f"model={model}", f"variant={variant}"]
    config = compose(overrides if alpha is None else [*overrides, f"alpha={alpha}"])
    net, quirks = network(config, INPUT[0], 10), ROW_QUIRKS.get((model, variant), ())
    flops = paper_flops(net, INPUT)
    macs = count_macs_by_phase(net, INPUT, batch_size=config.recipe.batch_size)
    return Counts(
        params=count_parameters(net),
        flops=quirky_flops(net, INPUT, quirks) if quirks else flops,
        flops_without_quirks=flops,
        flops_inference=paper_flops(fuse(net), INPUT),
        quirks=quirks,
        macs={(phase, how): value for phase in macs for how, value in macs[phase].items()},
        reducing_1x1=_reducing_1x1(net),
        correlation_bounds={
            channels: _correlation_bound(network(config, channels, 10)) for channels in CHANNELS
        },
        filter_sizes={name: weight[0].numel() for name, weight in _filters(net)},
    )


def network(config: TrainConfig, channels: int, classes: int) -> nn.Module:
    """The network of a config, on the meta device."""
    variant = Variant.from_identity(identify(config)["variant"])
    with torch.device("meta"):
        return build_model(config.model.name, variant, in_channels=channels, classes=classes)


def _correlation_bound(net: nn.Module) -> float:
    """Lower bound of the correlation loss: the sum over the regularised layers."""
    filters = (weight.shape for _, weight in regularized_filters(net))
    return sum(correlation_loss_bound(n, math.prod(size)) for n, *size in filters)


def _reducing_1x1(net: nn.Module) -> float:
    """The share of 1x1 layers without groups that condition (2) holds in; NaN without such layers.

    Where it holds, a LinearConv layer has no more parameters than the convolution it replaces.
    """
    holds = [
        layer.primary.shape[0] <= layer.in_channels
        for layer in net.modules()
        if isinstance(layer, LinearConv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    ]
    return sum(holds) / len(holds) if holds else math.nan


def _filters(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The convolutions by name, each with its weight."""
    return [
        (name, module.weight)
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
