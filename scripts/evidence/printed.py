"""Tables 2 to 5 of the paper as printed."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pandas as pd

from configs.experiments import Cell

PRINTED = Path(__file__).resolve().parents[2] / "results" / "paper" / "tables.csv"


class Names(dict[str, str]):
    """Names that the paper has for some; others have their own."""

    def __missing__(self, name: str) -> str:
        return name


DATASETS = Names(
    {
        "cifar10": "CIFAR-10",
        "cifar100": "CIFAR-100",
        "svhn": "SVHN",
        "mnist": "MNIST",
        "fashion_mnist": "Fashion MNIST",
    }
)
MODELS = Names(
    {
        "base": "Base",
        "vgg11": "VGG11",
        "allconv": "AllConv",
        "resnet18": "ResNet-18",
        "resnext29": "ResNeXt-29",
        "mobilenetv2": "MobileNetV2",
        "squeezenet": "SqueezeNet",
        "vgg11_octconv": "VGG11-OctConv",
        "vgg11_basis": "VGG11-Basis",
        "efficientnet": "EfficientNet",
    }
)
"""The paper's names for datasets and models."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table as printed.

    Attributes:
        table: 2 to 5.
        model: a registered model.
        variant: Conv, r, e, L, Lr or LRr.
        alpha: share of primary filters; 1 for the plain network of Table 2, else None for Conv.
        baseline: model whose Conv row the accuracies are relative to; None in a baseline's own
            row, whose accuracies are absolute.
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
        """The paper's name, e.g. VGG11 or VGG11-Lr."""
        suffix = "" if self.variant == "Conv" else f"-{self.variant}"
        return MODELS[self.model] + suffix

    @property
    def network(self) -> tuple[str, str, float | None]:
        """Arguments of `counts`; alpha is None if it has no effect."""
        return self.model, self.variant, None if self.variant == "Conv" else self.alpha

    def cell(self, dataset: str) -> Cell:
        """The cell of the row's accuracy on a dataset."""
        model, variant, alpha = self.network
        return Cell(model, variant, dataset, alpha)


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """All rows of Tables 2 to 5, in print order."""
    # As strings, so that no printed digit is lost.
    frame = pd.read_csv(PRINTED, dtype=str, keep_default_na=False)
    return tuple(map(_row, frame.to_dict("records")))


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


def absolute(row: PaperRow, dataset: str) -> Decimal:
    """The accuracy of a row in percent, also where a difference from the baseline is printed."""
    if row.baseline is None:
        return row.accuracies[dataset]
    (base,) = (
        other
        for other in paper_rows()
        if (other.table, other.model, other.baseline) == (row.table, row.baseline, None)
    )
    return base.accuracies[dataset] + row.accuracies[dataset]


def printed(count: int, unit: float, like: Decimal) -> Decimal:
    """A count in millions or billions, rounded half up to the decimals of `like`."""
    return (Decimal(count) / Decimal(int(unit))).quantize(like, rounding=ROUND_HALF_UP)


def change(value: Decimal, baseline: Decimal) -> Decimal:
    """Parameters or FLOPs relative to the baseline, as in Table 4: value / baseline - 1.

    The paper uses both at their printed precision: 0.21 / 0.40 gives its x0.48, while the exact
    counts of Base-LRr would give 0.47.
    """
    return value / baseline - 1
