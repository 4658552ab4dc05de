"""Tables 2 to 5 of the paper as printed, and what this project counts for each of their rows."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import torch
from torch import nn

from configs.compose import compose
from configs.experiments import Cell
from configs.schema import TrainConfig
from configs.science import science
from linearconv import fuse
from linearconv.complexity import count_macs, count_parameters, paper_flops
from linearconv.quirks import ROW_QUIRKS, quirky_flops
from models import Variant, build_model

PRINTED = Path(__file__).resolve().parents[1] / "results" / "paper" / "tables.csv"
INPUT = (3, 32, 32)
"""(C, H, W): the paper counts with CIFAR-10's images and 10 classes."""

DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion MNIST",
}
MODELS = {
    "base": "Base",
    "vgg11": "VGG11",
    "allconv": "AllConv",
    "resnet18": "ResNet-18",
    "resnext29": "ResNeXt-29",
    "mobilenetv2": "MobileNetV2",
    "squeezenet": "SqueezeNet",
    "vgg11_octconv": "VGG11-OctConv",
    "vgg11_basis": "VGG11-Basis",
}
"""How the paper writes them."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table as printed.

    Attributes:
        table: 2 to 5.
        model: a registered model.
        variant: Conv, r, e, L, Lr or LRr.
        alpha: share of primary filters; 1 for the plain network of Table 2, else None for Conv.
        baseline: model of the row, of variant Conv, that accuracies are relative to; None in a
            baseline's own row, whose accuracies are absolute.
        accuracies: by dataset, in percent, or the difference from the baseline in points.
        params_m: parameters in millions.
        flops_b: operations of training in billions, in the paper's convention.
        flops_inference_b: the same at inference, where printed.
    """

    table: int
    model: str
    variant: str
    alpha: float | None
    baseline: str | None
    accuracies: dict[str, Decimal]
    params_m: Decimal
    flops_b: Decimal
    flops_inference_b: Decimal | None

    @property
    def name(self) -> str:
        """As the paper names it: VGG11, VGG11-Lr."""
        suffix = "" if self.variant == "Conv" else f"-{self.variant}"
        return MODELS[self.model] + suffix

    @property
    def network(self) -> tuple[str, str, float | None]:
        """Arguments of `counts`; an alpha that changes nothing is None."""
        return self.model, self.variant, None if self.variant == "Conv" else self.alpha

    def cell(self, dataset: str) -> Cell:
        """What fills the row's accuracy on a dataset."""
        model, variant, alpha = self.network
        return Cell(model, variant, dataset, alpha)


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """All rows of Tables 2 to 5, in print order."""
    with PRINTED.open(newline="") as file:
        return tuple(_row(fields) for fields in csv.DictReader(file))


def _row(fields: dict[str, str]) -> PaperRow:
    inference = fields["flops_inference_b"]
    return PaperRow(
        table=int(fields["table"]),
        model=fields["model"],
        variant=fields["variant"],
        alpha=float(fields["alpha"]) if fields["alpha"] else None,
        baseline=fields["baseline"] if fields["relative"] == "yes" else None,
        accuracies={name: Decimal(fields[name]) for name in DATASETS if fields[name]},
        params_m=Decimal(fields["params_m"]),
        flops_b=Decimal(fields["flops_b"]),
        flops_inference_b=Decimal(inference) if inference else None,
    )


@dataclass(frozen=True)
class Counts:
    """What this project counts for a network, for one CIFAR-10 image.

    Attributes:
        params: learnable values.
        flops: operations in the paper's convention, the quirks of the paper's row included.
        flops_without_quirks: the same of the network as it is trained here.
        quirks: names of the quirks (`linearconv.quirks`).
        macs: exact multiply-adds by (phase, execution); those of training are of the forward
            pass, with the building of the weights shared by the recipe's batch.
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
        UserError: there is no such network.
    """
    config = _config(model, variant, alpha)
    net, quirks = network(config, INPUT[0], 10), ROW_QUIRKS.get((model, variant), ())
    flops = paper_flops(net, INPUT)
    macs = {
        (phase, execution): count_macs(
            net, INPUT, execution=execution, batch_size=config.recipe.batch_size
        )
        for phase, execution in (
            ("train", "generate"),
            ("train", "factored"),
            ("inference", "fused"),
            ("inference", "factored"),
        )
    }
    return Counts(
        params=count_parameters(net),
        flops=quirky_flops(net, INPUT, quirks) if quirks else flops,
        flops_without_quirks=flops,
        quirks=quirks,
        macs=macs,
    )


@cache
def inference_flops(model: str, variant: str, alpha: float | None = None) -> int:
    """FLOPs, in the paper's convention, of the folded network of a row."""
    net = network(_config(model, variant, alpha), INPUT[0], 10)
    return paper_flops(fuse(net), INPUT)


def _config(model: str, variant: str, alpha: float | None) -> TrainConfig:
    overrides = [f"model={model}", f"variant={variant}"]
    return compose(overrides if alpha is None else [*overrides, f"alpha={alpha}"])


def network(config: TrainConfig, channels: int, classes: int) -> nn.Module:
    """The network of a config, without memory for its weights."""
    variant = Variant.from_science(science(config)["variant"])
    with torch.device("meta"):
        return build_model(config.model.name, variant, in_channels=channels, classes=classes)


def printed(count: int, unit: float, like: Decimal) -> Decimal:
    """A count in millions or billions, rounded half up to as many decimals as `like` has."""
    return (Decimal(count) / Decimal(int(unit))).quantize(like, rounding=ROUND_HALF_UP)


def change(value: Decimal, baseline: Decimal) -> Decimal:
    """How Table 4 gives Parameters and FLOPs relative to the baseline: value / baseline - 1.

    The paper takes both at their printed precision: 0.21 / 0.40 gives its x0.48, where the exact
    counts of Base-LRr would give 0.47.
    """
    return value / baseline - 1
