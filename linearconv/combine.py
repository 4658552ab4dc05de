"""Append S linear combinations of P columns to them: the core operation of LinearConv.

Secondary filters are combinations of primary filters (generate), secondary outputs the same
combinations of primary outputs (factored). Both are [Y, Y A] for a matrix Y with P columns.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def append_combinations(
    columns: Tensor, factors: tuple[Tensor, ...], bias: Tensor | None
) -> Tensor:
    """[Y, Y A] + bias: (M, P) -> (M, P + S).

    Args:
        columns: Y (M, P), row-major or column-major; the result has the same order.
        factors: (A,) with A (P, S), or (A1, A2) with A1 (P, R) and A2 (R, S), A = A1 A2.
        bias: (P + S,) or None.
    """
    if plain_autograd(columns):
        first, last = (None, *factors)[-2:]
        return _AppendCombinations.apply(columns, first, last, bias)
    secondary = columns
    for factor in factors:
        secondary = secondary @ factor
    joined = torch.cat([columns, secondary], dim=1)
    return joined if bias is None else joined + bias


def plain_autograd(tensor: Tensor) -> bool:
    """Whether only autograd is active: no compiler, tracer or function transform.

    Those support plain formulas, but not the in-place operations of the autograd functions here
    and in `regularizer.py`.
    """
    return (
        isinstance(tensor, Tensor)
        and not tensor.is_complex()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Temporarily disable autocast on `tensor`'s device."""
    # Entered only if autocast is enabled, to keep it out of traced and exported graphs.
    if not isinstance(tensor, Tensor):  # a proxy of torch.fx
        return nullcontext()
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # which raises for "meta"
        return nullcontext()
    return torch.autocast(kind, enabled=False)


class _AppendCombinations(torch.autograd.Function):
    """The formula without extra copies: both parts are written into one buffer.

    The backward pass consists of differentiable operations, so it supports double backward. Under
    autocast, too, it computes in the precision of the forward pass.
    """

    @staticmethod
    def forward(ctx, columns, first, last, bias):
        rows, primary = columns.shape
        filters = primary + last.shape[1]
        if _column_major(columns):
            joined = columns.new_empty(filters, rows).t()
        else:
            joined = columns.new_empty(rows, filters)
        reduced = columns if first is None else columns @ first
        if bias is None:
            joined[:, :primary].copy_(columns)
            torch.mm(reduced, last, out=joined[:, primary:])
        else:
            torch.add(columns, bias[:primary], out=joined[:, :primary])
            torch.addmm(bias[primary:], reduced, last, out=joined[:, primary:])
        ctx.save_for_backward(columns, first, last, reduced)
        return joined

    @staticmethod
    def backward(ctx, grad):
        with without_autocast(grad):
            return _gradients(ctx, grad)


def _gradients(ctx, grad):
    """By the four inputs of `_AppendCombinations`; None for those that need none."""
    columns, first, last, reduced = ctx.saved_tensors
    needs = ctx.needs_input_grad
    primary = columns.shape[1]
    of_primary, of_secondary = grad[:, :primary], grad[:, primary:]
    of_reduced, factor, of_first = of_secondary, last, None
    if first is not None:
        if torch.is_grad_enabled():  # double backward: the saved tensor has no graph
            reduced = columns @ first
        of_reduced, factor = of_secondary @ last.t(), first
        of_first = columns.t() @ of_reduced if needs[1] else None
    of_columns = None
    if needs[0]:
        # Use the layout of the columns, or the gradient would be copied into it.
        if _column_major(columns):
            of_columns = torch.addmm(of_primary.t(), factor, of_reduced.t()).t()
        else:
            of_columns = torch.addmm(of_primary, of_reduced, factor.t())
    of_last = reduced.t() @ of_secondary if needs[2] else None
    of_bias = grad.sum(dim=0) if needs[3] else None
    return of_columns, of_first, of_last, of_bias


def _column_major(matrix: Tensor) -> bool:
    return matrix.stride(0) == 1 and matrix.shape[1] > 1
