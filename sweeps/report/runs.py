"""Curves: the loss of every run over tokens, coloured by its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from sweeps.curves import Curve
from sweeps.optima.records import CellOptimum
from sweeps.report.data import LawReport
from sweeps.report.look import WARN, arrange, count_axis, panels, styled
from sweeps.report.text import lr_text

# Viridis without its palest end: told apart by colour-blind readers, visible on white.
LR_COLOURS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#c2df23")


def draw_curves(
    report: LawReport, curves: Mapping[str, Curve], *, unit: str = "token", metric: str = "validation/loss"
) -> Figure:
    """Return the figure: a panel a cell, a line a run, coloured by LR; runs that diverged end in a cross."""
    with styled():
        cells = [*report.cells, *([report.held_out] if report.held_out is not None else [])]
        figure, filled = panels(arrange(cells) or [[None]], unit=unit, width=3.1, height=2.3)
        colours = LinearSegmentedColormap.from_list("lr", LR_COLOURS)
        lrs = [r.lr for cell in cells for r in cell.results] or [1e-3]
        norm = LogNorm(min(lrs), max(lrs) * 1.0001)
        for cell, axes in filled:
            _cell(axes, cell, curves, colours=colours, norm=norm, metric=metric)
            if cell is report.held_out:
                axes.set_title(f"held out: {axes.get_title(loc='left')}", fontsize=9.5)
        figure.supxlabel(f"training {unit}s", fontsize=10)
        figure.supylabel(metric.replace("/", " "), fontsize=10)
        if filled:
            _colour_bar(figure, ScalarMappable(norm, colours), [axes for _, axes in filled])
    return figure


def _colour_bar(figure: Figure, colours: ScalarMappable, beside: list[Axes]) -> None:
    bar = figure.colorbar(colours, ax=beside, label="learning rate", aspect=40)
    bar.ax.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: lr_text(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)


def _cell(
    axes: Axes, cell: CellOptimum, curves: Mapping[str, Curve], *, colours: Colormap, norm: LogNorm, metric: str
) -> None:
    lines = []
    for result in sorted(cell.results, key=lambda r: (r.lr, r.seed)):
        tokens, loss = curves.get(result.key, Curve()).until(cell.tokens).present(metric)
        finite = np.isfinite(loss)
        if finite.any():
            lines.append((result, tokens[finite], loss[finite]))
    if not lines:
        return
    low, high = _span([loss for result, _, loss in lines if result.outcome != "diverged"] or [lines[0][2]])
    axes.set_ylim(low, high)
    best = min((r.lr for r, _, _ in lines), key=lambda lr: abs(math.log(lr / (cell.optimum.lr or lr))))
    for result, tokens, loss in lines:
        width = 2.0 if result.lr == best else 1.1
        axes.plot(tokens, loss, color=colours(norm(result.lr)), linewidth=width, alpha=0.85)
        if result.outcome == "diverged":
            end = min(float(loss[-1]), high)
            axes.plot(tokens[-1], end, "x", color=WARN, markersize=6, markeredgewidth=1.6, clip_on=False, zorder=5)
    first = min(int(tokens[0]) for _, tokens, _ in lines)
    count_axis(axes, "x", [], label=None)
    axes.set_xlim(max(first, cell.tokens / 256) / 1.1, cell.tokens * 1.08)
    axes.set_xticks([cell.tokens / 4**k for k in range(4) if cell.tokens / 4**k >= first])


def _span(losses: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Return the limits of the loss axis: all of the curves, but no spike far above where they began."""
    low = min(float(loss.min()) for loss in losses)
    start = float(np.median([loss[0] for loss in losses]))
    high = min(max(float(loss.max()) for loss in losses), low + 2.5 * (start - low)) if start > low else start
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 1.0
    return low - margin, high + margin
