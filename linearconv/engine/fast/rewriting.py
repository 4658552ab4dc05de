"""Temporarily replace a method of a model's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn


@contextmanager
def replaced(method: str, by: Callable[..., Any], modules: Iterable[nn.Module]) -> Iterator[None]:
    """Temporarily replace a method on modules by a function that takes the module first."""
    modules = list(modules)
    for module in modules:
        setattr(module, method, MethodType(by, module))
    try:
        yield
    finally:
        for module in modules:
            delattr(module, method)  # restores the class's method
