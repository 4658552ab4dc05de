"""What one convolution needs to stand in for another of a different class."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
"""The attributes of `torch.nn.Module` in which it keeps its hooks."""


def check_plain(conv: nn.Module) -> None:
    """Check that a module is the convolution with its parameters `weight` and `bias`, no more.

    Raises:
        ValueError: it does not, or it is not a 2-D convolution; the message says why.
    """
    kind = type(conv)
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{kind.__name__} is not a torch.nn.Conv2d")
    if set(conv._parameters) != {"weight", "bias"} or conv._buffers or conv._modules:
        raise ValueError(
            "it has parameters, buffers or modules of its own (pruning, weight norm, observers); "
            "first remove what they do (prune.remove, remove_weight_norm, "
            "parametrize.remove_parametrizations)"
        )
    expected = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if tuple(conv.weight.shape) != expected:
        raise ValueError(
            f"its weight was replaced: its shape is {tuple(conv.weight.shape)}, its attributes say "
            f"{expected}; set in_channels, out_channels and kernel_size to what it is"
        )
    for method in ("forward", "_conv_forward"):
        if is_overridden(conv, method, nn.Conv2d):
            raise ValueError(
                f"{kind.__name__} has a {method} of its own, so its output is not the convolution "
                "with its weight"
            )


def is_overridden(module: nn.Module, method: str, kind: type[nn.Module]) -> bool:
    """Whether a module, or its class, has another method than a class."""
    return method in vars(module) or getattr(type(module), method) is not getattr(kind, method)


def conv_arguments(conv: nn.Conv2d) -> tuple[Any, ...]:
    """The positional arguments that make a convolution of the same shape."""
    return (
        *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding),
        *(conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode),
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether anything watches or changes what goes through a module."""
    return any(getattr(module, name) for name in HOOKS if name != "_is_full_backward_hook")


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Temporarily take a module's hooks away."""
    kept = {name: getattr(module, name) for name in HOOKS}
    for name, hooks in kept.items():
        setattr(module, name, type(hooks)())
    try:
        yield
    finally:
        for name, hooks in kept.items():
            setattr(module, name, hooks)


def inherit(new: Module, old: nn.Module, *, handles: bool = False) -> Module:
    """Give a convolution the mode and the forward and backward hooks of another; returns it.

    Args:
        new: the module.
        old: the one that it stands in for.
        handles: the handles of the hooks now remove them from both; otherwise the hooks are
            copied, and both modules live on independently.
    """
    for name in HOOKS:
        hooks = getattr(old, name)
        setattr(new, name, hooks if handles else copy.copy(hooks))
    # What a padding_mode other than zeros pads: setting `padding` later does not change it.
    new._reversed_padding_repeated_twice = list(old._reversed_padding_repeated_twice)
    return new.train(old.training)
