"""The correlation-based regularization loss (paper, section 3.1 and Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from linearconv.combine import plain_autograd, without_autocast
from linearconv.layer import is_channels_last


class RegularizedConv2d(nn.Conv2d):
    """A plain `torch.nn.Conv2d` whose filters take part in the correlation loss (variant -r)."""

    def regularized_filters(self) -> Tensor:
        """All filters (F, C/G, KH, KW)."""
        return self.weight


def correlation_matrix(weight: Tensor, *, centered: bool = False) -> Tensor:
    """Correlations between filters: (O, I, H, W) -> (O, O).

    Args:
        weight: the filters, any shape (O, ...).
        centered: False for the cosine of Algorithm 1; True subtracts each filter's mean first
            (Pearson's correlation), as the authors' released code does.
    """
    return _correlations(_rows(weight, centered))[0]


def _rows(weight: Tensor, centered: bool) -> Tensor:
    """The filters as rows: (O, I, H, W) -> (O, I * H * W)."""
    # Correlations do not depend on the order of a filter's values: memory order needs no copy.
    rows = (weight.permute(0, 2, 3, 1) if is_channels_last(weight) else weight).flatten(1)
    return rows - rows.mean(dim=1, keepdim=True) if centered else rows


def _correlations(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines (O, O) of the rows (O, D), and the inverse norms (O,); 0 for zero rows."""
    # Normalise the (O, O) products instead of the rows, to read the rows only once.
    products = rows @ rows.t()
    inverse = _inverse_norms(products.diagonal())
    return products * inverse * inverse[:, None], inverse


def _inverse_norms(squares: Tensor) -> Tensor:
    """Of rows with these squared norms (O,); 0 for zero rows, whose correlation is then 0."""
    return squares.masked_fill(squares < torch.finfo(squares.dtype).tiny, math.inf).rsqrt()


def correlation_loss(weight: Tensor, *, centered: bool = False) -> Tensor:
    """Sum of |V V^T - I| over all entries, V the normalised filters: (O, I, H, W) -> scalar.

    Lines 3 to 5 of Algorithm 1. A zero filter contributes 1 (its diagonal entry) and receives a
    zero gradient; in float32, filters of a norm below 1e-19 are zero, and from 1e19 on, which only
    training that diverges reaches, the loss is not a number.

    Autocast is disabled: the loss is computed in the weight's own precision, that of float16
    weights in float32. A sharded weight (a DTensor of FSDP2) is gathered first, as the loss
    needs pairs of all filters.

    Args:
        weight: the filters, any shape (O, ...).
        centered: see `correlation_matrix`.

    Raises:
        ValueError: the weight has less than two dimensions, as the flat shards of FSDP1.
    """
    if hasattr(weight, "full_tensor"):  # a DTensor, without the import of torch.distributed
        weight = weight.full_tensor()
    if weight.dim() < 2:
        raise ValueError(
            f"filters must have the shape (O, ...), got {tuple(weight.shape)}; under FSDP use "
            "torch.distributed.fsdp.fully_shard, whose parameters keep their shape"
        )
    if weight.dtype is torch.float16:  # in which the squares of usual norms over- and underflow
        weight = weight.float()
    with without_autocast(weight):
        rows = _rows(weight, centered)
        if plain_autograd(rows):
            return _CorrelationLoss.apply(rows)
        matrix, _ = _correlations(rows)
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return (matrix - identity).abs().sum()


class _CorrelationLoss(torch.autograd.Function):
    """sum |V V^T - I| of the rows (O, D), with its gradient in closed form: fewer operations.

    With the unit rows u_i and their correlations c_ij = u_i . u_j, the gradient by row i is
    2 (sum_j sign(c_ij) u_j - (sum_j |c_ij|) u_i) / |row i|, j != i; here the last sum includes
    the rounding error of c_ii = 1. Consists of differentiable operations, so it supports double
    backward.
    """

    @staticmethod
    def forward(ctx, rows):
        matrix, inverse = _correlations(rows)
        matrix.diagonal().sub_(1)
        sums = matrix.abs().sum(dim=1)
        signs = matrix.sgn()
        torch.neg(sums, out=signs.diagonal())
        ctx.save_for_backward(rows, signs, inverse)
        return sums.sum()

    @staticmethod
    def backward(ctx, grad):
        rows, signs, inverse = ctx.saved_tensors
        with without_autocast(rows):  # which a user may have around backward(), too
            if not torch.is_grad_enabled():
                return (signs * inverse * inverse[:, None]) @ rows * (2 * grad)
            # Double backward: the saved tensors have no graph. Of unit rows, whose products do not
            # overflow if torch differentiates them in half precision.
            inverse = _inverse_norms(rows.square().sum(dim=1))
            units = rows * inverse[:, None]
            signs = signs - signs.diagonal().diag()
            signs = signs - (signs * (units @ units.t())).sum(dim=1).diag()
            return (signs @ units) * inverse[:, None] * (2 * grad)


def regularized_filters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and filters of the layers of `model` that define `regularized_filters()`."""
    for name, module in model.named_modules():
        # Asks the class: wrappers (of torch.compile, of checkpointing) have the attributes of the
        # module within, which is counted itself.
        if hasattr(type(module), "regularized_filters"):
            yield name, module.regularized_filters()


def model_correlation_loss(model: nn.Module, *, centered: bool = False) -> Tensor:
    """Algorithm 1: the correlation loss summed over all layers of a model -> scalar.

    Args:
        model: any module; the layers that define `regularized_filters()` take part: LinearConv2d
            with its primary filters, RegularizedConv2d with all its filters.
        centered: see `correlation_matrix`.

    Raises:
        ValueError: no layer takes part, so the loss would silently be zero.
    """
    losses = [correlation_loss(w, centered=centered) for _, w in regularized_filters(model)]
    if not losses:
        raise ValueError(
            "no layer of this model takes part in the correlation loss: it has neither a "
            "LinearConv2d nor a RegularizedConv2d"
        )
    return torch.stack(losses).sum()
