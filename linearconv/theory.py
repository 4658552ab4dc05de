"""A lower bound of the correlation loss; the formulas of section 3.3 are in its tests."""

from __future__ import annotations


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
