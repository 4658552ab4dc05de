"""Adam as the paper uses it, and SGD, plain or fused."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from linearconv.layer import LinearConv2d

OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights are updated, apart from the learning rate.

    Attributes:
        name: "adam" (betas 0.9 and 0.999), which ignores the other settings, or "sgd".
        momentum: share of the previous update that is added to the next one, in [0, 1); no
            dampening.
        nesterov: Nesterov's momentum instead of the classical one.
        weight_decay: this multiple of a weight is added to its gradient.
        decay_coefficients: also of the coefficients of LinearConv layers. A secondary filter is a
            combination of primary ones, which are decayed: with both it would be decayed twice.
    """

    name: str = "adam"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_coefficients: bool = False


ADAM = OptimizerSettings()


class _Uncompiled:
    """Methods of torch's optimisers without the decorators that exclude them from torch.compile.

    Nothing is compiled here, and importing the compiler takes more than a second.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class _Adam(_Uncompiled, torch.optim.Adam):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class _SGD(_Uncompiled, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def build_optimizer(
    model: nn.Module, lr: float, settings: OptimizerSettings = ADAM, *, fused: bool
) -> Optimizer:
    """The optimiser of a model's parameters.

    Args:
        model: on its device, in its memory format.
        lr: initial learning rate.
        settings: see `OptimizerSettings`.
        fused: one operation updates all parameters that share their settings, and learning rate
            and step counts are on the device, so that a captured step sees them change. Equal up
            to rounding.
    """
    weight = next(model.parameters())
    on_cuda = weight.device.type == "cuda"  # whose kernels take only a float32 rate
    if fused:
        dtype = torch.float32 if on_cuda else weight.dtype
        rate = torch.tensor(lr, dtype=dtype, device=weight.device)
    else:
        rate = lr
    if settings.name == "sgd":
        return _SGD(
            _decay_groups(model, settings),
            lr=rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            fused=fused or None,
        )
    optimizer = _Adam(
        model.parameters(), lr=rate, fused=fused or None, capturable=fused and on_cuda
    )
    # The steps before a capture are eager on purpose: suppress the warning about it.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def _decay_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The parameters with and, if there are any, those without weight decay."""
    spared: set[nn.Parameter] = set()
    if settings.weight_decay > 0 and not settings.decay_coefficients:
        for layer in model.modules():
            if isinstance(layer, LinearConv2d):
                spared.update(layer.factors)
    groups = (
        ([p for p in model.parameters() if p not in spared], settings.weight_decay),
        ([p for p in model.parameters() if p in spared], 0.0),
    )
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate, in place if it is on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_state(optimizer: Optimizer, state: dict[int, Any]) -> None:
    """Load what an optimiser with the same settings, plain or fused, has kept of its steps.

    Args:
        optimizer: over the same parameters; keeps its own settings.
        state: the other's `state_dict()["state"]`.
    """
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": settings})
    for parameter, kept in optimizer.state.items():
        for key in kept.keys() - {"step"}:
            # Fused optimisers iterate in memory order, so both must have the same layout.
            kept[key] = torch.empty_like(parameter).copy_(kept[key])
