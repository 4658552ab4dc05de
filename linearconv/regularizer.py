"""The correlation-based regularization loss (paper, section 3.1 and Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from linearconv.layer import is_channels_last, without_autocast


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
    # Correlations do not depend on the order of a filter's values: memory order needs no copy.
    flat = (weight.permute(0, 2, 3, 1) if is_channels_last(weight) else weight).flatten(1)
    if centered:
        flat = flat - flat.mean(dim=1, keepdim=True)
    # Normalise the (O, O) products instead of the filters, to read the filters only once.
    products = flat @ flat.t()
    squares = products.diagonal()
    # Give zero filters an infinite norm, so that their correlation and gradient are 0.
    norms = squares.masked_fill(squares < torch.finfo(flat.dtype).tiny, math.inf).sqrt()
    return products / norms / norms[:, None]


def correlation_loss(weight: Tensor, *, centered: bool = False) -> Tensor:
    """Sum of |V V^T - I| over all entries, V the normalised filters: (O, I, H, W) -> scalar.

    Lines 3 to 5 of Algorithm 1. A zero filter contributes 1 (its diagonal entry) and receives a
    zero gradient. Autocast is disabled: the loss is computed in the weight's own precision.

    Args:
        weight: the filters, any shape (O, ...).
        centered: see `correlation_matrix`.
    """
    with without_autocast(weight):
        matrix = correlation_matrix(weight, centered=centered)
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return (matrix - identity).abs().sum()


def regularized_filters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and filters of the layers of `model` that define `regularized_filters()`."""
    for name, module in model.named_modules():
        if hasattr(module, "regularized_filters"):
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
