"""Code shared by all figures: structure, style and rendering."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from configs.experiments import Cell
from linearconv.engine.files import atomic_write
from scripts.evidence.formats import lines_csv

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of one and two columns in print, in inches; one column is also for phones."""

LINE = {SINGLE: 46, DOUBLE: 100}
"""Letters of a heading that fit into a line, by width."""

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
    "figure.titlesize": 8,
    "figure.titleweight": "bold",
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
    "savefig.dpi": 150,  # of matrices that are shrunk, see `filters.py`
    "pdf.fonttype": 42,
    "svg.hashsalt": "linearconv",
}
# Without these, files would contain the date and the matplotlib version.
METADATA = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


@dataclass(frozen=True)
class Figure:
    """A figure of one recipe.

    Attributes:
        name: name of its files.
        heading: the network, the dataset, the recipe and the number of seeds, in the image.
        caption: what it shows, in a sentence or two.
        data: the numbers in it, one object for each line of its CSV; empty: it cannot be drawn.
        missing: names of the missing runs or files.
        draw: draws it in the width it is given, `SINGLE` or `DOUBLE`.
    """

    name: str
    heading: str
    caption: str
    data: list[dict[str, Any]]
    missing: list[str]
    draw: Callable[[float], Canvas]

    def render(self, kind: str, width: float = DOUBLE) -> bytes:
        """The figure as pdf or svg, `SINGLE` or `DOUBLE` wide; the same bytes each time."""
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.canvas(width).savefig(file, format=kind, metadata=METADATA[kind])
        return file.getvalue()

    @property
    def outcome(self) -> str:
        """One line: drawn or not, and what is missing."""
        lacks = f"; missing: {', '.join(self.missing)}" if self.missing else ""
        return f"{self.name}: {'drawn' if self.data else 'not drawn'}{lacks}"

    def write(self, folder: Path, *, pdf: bool = False) -> None:
        """Write it and its data; if it cannot be drawn, delete those of an earlier call."""
        images = {kind: folder / f"{self.name}.{kind}" for kind in ("svg", "pdf")}
        data = folder / "data" / f"{self.name}.csv"
        if not self.data:
            for path in (*images.values(), data):
                path.unlink(missing_ok=True)
            return
        for kind in ("svg", *["pdf"] * pdf):
            with atomic_write(images[kind]) as file:
                file.write(self.render(kind))
        with atomic_write(data) as file:
            file.write(lines_csv(self.data).encode())

    def canvas(self, width: float) -> Canvas:
        """The figure under its heading; to be called with `STYLE`."""
        canvas = self.draw(width)
        canvas.suptitle(textwrap.fill(self.heading, LINE[width]))
        return canvas


def cell_name(cell: Cell) -> str:
    """`cifar10-base-Lr`."""
    alpha = "" if cell.alpha is None else f"-a{cell.alpha:g}"
    return f"{cell.dataset}-{cell.model}-{cell.variant}{alpha}"


def in_a_row(width: float, panels: int) -> tuple[int, int]:
    """Rows and columns of panels: beside each other, or below each other in one column."""
    return (panels, 1) if width == SINGLE else (1, panels)


def seeds(numbers: Sequence[int]) -> str:
    """The numbers of seeds of several means: `n = 2` or `n = 1 to 3`."""
    low, high = min(numbers), max(numbers)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def legend_below(canvas: Canvas, handles: Sequence[Line2D], columns: int) -> Legend:
    """A legend below all panels, where it hides no point."""
    return canvas.legend(handles=handles, loc="outside lower center", ncols=columns)


def key(label: str, **style: Any) -> Line2D:
    """A legend entry."""
    return Line2D([], [], label=label, **{"linestyle": "none", "color": "#000000"} | style)
