"""The registered architectures and `build_model`, which builds one as a variant."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn

from linearconv.errors import UserError
from linearconv.layer import nearest_alphas, split_filters
from linearconv.regularizer import RegularizedConv2d
from models.variants import Variant
from models.widths import Build, chain_widths, on_meta, uniform_widths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """A registered model.

    Attributes:
        build: see `register`.
        chain: its convolutions follow each other, one for each of its widths.
        multiple_of: what every width must be a multiple of.
        replaceable: LinearConv can take the place of its convolutions; False for systems that
            replace them by something of their own.
        baseline: the model whose trained weights it starts from, if any.
    """

    build: Build
    chain: bool = False
    multiple_of: int = 1
    replaceable: bool = True
    baseline: str | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The paper's widths."""
        return tuple(inspect.signature(self.build).parameters["widths"].default)


_MODELS: dict[str, Architecture] = {}


def register(name: str, **facts: object) -> Callable[[Build], Build]:
    """Make `build` known as model `name`; `facts` are attributes of `Architecture`.

    `build(conv, *, in_channels, classes, widths=...)` returns the network; `conv` has
    `torch.nn.Conv2d`'s signature, and the default of `widths` is the paper's.
    """

    def add(build: Build) -> Build:
        _MODELS[name] = Architecture(build, **facts)
        return build

    return add


def model_names() -> list[str]:
    """Names of all registered models, sorted."""
    return sorted(_MODELS)


def architecture(name: str) -> Architecture:
    """A registered model.

    Raises:
        UserError: there is none of this name; the choices are listed.
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}; choose from {', '.join(model_names())}")
    return _MODELS[name]


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
        UserError: unknown model, or one that cannot be built as this variant.
    """
    found = architecture(name)
    check_variant(name, variant)
    model = found.build(
        variant.conv, in_channels=in_channels, classes=classes, widths=widths_of(name, variant)
    )
    cut = [n for n, m in model.named_modules() if getattr(m, "rank", variant.rank) != variant.rank]
    if cut:
        log.info("rank %s is cut to what the layer allows in: %s", variant.rank, ", ".join(cut))
    return model


@cache  # the search builds some forty networks, and checking and building both ask
def widths_of(name: str, variant: Variant) -> Sequence[int]:
    """The widths with which a model is built as a variant: the paper's, or narrower for e.

    Raises:
        UserError: the model has no variant e.
    """
    found = architecture(name)
    if variant.widths == "model":
        return found.widths
    linear = Variant(linear=True, alpha=variant.alpha).conv
    if found.chain:
        return chain_widths(found.build, linear, found.widths)
    try:
        return uniform_widths(found.build, linear, found.widths, found.multiple_of)
    except ValueError as error:
        raise UserError(
            f"model={name} has no variant=e at alpha={variant.alpha:g}: {error}"
        ) from None


def check_variant(name: str, variant: Variant) -> None:
    """Refuse a variant that the model cannot be built as.

    Raises:
        UserError: an alpha that does not split some layer's filters into whole numbers (the layer
            and the nearest values that all layers allow are named), a model that is not made of
            replaceable convolutions, or one that has no variant e.
    """
    found = architecture(name)
    if not found.replaceable and variant != Variant(alpha=variant.alpha):
        raise UserError(
            f"model={name} exists as variant=Conv alone: it is a system to compare LinearConv "
            "with, and replaces the convolutions by layers of its own"
        )
    if variant.linear or variant.widths == "matched":
        _check_alpha(name, variant.alpha)
        widths_of(name, variant)


def replaced_convs(name: str) -> dict[str, RegularizedConv2d]:
    """The convolutions, by name, that LinearConv replaces in a model; on the meta device."""
    found = architecture(name)
    model = on_meta(found.build, RegularizedConv2d, found.widths)
    return {n: m for n, m in model.named_modules() if isinstance(m, RegularizedConv2d)}


def _check_alpha(name: str, alpha: float) -> None:
    filters = {n: conv.out_channels for n, conv in replaced_convs(name).items()}
    allowed = math.gcd(*filters.values())
    for layer, count in filters.items():
        try:
            split_filters(count, alpha)
        except ValueError:
            raise UserError(
                f"alpha={alpha:g} is not possible with model={name}: it does not split the {count} "
                f"filters of layer '{layer}' into whole primary and secondary filters; for all "
                f"layers, {nearest_alphas(alpha, allowed)}"
            ) from None
