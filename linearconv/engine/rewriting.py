"""Another way for some modules of a network to compute the same, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn


@contextmanager
def replaced(method: str, by: Callable[..., Any], modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, a method of some modules is another function, called with the module first."""
    modules = list(modules)
    for module in modules:
        setattr(module, method, MethodType(by, module))
    try:
        yield
    finally:
        for module in modules:
            delattr(module, method)  # which uncovers the class's own
