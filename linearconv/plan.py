"""Which convolutions of a trained network to convert, and how far, for a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearconv.responses import as_images, measure_all
from linearconv.table import aligned
from linearconv.warm_start import Responses

STEPS = 16
"""Shares of primary filters that are considered in each layer: multiples of 1 / STEPS."""
COSTS = ("parameters", "macs")
FORMS = ("linear", "pair")


@dataclass(frozen=True)
class Planned:
    """What is planned for one convolution.

    Attributes:
        name: in the model.
        alpha: share of primary filters; None: it stays as it is.
        before: its cost, in what the budget counts.
        after: its cost then.
        kept: share of its output's energy that is kept.
    """

    name: str
    alpha: float | None
    before: int
    after: int
    kept: float


class Plan(dict[str, float]):
    """The share of primary filters of each convolution to convert, by name; to be edited.

    `convert(model, alpha=plan, ...)` applies it. Prints as a table.
    """

    def __init__(self, layers: Iterable[Planned], cost: str, whole: int) -> None:
        self.layers, self.cost, self.whole = tuple(layers), cost, whole
        super().__init__({each.name: each.alpha for each in self.layers if each.alpha is not None})

    def __str__(self) -> str:
        """One line for each convolution, and the sum, as it was planned."""
        rows = [("layer", "alpha", self.cost, "then", "of the output kept")]
        rows += [
            (
                each.name,
                "" if each.alpha is None else f"{each.alpha:g}",
                f"{each.before:,}",
                f"{each.after:,}",
                "" if each.alpha is None else f"{100 * each.kept:.1f} %",
            )
            for each in self.layers
        ]
        saved = sum(each.before - each.after for each in self.layers)
        share = f"{100 * (1 - saved / self.whole):.1f} % left"
        rows.append(("the whole network", "", f"{self.whole:,}", f"{self.whole - saved:,}", share))
        return aligned(rows, left=(0,))


@dataclass(frozen=True)
class _Option:
    alpha: float | None
    cost: int
    loss: float  # -log of the energy kept


def plan(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    budget: float,
    convolutions: Mapping[nn.Conv2d, str],
    *,
    cost: str = "parameters",
    form: str = "linear",
) -> Plan:
    """Choose layers and shares so that the network keeps at most a share of its cost.

    The product of the shares of energy that the layers keep is to be the largest (Zhang, Zou, He
    and Sun, 2016, section 3.4), each by itself in the trained network: for every layer its options
    on the lower hull of cost and loss, then always the step that loses least for what it saves.

    Args:
        model: the network.
        images: its input, some hundreds.
        budget: share of the network's cost to keep, in (0, 1).
        convolutions: those that may be converted, with their names; grouped ones stay.
        cost: "parameters", or "macs", the multiply-adds of an image with factored layers.
        form: what they become: "linear", LinearConv, or "pair", a convolution with P filters and a
            1x1 convolution.

    Raises:
        ValueError: an argument is out of range, or the budget cannot be reached.
    """
    if not 0.0 < budget < 1.0:
        raise ValueError(f"budget must be between 0 and 1, both excluded, got {budget}")
    for name, value, choices in (("cost", cost, COSTS), ("form", form, FORMS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    free = {conv: name for conv, name in convolutions.items() if conv.groups == 1}
    measured = measure_all(model, free, as_images(images))
    options = {
        conv: _hull(_options(conv, responses, positions, cost, form))
        for conv, (responses, positions) in measured.items()
    }
    whole = _whole_cost(model, measured, cost)
    chosen = {conv: 0 for conv in options}
    left = whole
    while left > budget * whole:
        steps = {
            conv: _slope(options[conv][index], options[conv][index + 1])
            for conv, index in chosen.items()
            if index + 1 < len(options[conv])
        }
        if not steps:
            raise ValueError(
                f"budget={budget:g} cannot be reached: with all layers as small as they get, "
                f"{left / whole:.2f} of the {cost} are left"
            )
        conv = min(steps, key=steps.__getitem__)
        index = chosen[conv]
        left -= options[conv][index].cost - options[conv][index + 1].cost
        chosen[conv] += 1
    layers = []
    for conv, index in chosen.items():
        first, option = options[conv][0], options[conv][index]
        kept = math.exp(-option.loss)
        layers.append(Planned(free[conv], option.alpha, first.cost, option.cost, kept))
    return Plan(layers, cost, whole)


def _options(
    conv: nn.Conv2d, responses: Responses, positions: int, cost: str, form: str
) -> Iterator[_Option]:
    """What can be made of a convolution; the first: nothing."""
    filters, values = conv.out_channels, conv.weight[0].numel()
    each = positions if cost == "macs" else 1
    yield _Option(None, filters * values * each, 0.0)
    energies = torch.linalg.eigvalsh(
        responses.moments * responses.scale * responses.scale[:, None]
    ).flip(0)
    shares = energies.clamp_min(0).cumsum(0) / energies.clamp_min(0).sum().clamp_min(1e-300)
    for primary in sorted({filters * step // STEPS for step in range(1, STEPS)} - {0}):
        combined = filters if form == "pair" else filters - primary
        option = _Option(
            primary / filters,
            (primary * values + primary * combined) * each,
            -math.log(max(shares[primary - 1].item(), 1e-12)),
        )
        if option.cost < filters * values * each:
            yield option


def _hull(options: Iterable[_Option]) -> list[_Option]:
    """The options of falling cost on the lower hull: each next loses more for what it saves."""
    hull: list[_Option] = []
    for option in sorted(options, key=lambda option: (-option.cost, option.loss)):
        while len(hull) > 1 and _slope(hull[-1], option) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(before: _Option, after: _Option) -> float:
    """Loss for each unit of cost that is saved."""
    return (after.loss - before.loss) / max(before.cost - after.cost, 1)


def _whole_cost(
    model: nn.Module, measured: Mapping[nn.Conv2d, tuple[Responses, int]], cost: str
) -> int:
    """The cost of the network: its parameters, or the multiply-adds of what can be converted."""
    if cost == "parameters":
        return sum(parameter.numel() for parameter in model.parameters())
    return sum(conv.weight.numel() * positions for conv, (_, positions) in measured.items())
