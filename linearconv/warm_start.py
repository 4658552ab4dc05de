"""Fit primary filters and coefficients to the filters of a trained convolution.

A LinearConv layer of full rank is a factorisation: its F filters are [I; A^T] times the P primary
ones, a matrix of rank P, and any matrix of rank P has that form. So the best P primary filters are
no subset of the trained ones: the truncated SVD of the weight is (Eckart and Young, 1936), written
with P of its rows as the primary filters. With images the error of the outputs is what counts, and
the best are the principal components of the outputs (Zhang, Zou, He and Sun, 2016, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERATED = 30
"""Rounding errors by which the first filters may be worse than others."""
TOLERATED_ERROR = 1e-3
"""Relative error by which they may be worse at most: 30 rounding errors of bfloat16 are 23 %."""
CANCELLING = 3
"""How many times larger the terms of their combinations may be."""
LARGE = 100
"""A coefficient above this comes of stored filters that are nearly zero or nearly dependent. One
step of the optimiser changes these a thousandfold of what they are, and with them the outputs."""
CUTOFF = 1e-3
"""What such filters are then not used for: directions smaller than this share of the largest."""
REWEIGHTINGS = 15
"""Rounds in which the subspace of a rank-reduced fit is found."""
ITERATIONS = 3
"""Orthogonal iterations in each of them."""


@dataclass(frozen=True)
class Responses:
    """What a convolution gives on images, as far as an approximation of it depends on that.

    Attributes:
        moments: (F, F) of the outputs without the bias, float64: about their mean where `mean` is
            known, else about zero.
        mean: (F,) of the outputs with the bias, which takes up what approximated filters change of
            it; None for a convolution without a bias.
        scale: (F,) by what an output is multiplied behind the convolution; all one if unknown.
    """

    moments: Tensor
    mean: Tensor | None
    scale: Tensor


@dataclass(frozen=True)
class FilterFit:
    """F filters as P primary ones and combinations of these.

    Attributes:
        primary: (P,) indices of the outputs that the primary filters give, ascending; the others
            are the secondary ones, in ascending order too.
        filters: (P, ...) the primary filters, float64.
        factors: (A,) with A (P, S), or (A1, A2) with A1 (P, R) and A2 (R, S); float64.
        bias: (F,) the bias that keeps the mean outputs; None where it stays.
        error: norm of what is missed of all filters, or of all outputs on images, relative to
            theirs.
        amplification: of rounding errors, by combinations that cancel: the norm of the sums of the
            terms' sizes, relative to the norm of all filters.
    """

    primary: Tensor
    filters: Tensor
    factors: tuple[Tensor, ...]
    bias: Tensor | None
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


def fit_filters(
    weight: Tensor,
    primary: int,
    rank: int | None,
    *,
    bias: Tensor | None = None,
    responses: Responses | None = None,
) -> FilterFit:
    """The P primary filters and the coefficients that represent all filters best.

    Without a rank, or with one that restricts nothing, they are the best approximation of rank P;
    which of its rows are the primary filters matters for the size of the coefficients alone. With a
    rank R, the primary filters are trained ones: tried are the first, those that span best (QR with
    column pivoting) and all but those that a subspace of R dimensions holds best. The least error
    counts, rounding included; the first filters if they are nearly as good in the weight's
    precision, since they need no permutation. Filters that are combinations of P of them are
    represented exactly; with a rank R near S, they are not always found.

    Args:
        weight: the filters (F, ...), real and finite.
        primary: P.
        rank: R, or None for a full A.
        bias: (F,) of the convolution.
        responses: its outputs on images, whose error is to be least; None: that of the weight.

    Raises:
        ValueError: a weight is not finite, or on the meta device.
    """
    if weight.is_meta:
        raise ValueError("a warm start needs weights, got a convolution on the meta device")
    if not torch.isfinite(weight).all():
        raise ValueError("a warm start needs finite weights, got weights that are NaN or infinite")
    filters = weight.detach().double().flatten(1)
    whole, scale = _coordinates(filters, responses)
    kept = torch.eye(len(whole), dtype=whole.dtype, device=whole.device)
    free = rank is None or rank >= min(primary, len(whole) - primary)  # any coefficients at all
    if free:
        best = torch.linalg.svd(whole, full_matrices=False).U[:, :primary]
        kept = best @ best.t()
    rows = kept @ whole
    choices = _choices(rows, primary, None if free else rank)
    fits = [_fit(whole, rows, chosen, rank) for chosen in choices]
    eps = torch.finfo(weight.dtype).eps
    errors = [fit.error + eps * fit.amplification for fit in fits]
    least = min(range(len(fits)), key=errors.__getitem__)
    tolerated = min(TOLERATED * eps, TOLERATED_ERROR)
    as_good = errors[0] <= errors[least] + tolerated
    if free:  # any P independent rows are exact: those count that are far from dependent
        as_good &= fits[0].amplification <= CANCELLING * fits[least].amplification
    found = fits[0] if as_good else fits[least]
    # Back from outputs that are multiplied by the scale to those of the convolution.
    kept = kept * scale / scale[:, None]
    first, *_, last = (*found.factors, found.factors[-1])
    secondary = _others(found.primary, len(filters))
    first = first * scale[found.primary][:, None]
    factors = (first / scale[secondary],) if rank is None else (first, last / scale[secondary])
    stored = kept[found.primary]
    return replace(
        found,
        filters=(stored @ filters).unflatten(1, weight.shape[1:]),
        factors=factors,
        bias=_bias(bias, responses, found.primary, stored, factors),
    )


def _coordinates(filters: Tensor, responses: Responses | None) -> tuple[Tensor, Tensor]:
    """Rows (F, D) with the geometry that counts, D at most F, and the outputs' scale (F,)."""
    if responses is None:
        return torch.linalg.qr(filters.t(), mode="r").R.t(), filters.new_ones(len(filters))
    scale = responses.scale
    values, vectors = torch.linalg.eigh(responses.moments * scale * scale[:, None])
    return vectors * values.clamp_min(0).sqrt(), scale


