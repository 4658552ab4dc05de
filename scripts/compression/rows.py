"""The comparison of a network with its compressed forms."""

from __future__ import annotations

from dataclasses import dataclass

from linearconv.table import aligned

PEERS = ("low-rank pair", "pruned")
"""What a converted network is compared with."""


@dataclass(frozen=True)
class Row:
    """One network of the comparison.

    Attributes:
        name: what was done.
        parameters: number of stored parameters.
        macs: multiply-adds for one image; LinearConv layers are counted as factored ones, whether
            or not they are executed so.
        accuracy: percentage of the test images.
        latency: median milliseconds of a batch; None if not timed.
    """

    name: str
    parameters: int
    macs: float
    accuracy: float
    latency: float | None = None

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        latency = "" if self.latency is None else f"{self.latency:.1f}"
        counts = (f"{self.parameters:,}", f"{self.macs / 1e6:,.1f}")
        return (self.name, *counts, f"{self.accuracy:.2f}", latency)


def comparison(rows: list[Row], images: int) -> str:
    """The rows as a table; `images` is the size of the batch that was timed."""
    header = ("network", "parameters", "MMACs", "accuracy, %", f"ms for {images} images")
    return aligned([header, *(row.cells() for row in rows)], left=(0,))


def verdict(rows: list[Row]) -> list[str]:
    """One sentence on what was saved, for which loss, and what others of that size lose."""
    named = {row.name.split(",")[0]: row for row in rows if row.latency is not None}
    if not {"plain", "converted"} <= set(named):
        return []
    plain, converted = named["plain"], named["converted"]
    saved = 100 * (1 - converted.parameters / plain.parameters)
    text = (
        f"saves {saved:.0f} % of the parameters for "
        f"{plain.accuracy - converted.accuracy:.1f} points of accuracy"
    )
    for name in PEERS:
        if peer := named.get(name):
            saved = 100 * (1 - peer.parameters / plain.parameters)
            text += f"; {name}: {saved:.0f} % for {plain.accuracy - peer.accuracy:.1f}"
    return [f"{text} (against the plain network, trained for as long)"]
