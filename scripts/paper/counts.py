"""This project's counts for the networks of the paper's tables, from results/paper/counts.csv."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from configs import TrainConfig
from scripts.paper.printed import PRINTED

FILE = PRINTED.with_name("counts.csv")

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
        quirks: names of the quirks (`scripts.paper.quirks`).
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
    from scripts.paper.counting import count  # which builds networks

    return count(key)


@cache
def _read() -> dict[Key, Counts]:
    rows = pd.read_csv(FILE, dtype=str, keep_default_na=False).to_dict("records")
    return {
        (row["model"], row["variant"], float(row["alpha"]) if row["alpha"] else None):
            Counts.from_row(row)
        for row in rows
    }  # fmt: skip
