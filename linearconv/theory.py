"""Section 3.3 of the paper: how alpha affects the parameters and the span of the filters.

Symbols: f filters of size h x w x c (c the input channels of one group), alpha the share of
primary filters.
"""

from __future__ import annotations

from collections.abc import Iterable

from linearconv.layer import split_filters


def conv_parameters(f: int, h: int, w: int, c: int) -> int:
    """Parameters of a convolution without bias: p^C = f h w c."""
    return f * h * w * c


def linearconv_parameters(f: int, h: int, w: int, c: int, alpha: float) -> int:
    """Parameters of a LinearConv layer without bias: p^LC = alpha f h w c + alpha (1 - alpha) f^2.

    Raises:
        ValueError: alpha does not split the filters into whole numbers.
    """
    primary, secondary = split_filters(f, alpha)
    return primary * h * w * c + primary * secondary


def reduces_parameters(f: int, h: int, w: int, c: int, alpha: float) -> bool:
    """Condition (2): p^LC <= p^C exactly if alpha <= h w c / f."""
    return alpha * f <= h * w * c


def smallest_alpha(f: int, h: int, w: int, c: int, alphas: Iterable[float]) -> float:
    """Eq. (3): the alpha with the fewest parameters among the candidates.

    p^LC is concave in alpha, so its minimum over an interval is at an end; under condition (2)
    that is the smallest alpha.

    Raises:
        ValueError: no candidates, or one that does not split the filters into whole numbers.
    """
    return min(alphas, key=lambda alpha: linearconv_parameters(f, h, w, c, alpha))


def conv_span_bound(f: int, h: int, w: int, c: int) -> int:
    """Largest dimension of the span of a convolution's filters: min(h w c, f)."""
    return min(h * w * c, f)


def primary_span(f: int, h: int, w: int, c: int, alpha: float) -> int:
    """Eq. (4): dimension of the span of independent primary filters, min(h w c, alpha f)."""
    return min(h * w * c, split_filters(f, alpha)[0])


def secondary_span_bound(
    f: int, h: int, w: int, c: int, alpha: float, rank: int | None = None
) -> int:
    """Eq. (5): largest dimension of the secondary filters' span, min(h w c, P, S), and the rank."""
    primary, secondary = split_filters(f, alpha)
    bound = min(h * w * c, primary, secondary)
    return bound if rank is None else min(bound, rank)


def correlation_loss_bound(filters: int, size: int) -> float:
    """Least correlation loss of n filters in d dimensions: max(0, 2 (n - d), n^2/d - n).

    V V^T - I has trace 0 and, for n > d, at least n - d eigenvalues of -1, so that its eigenvalues
    sum to 2 (n - d) or more in absolute value, which the sum of its entries cannot be below. Also,
    the squared entries of V V^T sum to n^2/d or more (the Welch bound), and |c| >= c^2.
    Duplicates of an orthonormal basis attain the bound, for n <= 2 d and where d divides n:
    Algorithm 1 rewards equal filters, not an even spread.

    Args:
        filters: n.
        size: d = h w c, the values of a filter.
    """
    return max(0.0, 2.0 * (filters - size), filters * filters / size - filters)
