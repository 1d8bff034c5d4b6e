"""How figures look: colours, markers and axes that they share."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from sweeps.optima.records import CellOptimum
from sweeps.report.text import count_text, exact_text, lr_text

# Okabe and Ito, "Color Universal Design", 2008: told apart under all common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5B5B5B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#1f2933"
FAINT = "#8a94a0"
GRID = "#e6e9ed"
WARN = "#C0392B"
PIXELS_PER_INCH = 160

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": "#b4bcc6",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#5b6672",
    "ytick.color": "#5b6672",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.dpi": 100,
}


@dataclass(frozen=True, slots=True)
class Series:
    """The colour, marker and place of one line among several."""

    colour: str
    marker: str
    dodge: float  # factor on x that keeps points of several lines at one x apart


def series_of(values: Sequence[float]) -> dict[float, Series]:
    """Return a look for each distinct value, in ascending order."""
    distinct = sorted(set(values))
    middle = (len(distinct) - 1) / 2
    return {
        value: Series(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], 1.028 ** (i - middle))
        for i, value in enumerate(distinct)
    }


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style to the figures made within, and to nothing else."""
    with mpl.rc_context(STYLE):
        yield


def png(figure: Figure) -> bytes:
    """Return the figure as PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with styled():
        figure.set_dpi(PIXELS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]  # of matplotlib; savefig would draw twice
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        imsave(buffer, pixels, format="png", metadata={"Software": "powersweep"}, dpi=PIXELS_PER_INCH)
    return buffer.getvalue()


def lr_axis(axes: Axes, which: str, *, low: float, high: float, label: str | None = "learning rate") -> None:
    """Make one axis a log axis of LRs from low to high, ticked at round values, the more the shorter it is."""
    decades = math.log10(high / low)
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 1.2 else (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    _log_axis(axes, which, lr_text, label, subs)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)


def count_axis(axes: Axes, which: str, values: Sequence[float], *, label: str | None) -> None:
    """Make one axis a log axis of counts, ticked at the values themselves where they are few and apart."""
    _log_axis(axes, which, count_text, label, (1.0,))
    distinct = sorted(set(values))
    apart = all(b / a > 1.35 for a, b in itertools.pairwise(distinct))
    if 1 <= len(distinct) <= 8 and apart:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_locator(FixedLocator(distinct))


def _log_axis(axes: Axes, which: str, text: Any, label: str | None, subs: Sequence[float]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if label:
        axis.set_label_text(label)


def arrange(cells: Sequence[CellOptimum], *, columns: int = 4) -> list[list[CellOptimum | None]]:
    """Return cells in rows for small multiples: a row for each (parameters, batch), a column for each token count.

    Where the grid would be mostly empty, they follow one another instead, `columns` in a row.
    """
    ordered = sorted(cells, key=lambda c: (c.parameters, c.batch_tokens, c.tokens, c.key))
    rows = sorted({(c.parameters, c.batch_tokens) for c in ordered})
    tokens = sorted({c.tokens for c in ordered})
    place = {(c.parameters, c.batch_tokens, c.tokens): c for c in ordered}
    if len(place) == len(ordered) and len(place) >= 0.6 * len(rows) * len(tokens) and len(tokens) <= 8:
        return [[place.get((n, b, t)) for t in tokens] for n, b in rows]
    padded: list[CellOptimum | None] = [*ordered, *[None] * (-len(ordered) % min(columns, max(len(ordered), 1)))]
    width = min(columns, len(padded)) or 1
    return [padded[i : i + width] for i in range(0, len(padded), width)]


def panels(
    rows: Sequence[Sequence[CellOptimum | None]], *, unit: str, width: float, height: float, top: float = 0.6
) -> tuple[Figure, list[tuple[CellOptimum, Axes]]]:
    """Return a figure of small multiples, one for each cell, each titled by what makes its cell; sizes in inches."""
    across, down = len(rows[0]), len(rows)
    figure = Figure(figsize=(width * across + 0.6, height * down + top), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    filled = []
    many_sizes = len({c.parameters for row in rows for c in row if c}) > 1
    for row, line in zip(rows, grid, strict=True):
        for cell, axes in zip(row, line, strict=True):
            if cell is None:
                axes.set_axis_off()
                continue
            size = f", {count_text(cell.parameters)} parameters" if many_sizes else ""
            title = f"batch {exact_text(cell.batch_tokens)}, {count_text(cell.tokens)} {unit}s{size}"
            axes.set_title(title, fontsize=9.5)
            filled.append((cell, axes))
    return figure, filled
