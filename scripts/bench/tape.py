"""Emulate the effect of a CUDA graph on a training step, on any device.

A CUDA graph freezes a step: its operations in order, the addresses of their tensors and every
number that Python passed. `tape` does the same with the operations that PyTorch dispatches, so
that a step that would fail in a graph (a learning rate or a counter kept by Python, a reallocated
buffer, a wait for the device) also fails here, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item")
"""Operations whose result, or its size, the host must read."""

WORKLESS = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "lift_fresh"),
    *("_record_function_enter_new", "_record_function_exit"),
)
"""Allocations, views not declared as such, and profiler marks."""


class HostWait(RuntimeError):
    """An operation would make the host wait for the device, which cannot be captured."""


@dataclass(frozen=True)
class Operation:
    """One dispatched operation, with the tensors it was recorded with."""

    func: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]

    @property
    def name(self) -> str:
        """The name without namespace and overload: "convolution", "add_"."""
        return self.func.overloadpacket.__name__

    @property
    def computes(self) -> bool:
        """Whether it does any work: it is not a view, an allocation or a profiler mark."""
        views = any(a.alias_info and not a.alias_info.is_write for a in self.func._schema.arguments)
        return not views and self.name not in WORKLESS

    def replay(self) -> None:
        """Recompute from and into the same memory."""
        again = self.func(*self.args, **self.kwargs)
        if self.func._schema.is_mutable:
            return  # it has written into its arguments
        for result, new in zip(self.results, _tensors(again), strict=True):
            result.copy_(new)


@dataclass
class Tape:
    """A recorded step; calling it replays the step."""

    operations: list[Operation] = field(default_factory=list)

    def __call__(self) -> None:
        """Replay all operations in order, in the memory of the recording."""
        with torch.no_grad():
            for operation in self.operations:
                operation.replay()


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        _refuse_waits(func, args)
        results = func(*args, **kwargs)
        operation = Operation(func, args, kwargs, _tensors(results))
        if operation.computes:
            self.tape.operations.append(operation)
        return results


def tape(step: Callable[[], None]) -> Tape:
    """Run a step once and record it.

    Raises:
        HostWait: the step waits for the device.
    """
    recorded = Tape()
    with _Recorder(recorded):
        step()
    return recorded


def device_operations(step: Callable[[], None], parameters: list[torch.nn.Parameter]) -> int:
    """Number of operations that a device runs in one step, without views and allocations.

    Copies of gradients that recording itself causes are not counted either: autograd keeps a
    gradient without copying it if nothing else references it, but here the tape does.

    Args:
        step: a training step over `parameters` that leaves their gradients in `.grad`.
        parameters: the parameters.
    """
    recorded = tape(step)
    gradients = {p.grad.data_ptr() for p in parameters if p.grad is not None}

    def by_recording(operation: Operation) -> bool:
        if operation.name not in ("clone", "copy_"):
            return False
        source = operation.args[operation.name == "copy_"]
        (copy,) = operation.results
        # A copy into another layout would be made anyway.
        return copy.data_ptr() in gradients and copy.stride() == source.stride()

    return sum(not by_recording(operation) for operation in recorded.operations)


def _tensors(results: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]


def _refuse_waits(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> None:
    name = func.overloadpacket.__name__
    by_mask = name in ("index", "index_put_") and any(
        isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)
        for leaf in tree_leaves(args[1])
    )
    if name in WAITS or by_mask:
        raise HostWait(f"{func} would make the host wait for the device")
