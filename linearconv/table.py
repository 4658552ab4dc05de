"""Tables of text for reports."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    """Rows of cells as lines with aligned columns.

    Args:
        rows: equally many cells each; the first row is the header.
        left: the columns that are aligned to the left; the others are to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, c, w in cells]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
