"""Basins: the final loss of each cell over the learning rate, with its fitted minimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sweeps.laws.records import Prediction
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.report.data import LawReport
from sweeps.report.look import COLOURS, FAINT, INK, WARN, arrange, lr_axis, panels, styled
from sweeps.report.text import interval_text, lr_text

BLUE, ORANGE = COLOURS[0], COLOURS[1]
FEW = 3  # LRs
KEPT_ABOVE = 3.0  # the picture ends this many times above the basin's usual depth; what is higher is drawn at its top


def draw_basins(report: LawReport, *, unit: str = "token", metric: str = "validation/loss") -> Figure:
    """Return the figure: a panel a cell, seeds as points, their mean, the fit, the optimum with its interval."""
    with styled():
        cells = [*report.cells, *([report.held_out] if report.held_out is not None else [])]
        figure, filled = panels(arrange(cells) or [[None]], unit=unit, width=3.1, height=2.3, top=0.9)
        lrs = [r.lr for cell, _ in filled for r in cell.results]
        for cell, axes in filled:
            if lrs:
                lr_axis(axes, "x", low=min(lrs) / 1.3, high=max(lrs) * 1.3, label=None)
            _basin(axes, cell)
            if cell is report.held_out and report.verdict is not None:
                _predicted(axes, report.verdict.predicted)
                axes.set_title(f"held out: {axes.get_title(loc='left')}", fontsize=9.5)
        figure.supxlabel("learning rate", fontsize=10)
        figure.supylabel(f"final {metric.replace('/', ' ')}", fontsize=10)
        _legend(figure, report)
    return figure


def _basin(axes: Axes, cell: CellOptimum) -> None:
    ended = [(r.lr, r.loss) for r in cell.results if r.loss is not None]
    means = {lr: float(np.mean([y for x, y in ended if x == lr])) for lr in sorted({x for x, _ in ended})}
    low, high = _span([*[y for _, y in ended], *_fitted_where_few(cell.optimum, means)])
    axes.set_ylim(low, high)
    inside = [(x, y) for x, y in ended if y <= high]
    axes.plot(*_columns(inside), "o", color=BLUE, alpha=0.35, markersize=4, markeredgewidth=0, zorder=3)
    kept = [(x, y) for x, y in means.items() if y <= high]
    axes.plot(*_columns(kept), "o", color=BLUE, markersize=5.5, markeredgecolor="white", zorder=4)
    top = axes.get_xaxis_transform()
    above = sorted({x for x, y in ended if y > high} - {x for x, _ in inside})
    axes.plot(above, [0.95] * len(above), "^", color=BLUE, alpha=0.6, markersize=5.5, transform=top, zorder=4)
    lost = sorted({r.lr for r in cell.results if r.outcome == "diverged"})
    axes.plot(lost, [0.95] * len(lost), "x", color=WARN, markersize=6.5, markeredgewidth=1.8, transform=top, zorder=5)
    _fit(axes, cell.optimum)


def _fitted_where_few(optimum: Optimum, means: Mapping[float, float]) -> list[float]:
    """Return heights of the fit across its window, where the losses of a cell do not show a basin of their own."""
    if len(means) >= FEW or not optimum.basin or optimum.window is None:
        return []
    return [optimum.fitted(float(lr)) for lr in np.geomspace(*optimum.window, 7)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _span(losses: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the loss axis: the basin, not the losses far above it."""
    if not losses:
        return 0.0, 1.0
    best = min(losses)
    usual = float(np.quantile(losses, 0.6)) - best
    height = min(max(losses) - best, KEPT_ABOVE * usual) or 1e-3 * abs(best) or 1.0
    return best - 0.42 * height, best + 1.22 * height


def _fit(axes: Axes, optimum: Optimum) -> None:
    """Draw the fitted basin over its window, and the optimum with its interval; or say why there is none."""
    if optimum.basin and optimum.window is not None:
        lrs = np.geomspace(*optimum.window, 120)
        fitted = [optimum.fitted(float(lr)) for lr in lrs]
        axes.plot(lrs, fitted, color=INK, linewidth=1.2, alpha=0.75, zorder=2)
    paper = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0}
    place: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8.5, "va": "bottom", "bbox": paper}
    if optimum.censored is not None or optimum.lr is None:
        place.pop("bbox")
        axes.text(0.03, 0.035, f"censored: {optimum.censored or 'no trial ended'}", color=WARN, **place)
        axes.set_facecolor("#fdf6f4")
        return
    axes.axvline(optimum.lr, color=ORANGE, linewidth=1.1, linestyle=(0, (3, 2)), zorder=1)
    bottom = axes.get_xaxis_transform()
    if optimum.low is not None and optimum.high is not None:
        bar = [optimum.low, optimum.high]
        axes.plot(bar, [0.2, 0.2], color=ORANGE, linewidth=2.2, transform=bottom, zorder=5)
        axes.plot(bar, [0.2, 0.2], "|", color=ORANGE, markersize=8, markeredgewidth=1.8, transform=bottom, zorder=5)
    axes.plot(optimum.lr, 0.2, "D", color=ORANGE, markersize=5.5, markeredgecolor="white", transform=bottom, zorder=6)
    axes.text(0.03, 0.035, f"{lr_text(optimum.lr)}  {interval_text(optimum.low, optimum.high)}", color=ORANGE, **place)


def _predicted(axes: Axes, predicted: Prediction) -> None:
    axes.axvspan(predicted.low, predicted.high, color=COLOURS[2], alpha=0.16, linewidth=0, zorder=0)
    axes.axvline(predicted.lr, color=COLOURS[2], linewidth=1.4, zorder=1)


def _legend(figure: Figure, report: LawReport) -> None:
    dot: dict[str, Any] = {"color": "none", "marker": "o", "markerfacecolor": BLUE}
    entries: list[tuple[Line2D | Patch, str]] = [
        (Line2D([], [], markersize=4.5, markeredgewidth=0, alpha=0.4, **dot), "a seed"),
        (Line2D([], [], markersize=6, markeredgecolor="white", **dot), "mean"),
        (Line2D([], [], color=INK, linewidth=1.2, alpha=0.75), "fit"),
        (Line2D([], [], color=ORANGE, marker="D", markersize=5.5, linewidth=2.2), "optimum, with its interval"),
        (Line2D([], [], color="none", marker="x", markeredgecolor=WARN, markeredgewidth=1.8), "diverged"),
        (Line2D([], [], color="none", marker="^", markerfacecolor=FAINT, markeredgecolor=FAINT), "above the picture"),
    ]
    if report.held_out is not None and report.verdict is not None:
        entries.append((Patch(color=COLOURS[2], alpha=0.3), "predicted by the law"))
    columns = len(entries) if figure.get_figwidth() > 9 else 3
    figure.legend(*zip(*entries, strict=True), loc="outside upper center", ncols=columns, handlelength=1.6)
