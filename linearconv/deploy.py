"""Choose the fastest form of each LinearConv layer for inference, by measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from linearconv.convert import fuse, named_modules_of, replaced
from linearconv.layer import LinearConv2d
from linearconv.stand_in import without_hooks
from linearconv.table import aligned

ROUNDS = 5
"""Timings of each form, taken in turn."""


@dataclass(frozen=True)
class Time:
    """The time of one form.

    Attributes:
        ms: milliseconds, the median of the rounds.
        spread: half the range of the rounds.
    """

    ms: float
    spread: float

    def is_clearly_below(self, other: Time) -> bool:
        """Whether it is shorter beyond both spreads."""
        return self.ms + self.spread < other.ms - other.spread

    def cells(self) -> tuple[str, str]:
        """For a table."""
        return f"{self.ms:.3f}", f"{self.spread:.3f}"


@dataclass(frozen=True)
class DeployedLayer:
    """What `deploy` measured of one layer.

    Attributes:
        name: its name in the model; of a shared layer, its first name.
        input_shape: (N, C, H, W) of its input; None if the example does not reach the layer.
        fused: as one plain convolution; None if not measured.
        factored: with combined outputs; None if not measured (G > 1).
        choice: "factored" if that is clearly faster, else "fused".
    """

    name: str
    input_shape: tuple[int, ...] | None
    fused: Time | None
    factored: Time | None
    choice: str


@dataclass(frozen=True)
class Deployment:
    """The result of `deploy`; prints as a table.

    Attributes:
        model: the network for inference, in evaluation mode: each layer in its choice if that
            network is clearly faster than all fused, else all fused.
        layers: one entry for each LinearConv2d.
        fused: the network with all layers fused.
        mixed: the network with each layer in its choice; None if all are fused.
    """

    model: nn.Module
    layers: tuple[DeployedLayer, ...]
    fused: Time
    mixed: Time | None

    @property
    def is_mixed(self) -> bool:
        """Whether `model` has factored layers."""
        return self.mixed is not None and self.mixed.is_clearly_below(self.fused)

    def rows(self) -> list[dict[str, Any]]:
        """The layers as dicts, for a DataFrame or a file."""
        return [asdict(layer) for layer in self.layers]

    def __str__(self) -> str:
        """One line for each layer, one for the network, and what follows."""
        rows = [("layer", "input", "fused, ms", "+-", "factored, ms", "+-", "choice")]
        for layer in self.layers:
            shape = "not reached" if layer.input_shape is None else _by(layer.input_shape)
            times = (*_cells(layer.fused), *_cells(layer.factored))
            rows.append((layer.name or "(the model)", shape, *times, layer.choice))
        choice = "mixed" if self.is_mixed else "fused"
        rows.append(("the network", "", *_cells(self.fused), *_cells(self.mixed), choice))
        return f"{aligned(rows, left=(0, 1, 6))}\n{self._verdict()}"

    def _verdict(self) -> str:
        if self.mixed is None:
            return "all layers fused: none is clearly faster factored"
        ratio = f"{self.mixed.ms / self.fused.ms:.2f} of the time of all fused"
        if self.is_mixed:
            return f"each layer in its choice takes {ratio}"
        return f"all layers fused: each in its choice takes {ratio}, which is not clearly less"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _cells(time: Time | None) -> tuple[str, str]:
    return ("", "") if time is None else time.cells()


def deploy(
    model: nn.Module, example_input: Tensor | tuple[Any, ...], *, seconds: float = 0.1
) -> Deployment:
    """A copy for inference in which each LinearConv2d is fused, or factored where that is faster.

    Faster is what is so beyond the spread of the rounds, a layer as well as the whole network; else
    all are fused. Outputs are equal up to rounding. Every layer is timed alone on the input that it
    gets from the example, on the model's device and with torch's current number of threads; so give
    the batch and image size that you will use.

    Args:
        model: any module with LinearConv2d layers, on its device; it is not changed.
        example_input: the input, or a tuple of several, on the same device.
        seconds: time spent on each timing, of which there are ten for each layer.

    Raises:
        ValueError: there is no LinearConv2d; or as in `fuse`.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    names = named_modules_of(model, LinearConv2d)
    if not names:
        raise ValueError("the model has no LinearConv2d to deploy")
    fused = fuse(model).eval().requires_grad_(False)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    layers, plain = [], {}
    inputs = _copied(inputs)  # which a layer in place would change
    with torch.no_grad():  # not inference_mode: what a model caches would be of no use outside
        reached = _inputs_of_layers(model, inputs)
        for layer, found in named_modules_of(model, LinearConv2d).items():
            convolution = fused.get_submodule(found[0])
            times: dict[str, Time | None] = {"fused": None, "factored": None}
            choice = "fused"
            if layer in reached and layer.groups == 1:
                layer.execution = "factored"
                forms = {"fused": convolution, "factored": layer}
                # The input is what the layer's hooks have made of it.
                with without_hooks(convolution), without_hooks(layer):
                    times = _times(forms, (reached[layer],), seconds)
                if times["factored"].is_clearly_below(times["fused"]):
                    choice = "factored"
            if choice == "fused":
                plain[layer] = convolution
            shape = tuple(reached[layer].shape) if layer in reached else None
            layers.append(DeployedLayer(found[0], shape, times["fused"], times["factored"], choice))
        forms = {"fused": fused}
        if any(layer.choice == "factored" for layer in layers):
            forms["mixed"] = replaced(model, plain)
        whole = _times(forms, inputs, seconds)
    found = Deployment(fused, tuple(layers), whole["fused"], whole.get("mixed"))
    return replace(found, model=forms["mixed"]) if found.is_mixed else found


def _copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.clone() if isinstance(each, Tensor) else each for each in inputs)


def _inputs_of_layers(model: nn.Module, inputs: tuple[Any, ...]) -> dict[nn.Module, Tensor]:
    """The input of each LinearConv2d in one forward pass, of its first call."""
    found: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if layer not in found:
            (given,) = (*args, *kwargs.values())
            found[layer] = given.clone()  # an activation in place may overwrite it

    layers = named_modules_of(model, LinearConv2d)
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        model(*_copied(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _times(
    forms: dict[str, Callable[..., Any]], inputs: tuple[Any, ...], seconds: float
) -> dict[str, Time]:
    """The time of each form, from `ROUNDS` rounds in which each has its turn."""
    from torch.utils.benchmark import Timer  # slow to import, and needed here alone

    timers = {
        name: Timer(
            "form(*inputs)",
            globals={"form": form, "inputs": _copied(inputs)},
            num_threads=torch.get_num_threads(),
        )
        for name, form in forms.items()
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            times[name].append(1e3 * timer.blocked_autorange(min_run_time=seconds).median)
    return {
        name: Time(median(found), (max(found) - min(found)) / 2) for name, found in times.items()
    }
