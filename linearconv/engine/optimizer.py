"""Adam as the paper uses it, plain or fused."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class _Adam(torch.optim.Adam):
    """torch's Adam without the decorators that exclude it from torch.compile.

    Nothing is compiled here, and importing the compiler takes more than a second.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def adam(model: nn.Module, lr: float, *, fused: bool) -> torch.optim.Adam:
    """Adam over a model's parameters: betas 0.9 and 0.999, no weight decay.

    Args:
        model: on its device, in its memory format.
        lr: initial learning rate.
        fused: one operation updates all parameters, and learning rate and step counts are on the
            device, so that a captured step sees them change. Equal up to rounding.
    """
    if not fused:
        return _Adam(model.parameters(), lr=lr)
    weight = next(model.parameters())
    on_cuda = weight.device.type == "cuda"  # whose kernel takes only a float32 rate
    rate = torch.tensor(lr, dtype=torch.float32 if on_cuda else weight.dtype, device=weight.device)
    optimizer = _Adam(model.parameters(), lr=rate, fused=True, capturable=on_cuda)
    # The steps before a capture are eager on purpose: suppress the warning about it.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer


def set_lr(optimizer: torch.optim.Adam, lr: float) -> None:
    """Set the learning rate, in place if it is on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_state(optimizer: torch.optim.Adam, state: dict[int, Any]) -> None:
    """Load the step counts and running means of another Adam, plain or fused.

    Args:
        optimizer: over the same parameters; keeps its own settings.
        state: the other's `state_dict()["state"]`.
    """
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": settings})
    for parameter, means in optimizer.state.items():
        for key in ("exp_avg", "exp_avg_sq"):
            # Fused Adam iterates in memory order, so both must have the same layout.
            means[key] = torch.empty_like(parameter).copy_(means[key])
