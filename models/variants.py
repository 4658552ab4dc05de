"""Variants of a model: the layer that replaces its convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from linearconv.layer import LinearConv2d, split_filters
from linearconv.regularizer import RegularizedConv2d

ConvFactory = Callable[..., nn.Module]
"""A callable with `torch.nn.Conv2d`'s signature."""


@dataclass(frozen=True)
class Variant:
    """The layer that replaces a model's convolutions (paper, section 4.3).

    Attributes:
        linear: LinearConv2d (True) or a plain convolution.
        regularized: the correlation loss acts on the filters.
        alpha: share of primary filters; for `widths="matched"`, that of the -Lr model whose
            parameters are matched.
        rank: rank R of A = A1 A2, or None for a full A.
        init: LinearConv2d's `init`.
        widths: "model" for the architecture's own widths, "x0.5" for half of each of them,
            "matched" for narrower ones with about as many parameters as the -Lr model (variant e).
        pair: in place of each convolution P filters and a 1x1 convolution onto all F of them; of
            convolutions without groups, the same functions as LinearConv2d's in other coordinates.
    """

    linear: bool = False
    regularized: bool = False
    alpha: float = 0.5
    rank: int | None = None
    init: str = "released"
    widths: str = "model"
    pair: bool = False

    @property
    def uses_alpha(self) -> bool:
        """Whether alpha makes a difference."""
        return self.linear or self.pair or self.widths == "matched"

    @property
    def width_factor(self) -> float | None:
        """What the architecture's widths are multiplied with; None for other rules.

        Raises:
            ValueError: the rule is unknown.
        """
        if self.widths == "matched":
            return None
        return 1.0 if self.widths == "model" else float(self.widths.removeprefix("x"))

    @classmethod
    def from_identity(cls, variant: Mapping[str, Any]) -> Variant:
        """The variant that a run's identity describes (None: unused, set to the default)."""
        names = [f.name for f in fields(cls)]
        return cls(**{name: variant[name] for name in names if variant.get(name) is not None})

    @property
    def conv(self) -> ConvFactory:
        """The layer, with `torch.nn.Conv2d`'s signature; reduces the rank if a layer needs it."""
        if self.linear:
            return self._linear_conv
        if self.pair:
            return self._pair
        return RegularizedConv2d if self.regularized else nn.Conv2d

    def _linear_conv(
        self, in_channels: int, out_channels: int, *args: Any, **kwargs: Any
    ) -> LinearConv2d:
        rank = self.rank and min(self.rank, *split_filters(out_channels, self.alpha))
        kwargs |= {"alpha": self.alpha, "rank": rank, "init": self.init}
        return LinearConv2d(in_channels, out_channels, *args, **kwargs)

    def _pair(
        self, in_channels: int, out_channels: int, *args: Any, bias: bool = True, **kwargs: Any
    ) -> nn.Sequential:
        primary, _ = split_filters(out_channels, self.alpha)
        first = nn.Conv2d(in_channels, primary, *args, bias=False, **kwargs)
        return nn.Sequential(first, nn.Conv2d(primary, out_channels, 1, bias=bias))
