"""Fit primary filters and coefficients to the filters of a trained convolution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERATED = 30
"""Rounding errors by which the first filters may be worse than others."""
TOLERATED_ERROR = 1e-3
"""Relative error by which they may be worse at most: 30 rounding errors of bfloat16 are 23 %."""
LARGE = 100
"""A coefficient above this comes of stored filters that are nearly zero or nearly dependent. One
step of the optimiser changes these a thousandfold of what they are, and with them the outputs."""
CUTOFF = 1e-3
"""What such filters are then not used for: directions smaller than this share of the largest."""
REWEIGHTINGS = 15
"""Rounds in which the subspace of a rank-reduced fit is found."""


@dataclass(frozen=True)
class FilterFit:
    """F filters as P of them and combinations of these.

    Attributes:
        primary: (P,) indices of the primary filters, ascending; the others are the secondary ones,
            in ascending order too.
        factors: (A,) with A (P, S), or (A1, A2) with A1 (P, R) and A2 (R, S); float64.
        error: norm of what the combinations miss, relative to the norm of all filters.
        amplification: of rounding errors, by combinations that cancel: the norm of the sums of the
            terms' sizes, relative to the norm of all filters.
    """

    primary: Tensor
    factors: tuple[Tensor, ...]
    error: float
    amplification: float

    @property
    def primary_outputs(self) -> Tensor | None:
        """(F,) uint8, nonzero for the primary filters; None if they are the first ones."""
        if self.primary[-1] == len(self.primary) - 1:
            return None
        count = len(self.primary) + self.factors[-1].shape[1]
        marks = torch.zeros(count, dtype=torch.uint8, device=self.primary.device)
        # Not 1: averages of models (EMA) include buffers, and truncate 0.9999 of it to 0.
        marks[self.primary] = 255
        return marks


def fit_filters(weight: Tensor, primary: int, rank: int | None) -> FilterFit:
    """Choose primary filters that the others are well combined from, and fit the coefficients.

    The choices tried are the first filters, those that span best (QR with column pivoting) and,
    with a rank, all but those that a subspace of R dimensions holds best. The one with the least
    error counts, rounding included; the first filters if they are nearly as good in the weight's
    precision, since they need no permutation. Filters that are combinations of P of them are
    represented exactly; with a rank R near S, they are not always found.

    Args:
        weight: the filters (F, ...), real and finite.
        primary: P.
        rank: R, or None for a full A.

    Raises:
        ValueError: a weight is not finite, or on the meta device.
    """
    if weight.is_meta:
        raise ValueError("a warm start needs weights, got a convolution on the meta device")
    if not torch.isfinite(weight).all():
        raise ValueError("a warm start needs finite weights, got weights that are NaN or infinite")
    filters = weight.detach().double().flatten(1)
    # Coordinates in the span of the filters: the same geometry with at most F dimensions.
    filters = torch.linalg.qr(filters.t(), mode="r").R.t()
    fits = [_fit(filters, chosen, rank) for chosen in _choices(filters, primary, rank)]
    eps = torch.finfo(weight.dtype).eps
    errors = [fit.error + eps * fit.amplification for fit in fits]
    best = min(range(len(fits)), key=errors.__getitem__)
    tolerated = min(TOLERATED * eps, TOLERATED_ERROR)
    return fits[0] if errors[0] <= errors[best] + tolerated else fits[best]


def _choices(filters: Tensor, primary: int, rank: int | None) -> Iterator[Tensor]:
    """Sets of primary filters, each as ascending indices (P,)."""
    yield torch.arange(primary, device=filters.device)
    yield _pivots(filters, primary)
    if rank is not None:
        yield from _outside_a_subspace(filters, primary, rank)


def _pivots(filters: Tensor, count: int) -> Tensor:
    """QR with column pivoting: each next filter is the farthest from the span of those before."""
    rest = filters.clone()
    free = torch.ones(len(filters), dtype=torch.bool, device=filters.device)
    for _ in range(count):
        norms = rest.norm(dim=1).masked_fill(~free, -1.0)
        pivot = norms.argmax()
        free[pivot] = False
        direction = F.normalize(rest[pivot], dim=0)
        rest = rest - torch.outer(rest @ direction, direction)
    return (~free).nonzero().flatten()


def _outside_a_subspace(filters: Tensor, primary: int, rank: int) -> Iterator[Tensor]:
    """All filters but the S that lie closest to one subspace of R dimensions.

    Such S filters are the combinations of a rank-reduced layer. The subspace is that of the least
    sum of distances, which filters far from it hardly change, found by reweighting (the fast
    median subspace of Lerman and Maunu, 2018). It starts with all filters alike, and with those
    that depend most on the others: their leverage in the best span of P dimensions is low.
    """
    units = F.normalize(filters, dim=1)
    leverage = torch.linalg.svd(units, full_matrices=False).U[:, :primary].norm(dim=1)
    for distances in (torch.ones_like(leverage), leverage):
        for _ in range(REWEIGHTINGS):
            weighted = units / distances.clamp_min(1e-10)[:, None]
            subspace = torch.linalg.eigh(units.t() @ weighted).eigenvectors[:, -rank:]
            distances = (units - units @ subspace @ subspace.t()).norm(dim=1)
        yield distances.argsort()[len(filters) - primary :].sort().values


def _fit(filters: Tensor, primary: Tensor, rank: int | None) -> FilterFit:
    """Least squares; with a rank, the best A1 A2 (reduced-rank regression: an SVD of the fit)."""
    stored, generated = filters[primary], filters[_others(primary, len(filters))]
    coefficients = torch.linalg.pinv(stored.t()) @ generated.t()  # (P, S)
    if coefficients.abs().max() > LARGE:
        coefficients = torch.linalg.pinv(stored.t(), rtol=CUTOFF) @ generated.t()
    factors: tuple[Tensor, ...] = (coefficients,)
    if rank is not None:
        fit = coefficients.t() @ stored
        left = torch.linalg.svd(fit, full_matrices=False).U[:, :rank]  # (S, R)
        left = F.pad(left, (0, rank - left.shape[1]))
        factors = coefficients @ left, left.t()
        coefficients = factors[0] @ factors[1]
    missed = generated - coefficients.t() @ stored
    terms = coefficients.abs().t() @ stored.norm(dim=1)
    norms = torch.stack([missed.norm(), terms.norm()]) / filters.norm().clamp_min(1e-300)
    return FilterFit(primary, factors, *norms.tolist())


def _others(indices: Tensor, count: int) -> Tensor:
    """Those of 0 to count - 1 that are not in `indices`, ascending."""
    free = torch.ones(count, dtype=torch.bool, device=indices.device)
    free[indices] = False
    return free.nonzero().flatten()
