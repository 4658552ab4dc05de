"""Choose the fastest form of each LinearConv layer for inference, by measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linearconv.convert import fuse, named_modules_of, replaced
from linearconv.layer import LinearConv2d
from linearconv.stand_in import without_hooks
from linearconv.table import aligned

ROUNDS = 3
"""Timings of each form, taken in turn; the least counts."""


@dataclass(frozen=True)
class DeployedLayer:
    """What `deploy` measured of one layer.

    Attributes:
        name: its name in the model; of a shared layer, its first name.
        input_shape: (N, C, H, W) of its input; None if the example does not reach the layer.
        fused_ms: milliseconds as one plain convolution; None if not measured.
        factored_ms: milliseconds with combined outputs; None if not measured (G > 1).
        choice: "fused" or "factored".
    """

    name: str
    input_shape: tuple[int, ...] | None
    fused_ms: float | None
    factored_ms: float | None
    choice: str


@dataclass(frozen=True)
class Deployment:
    """The result of `deploy`; prints as a table.

    Attributes:
        model: the network for inference, in evaluation mode.
        layers: one entry for each LinearConv2d.
        fused_ms: milliseconds of the network with all layers fused.
        deployed_ms: milliseconds of `model`.
    """

    model: nn.Module
    layers: tuple[DeployedLayer, ...]
    fused_ms: float
    deployed_ms: float

    def rows(self) -> list[dict[str, Any]]:
        """The layers as dicts, for a DataFrame or a file."""
        return [asdict(layer) for layer in self.layers]

    def __str__(self) -> str:
        """One line for each layer, and one for the network."""
        rows = [("layer", "input", "fused, ms", "factored, ms", "choice")]
        for layer in self.layers:
            shape = "not reached" if layer.input_shape is None else _by(layer.input_shape)
            times = (_ms(layer.fused_ms), _ms(layer.factored_ms))
            rows.append((layer.name or "(the model)", shape, *times, layer.choice))
        ratio = f"{self.deployed_ms / self.fused_ms:.2f} of all fused"
        rows.append(("the network", "", _ms(self.fused_ms), _ms(self.deployed_ms), ratio))
        return aligned(rows, left=(0, 1, 4))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def deploy(
    model: nn.Module, example_input: Tensor | tuple[Any, ...], *, seconds: float = 0.1
) -> Deployment:
    """A copy for inference in which each LinearConv2d is fused or factored, whichever is faster.

    Outputs are equal up to rounding. Every layer is timed alone on the input that it gets from the
    example, on the model's device and with torch's current number of threads; so give the batch
    and image size that you will use.

    Args:
        model: any module with LinearConv2d layers, on its device; it is not changed.
        example_input: the input, or a tuple of several, on the same device.
        seconds: time spent on each timing, of which there are six for each layer.

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
            times, choice = {"fused": None, "factored": None}, "fused"
            if layer in reached and layer.groups == 1:
                layer.execution = "factored"
                forms = {"fused": convolution, "factored": layer}
                # The input is what the layer's hooks have made of it.
                with without_hooks(convolution), without_hooks(layer):
                    times = _milliseconds(forms, (reached[layer],), seconds)
                choice = min(times, key=times.__getitem__)
            if choice == "fused":
                plain[layer] = convolution
            shape = tuple(reached[layer].shape) if layer in reached else None
            layers.append(DeployedLayer(found[0], shape, times["fused"], times["factored"], choice))
        model = replaced(model, plain)
        whole = _milliseconds({"fused": fused, "deployed": model}, inputs, seconds)
    return Deployment(model, tuple(layers), whole["fused"], whole["deployed"])


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


def _milliseconds(
    forms: dict[str, Callable[..., Any]], inputs: tuple[Any, ...], seconds: float
) -> dict[str, Any]:
    """The least median of `ROUNDS` timings of each form."""
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
    return {name: min(found) for name, found in times.items()}
