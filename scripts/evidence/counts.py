"""Counts of the networks of the paper's tables, kept in results/paper/counts.csv."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import nn

from configs import TrainConfig, compose, identify
from linearconv import LinearConv2d, fuse
from linearconv.complexity import count_macs_by_phase, count_parameters, paper_flops
from linearconv.regularizer import regularized_filters
from linearconv.theory import correlation_loss_bound
from models import Variant, build_model
from scripts.evidence.printed import PRINTED
from scripts.evidence.quirks import ROW_QUIRKS, quirky_flops

FILE = PRINTED.with_name("counts.csv")

INPUT = (3, 32, 32)
"""(C, H, W): the paper counts for CIFAR-10 images and 10 classes."""

CHANNELS = (1, 3)
"""Those of the datasets' images: few of them leave the first layer's filters few dimensions."""

MACS = (
    ("train", "generate"),
    ("train", "factored"),
    ("inference", "fused"),
    ("inference", "factored"),
)

Key = tuple[str, str, float | None]
"""Model, variant and alpha; None: the default, or no alpha."""


@dataclass(frozen=True)
class Counts:
    """This project's counts for a network and one CIFAR-10 image.

    Attributes:
        params: number of learnable parameters.
        flops: operations in the paper's convention, including the quirks of the paper's row.
        flops_without_quirks: the same for the network as it is trained here.
        flops_inference: the same for the fused network.
        quirks: names of the quirks (`scripts.evidence.quirks`).
        macs: exact multiply-adds of the forward pass by (phase, execution); in training,
            generating the weights counts once per batch of the paper's recipe.
        reducing_1x1: share of 1x1 layers that condition (2) holds in; NaN without such layers.
        correlation_bounds: lower bound of the correlation loss by the channels of the images.
        filter_sizes: number of values in a filter by the layer's name.
    """

    params: int
    flops: int
    flops_without_quirks: int
    flops_inference: int
    quirks: tuple[str, ...]
    macs: dict[tuple[str, str], float]
    reducing_1x1: float
    correlation_bounds: dict[int, float]
    filter_sizes: dict[str, int]

    def as_row(self, key: Key) -> dict[str, Any]:
        """The line of the file."""
        model, variant, alpha = key
        return {
            "model": model,
            "variant": variant,
            "alpha": "" if alpha is None else f"{alpha:g}",
            "params": self.params,
            "flops": self.flops,
            "flops_without_quirks": self.flops_without_quirks,
            "flops_inference": self.flops_inference,
            "quirks": " ".join(self.quirks),
            **{"_".join(("macs", *how)): repr(self.macs[how]) for how in MACS},
            "reducing_1x1": repr(self.reducing_1x1),
            **{f"bound_{n}": repr(float(self.correlation_bounds[n])) for n in CHANNELS},
            "filter_sizes": " ".join(f"{name}={size}" for name, size in self.filter_sizes.items()),
        }

    @classmethod
    def from_row(cls, row: dict[str, str]) -> Counts:
        """The counts of a line of the file."""
        sizes = (each.rpartition("=") for each in row["filter_sizes"].split())
        return cls(
            *(int(row[name]) for name in ("params", "flops", "flops_without_quirks")),
            flops_inference=int(row["flops_inference"]),
            quirks=tuple(row["quirks"].split()),
            macs={how: _number(row["_".join(("macs", *how))]) for how in MACS},
            reducing_1x1=float(row["reducing_1x1"]),
            correlation_bounds={n: float(row[f"bound_{n}"]) for n in CHANNELS},
            filter_sizes={name: int(size) for name, _, size in sizes},
        )


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)


@cache
def counts(model: str, variant: str, alpha: float | None = None) -> Counts:
    """The counts of a network; one that is not in the file, as of a cell of one's own, is counted.

    Raises:
        UserError: unknown network.
    """
    key = model, variant, None if alpha == TrainConfig.alpha else alpha
    found = _read().get(key)
    if found is not None:
        return found
    return count(key)


@cache
def _read() -> dict[Key, Counts]:
    rows = pd.read_csv(FILE, dtype=str, keep_default_na=False).to_dict("records")
    return {
        (row["model"], row["variant"], float(row["alpha"]) if row["alpha"] else None):
            Counts.from_row(row)
        for row in rows
    }  # fmt: skip


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
