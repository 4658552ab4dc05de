"""The registered architectures and `build_model`, which builds one as a variant."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from linearconv.errors import UserError
from linearconv.layer import LinearConv2d, nearest_alphas, split_filters
from linearconv.regularizer import RegularizedConv2d

log = logging.getLogger(__name__)

ConvFactory = Callable[..., nn.Module]
"""What a variant is to a model: a callable with `torch.nn.Conv2d`'s signature."""

_MODELS: dict[str, Callable[..., nn.Module]] = {}


@dataclass(frozen=True)
class Variant:
    """What takes the place of the convolutions that the paper replaces (section 4.3).

    Attributes:
        linear: LinearConv2d (True) or a plain convolution.
        regularized: the correlation loss acts on the filters.
        alpha: share of primary filters; for `widths="matched"` the one of the LinearConv model
            whose parameters are matched.
        rank: rank R of A = A1 A2, or None for a full A.
        init: LinearConv2d's `init`.
        widths: "model" for the architecture's own widths, "matched" for narrower ones with about
            as many parameters as the -Lr model (variant e).
    """

    linear: bool = False
    regularized: bool = False
    alpha: float = 0.5
    rank: int | None = None
    init: str = "released"
    widths: str = "model"

    @classmethod
    def from_science(cls, variant: Mapping[str, Any]) -> Variant:
        """The variant that a run's science config describes (null: the default, unused)."""
        names = [f.name for f in fields(cls)]
        return cls(**{name: variant[name] for name in names if variant[name] is not None})


def register(name: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Make `build` known as model `name`.

    `build(conv, *, in_channels, classes, widths=...)` returns the network; `conv` has
    `torch.nn.Conv2d`'s signature, and the default of `widths` is the paper's Table 1.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _MODELS[name] = build
        return build

    return add


def model_names() -> list[str]:
    """Names of all registered models, sorted."""
    return sorted(_MODELS)


def build_model(name: str, variant: Variant, *, in_channels: int, classes: int) -> nn.Module:
    """Build a registered architecture as a variant; draws from torch's global generator.

    A rank above what a layer allows is cut to min(R, P, S) there, and logged.

    Args:
        name: a registered model.
        variant: the layer that it is built of.
        in_channels: channels of the images.
        classes: number of outputs.

    Returns:
        (N, in_channels, 32, 32) -> (N, classes).

    Raises:
        UserError: unknown model, or an alpha that some layer cannot split by.
    """
    build = _find(name)
    check_variant(name, variant)
    widths = {}
    if variant.widths == "matched":
        widths["widths"] = matched_widths(name, variant.alpha)
    model = build(conv_factory(variant), in_channels=in_channels, classes=classes, **widths)
    cut = [n for n, m in model.named_modules() if getattr(m, "rank", variant.rank) != variant.rank]
    if cut:
        log.info("rank %s is cut to what the layer allows in: %s", variant.rank, ", ".join(cut))
    return model


def conv_factory(variant: Variant) -> ConvFactory:
    """The layer of a variant, with `torch.nn.Conv2d`'s signature."""
    if not variant.linear:
        return RegularizedConv2d if variant.regularized else nn.Conv2d

    def linear_conv(in_channels: int, out_channels: int, *args: object, **kwargs: object):
        rank = variant.rank and min(variant.rank, *split_filters(out_channels, variant.alpha))
        kwargs |= {"alpha": variant.alpha, "rank": rank, "init": variant.init}
        return LinearConv2d(in_channels, out_channels, *args, **kwargs)

    return linear_conv


def check_variant(name: str, variant: Variant) -> None:
    """Refuse an alpha that does not split some layer's filters into whole numbers.

    Raises:
        UserError: names the layer and the nearest values that all layers allow.
    """
    if not variant.linear and variant.widths == "model":
        return
    filters = {n: conv.out_channels for n, conv in replaced_convs(name).items()}
    allowed = math.gcd(*filters.values())
    for layer, count in filters.items():
        try:
            split_filters(count, variant.alpha)
        except ValueError:
            raise UserError(
                f"alpha={variant.alpha:g} is not possible with model={name}: it does not split "
                f"the {count} filters of layer '{layer}' into whole primary and secondary "
                f"filters; for all layers, {nearest_alphas(variant.alpha, allowed)}"
            ) from None


def replaced_convs(name: str) -> dict[str, RegularizedConv2d]:
    """The convolutions, by name, that LinearConv replaces in a model; on the meta device."""
    with torch.device("meta"):
        model = _find(name)(RegularizedConv2d, in_channels=3, classes=10)
    return {n: m for n, m in model.named_modules() if isinstance(m, RegularizedConv2d)}


def matched_widths(name: str, alpha: float) -> Sequence[int]:
    """Widths of the plain chain with about the parameters of the -Lr model (variant e).

    The first width stays; each later layer gets the least width whose convolution, on the
    narrowed input, has at least the parameters of the LinearConv layer that it replaces.
    """
    build = _find(name)
    with torch.device("meta"):
        linear = build(conv_factory(Variant(linear=True, alpha=alpha)), in_channels=3, classes=10)
    layers = [m for m in linear.modules() if isinstance(m, LinearConv2d)]
    widths = [inspect.signature(build).parameters["widths"].default[0]]
    for layer in layers[1:]:
        target = sum(p.numel() for p in layer.parameters())
        per_filter = math.prod(layer.kernel_size) * widths[-1] + (layer.bias is not None)
        widths.append(math.ceil(target / per_filter))
    return widths


def _find(name: str) -> Callable[..., nn.Module]:
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}; choose from {', '.join(model_names())}")
    return _MODELS[name]
