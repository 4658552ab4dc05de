"""The registered architectures and `build_model`, which builds one as a variant."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import nn

from linearconv.errors import UserError
from linearconv.layer import nearest_alphas, split_filters
from linearconv.regularizer import RegularizedConv2d
from models.variants import ConvFactory, Variant
from models.widths import Build, chain_widths, on_meta, scaled_widths, uniform_widths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """A registered model.

    Attributes:
        build: see `register`.
        chain: its convolutions follow each other, one for each of its widths.
        multiple_of: every width must be a multiple of it.
        replaceable: LinearConv can replace its convolutions; False for systems that replace them
            with layers of their own.
        baseline: the model whose trained weights it starts from, if any.
        file: the file that registers it.
    """

    build: Build
    chain: bool = False
    multiple_of: int = 1
    replaceable: bool = True
    baseline: str | None = None
    file: Path = Path()

    @property
    def widths(self) -> tuple[int, ...]:
        """The paper's widths; empty if the model has no argument for them."""
        return tuple(inspect.signature(self.build).parameters["widths"].default)


_MODELS: dict[str, Architecture] = {}


def register(name: str, **facts: object) -> Callable[[Build], Build]:
    """Register `build` as model `name`; `facts` are attributes of `Architecture`.

    `build(conv, *, in_channels, classes, widths=...)` returns the network; `conv` has
    `torch.nn.Conv2d`'s signature, and the default of `widths` is the paper's. Without `widths`,
    the model has no variant e.
    """

    def add(build: Build) -> Build:
        takes_widths = "widths" in inspect.signature(build).parameters
        file = Path(inspect.getsourcefile(build) or "")
        _MODELS[name] = Architecture(
            build if takes_widths else _of_fixed_widths(build), file=file, **facts
        )
        return build

    return add


def _of_fixed_widths(build: Build) -> Build:
    """A function with the argument `widths`, which it ignores."""

    def fixed(
        conv: ConvFactory, *, in_channels: int, classes: int, widths: Sequence[int] = ()
    ) -> nn.Module:
        return build(conv, in_channels=in_channels, classes=classes)

    return fixed


def model_names() -> list[str]:
    """Names of all registered models, sorted."""
    return sorted(_MODELS)


def architecture(name: str) -> Architecture:
    """A registered model.

    Raises:
        UserError: the name is unknown; the message lists the choices.
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}; choose from {', '.join(model_names())}")
    return _MODELS[name]


def build_model(name: str, variant: Variant, *, in_channels: int, classes: int) -> nn.Module:
    """Build a registered architecture as a variant; draws from torch's global generator.

    In layers that do not allow rank R, it is reduced to min(R, P, S), which is logged.

    Args:
        name: a registered model.
        variant: the layer that replaces its convolutions.
        in_channels: channels of the images.
        classes: number of outputs.

    Returns:
        (N, in_channels, 32, 32) -> (N, classes).

    Raises:
        UserError: the model is unknown or cannot be built as this variant.
    """
    found = architecture(name)
    check_variant(name, variant)
    model = found.build(
        variant.conv, in_channels=in_channels, classes=classes, widths=widths_of(name, variant)
    )
    rank = variant.rank
    reduced = [
        f"{name} ({module.rank})"
        for name, module in model.named_modules()
        if getattr(module, "rank", rank) != rank
    ]
    if reduced:
        log.info("rank %s is reduced to the largest allowed in: %s", rank, ", ".join(reduced))
    return model


@cache  # the search builds about 40 networks and is needed for both checking and building
def widths_of(name: str, variant: Variant) -> Sequence[int]:
    """The widths of a model built as a variant: the paper's, or narrower for variant e.

    Raises:
        UserError: the model has no variant e.
    """
    found, factor = architecture(name), variant.width_factor
    if factor == 1:
        return found.widths
    if not found.widths:
        what = f"variant.widths={variant.widths}" if factor else "variant=e"
        raise UserError(
            f"model={name} has no {what}: its function in {found.file.name} takes no widths, "
            "which that variant makes narrower (docs/extending.md)"
        )
    if factor is not None:
        return scaled_widths(found.widths, factor, found.multiple_of)
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
    """Check that a model can be built as a variant.

    Raises:
        UserError: alpha does not split some layer's filters into whole numbers (the message names
            the layer and the nearest values that all layers allow), the model's convolutions are
            not replaceable or it makes none with `conv`, it has no variant e, or groups and is to
            be a pair.
    """
    found = architecture(name)
    if not found.replaceable and variant != Variant(alpha=variant.alpha):
        raise UserError(
            f"model={name} exists only as variant=Conv: it is a comparison system that replaces "
            "the convolutions with layers of its own"
        )
    if variant == Variant(alpha=variant.alpha):
        return
    matched = variant.widths == "matched"  # whose alpha is that of the -Lr network
    convs = replaced_convs(name, found.widths if matched else widths_of(name, variant))
    if not convs and (variant.uses_alpha or variant.regularized):
        raise UserError(
            f"model={name} exists only as variant=Conv: its function in {found.file.name} never "
            "calls `conv`, which makes the convolutions that a variant changes (docs/extending.md)"
        )
    if variant.uses_alpha:
        _check_alpha(name, variant.alpha, convs)
    grouped = [layer for layer, conv in convs.items() if conv.groups > 1]
    if variant.pair and grouped:
        raise UserError(
            f"model={name} has no variant=pair: a 1x1 convolution would mix the groups of layer "
            f"'{grouped[0]}', which LinearConv does not"
        )
    widths_of(name, variant)


def replaced_convs(name: str, widths: Sequence[int]) -> dict[str, RegularizedConv2d]:
    """The convolutions, by name, that LinearConv replaces in a model; on the meta device."""
    model = on_meta(architecture(name).build, RegularizedConv2d, widths)
    return {n: m for n, m in model.named_modules() if isinstance(m, RegularizedConv2d)}


def _check_alpha(name: str, alpha: float, convs: dict[str, RegularizedConv2d]) -> None:
    filters = {n: conv.out_channels for n, conv in convs.items()}
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
