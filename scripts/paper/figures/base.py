"""Code shared by all figures: structure, style and rendering."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from configs.experiments import Cell

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of one and two columns in print, in inches."""

COLORS = {
    "Conv": "#000000",
    "r": "#E69F00",
    "e": "#56B4E9",
    "L": "#009E73",
    "Lr": "#0072B2",
    "LRr": "#D55E00",
}
"""By variant, from the colour-blind-safe palette of Okabe and Ito."""
MARKERS = {"Conv": "o", "r": "P", "e": "X", "L": "D", "Lr": "s", "LRr": "^"}

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so the same everywhere
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "linearconv",
}
# Without these, files would contain the date and the matplotlib version.
METADATA = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class Figure:
    """A figure of one recipe.

    Attributes:
        name: name of its files.
        caption: what it shows, in a sentence or two.
        data: the numbers in it, one object for each line of its CSV; empty: it cannot be drawn.
        missing: names of the missing runs or files.
        draw: draws it.
    """

    name: str
    caption: str
    data: list[dict[str, Any]]
    missing: list[str]
    draw: Callable[[], Canvas]

    def render(self, kind: str) -> bytes:
        """The figure as pdf, png or svg; the same bytes each time."""
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.draw().savefig(file, format=kind, metadata=METADATA[kind])
        return file.getvalue()


def cell_name(cell: Cell) -> str:
    """`cifar10-base-Lr`."""
    alpha = "" if cell.alpha is None else f"-a{cell.alpha:g}"
    return f"{cell.dataset}-{cell.model}-{cell.variant}{alpha}"


def key(label: str, **style: Any) -> Line2D:
    """A legend entry."""
    return Line2D([], [], label=label, **{"linestyle": "none", "color": "#000000"} | style)