def _bias(
    bias: Tensor | None,
    responses: Responses | None,
    primary: Tensor,
    stored: Tensor,
    factors: tuple[Tensor, ...],
) -> Tensor | None:
    """The bias with which the mean outputs stay as they were."""
    if bias is None or responses is None or responses.mean is None:
        return None
    plain = responses.mean - bias.detach().double()
    means = torch.empty_like(plain)
    means[primary] = stored @ plain
    coefficients = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
    means[_others(primary, len(plain))] = coefficients.t() @ means[primary]
    return responses.mean - means


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
    that depend most on the others: their leverage in the best span of P dimensions is low. Each
    round refines the subspace before by orthogonal iteration, which needs no eigenvectors.
    """
    units = F.normalize(filters, dim=1)
    svd = torch.linalg.svd(units, full_matrices=False)
    leverage = svd.U[:, :primary].norm(dim=1)
    for distances in (torch.ones_like(leverage), leverage):
        subspace = svd.Vh[:rank].t()
        for _ in range(REWEIGHTINGS):
            weighted = units / distances.clamp_min(1e-10)[:, None]
            for _ in range(ITERATIONS):
                subspace = torch.linalg.qr(units.t() @ (weighted @ subspace)).Q
            distances = (units - units @ subspace @ subspace.t()).norm(dim=1)
        yield distances.argsort()[len(filters) - primary :].sort().values


def _fit(whole: Tensor, rows: Tensor, primary: Tensor, rank: int | None) -> FilterFit:
    """Least squares; with a rank, the best A1 A2 (reduced-rank regression: an SVD of the fit).

    Args:
        whole: what is to be represented (F, D).
        rows: what it is represented by (F, D): those of the primary filters are stored.
        primary: (P,) their indices.
        rank: R, or None.
    """
    others = _others(primary, len(rows))
    stored, generated = rows[primary], rows[others]
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
    missed = [whole[primary] - stored, whole[others] - coefficients.t() @ stored]
    terms = coefficients.abs().t() @ stored.norm(dim=1)
    norms = torch.stack([torch.cat(missed).norm(), terms.norm()]) / whole.norm().clamp_min(1e-300)
    return FilterFit(primary, stored, factors, None, *norms.tolist())


def _others(indices: Tensor, count: int) -> Tensor:
    """Those of 0 to count - 1 that are not in `indices`, ascending."""
    free = torch.ones(count, dtype=torch.bool, device=indices.device)
    free[indices] = False
    return free.nonzero().flatten()
