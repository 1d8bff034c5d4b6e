"""The picture of a law: the best LR over tokens, a line with its band for each batch size, and the held-out point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from sweeps.errors import ReachError
from sweeps.laws.law import Law
from sweeps.laws.records import Prediction, Verdict
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.report.data import LawReport
from sweeps.report.frame import heading, legend
from sweeps.report.look import FAINT, INK, Series, count_axis, lr_axis, series_of, styled
from sweeps.report.text import count_text, exact_text, lr_text

SAMPLES = 97  # points of a drawn line
MAX_PANELS = 3
WIDEST = 8.0  # a band may reach this far beyond the points; further it is cut by the picture
ONE_PLACE = 0.1  # of ln x: points nearer than this lie on each other


Line = list[tuple[float, Prediction]]


@dataclass(frozen=True, slots=True)
class View:
    """What one panel shows: `x` runs along the axis, a line for each value of `by`."""

    x: str  # "tokens" or "batch_tokens"
    by: str
    low: float
    high: float
    parameters: int


def draw_law(report: LawReport, *, unit: str = "token") -> Figure:
    """Return the figure: cells with their intervals, the law, solid in its box and dashed in its reach, the check."""
    with styled():
        views = _views(report)
        figure = Figure(figsize=(8.6 if len(views) == 1 else 5.2 * len(views) + 1, 5.4), layout="constrained")
        grid = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
        by = views[0].by
        looks = series_of([_value(cell, by) for cell in report.cells] + _target_values(report, by))
        for view, axes in zip(views, grid, strict=True):
            _panel(axes, report, view, looks, unit=unit)
            if len(views) > 1:
                axes.set_title(f"{count_text(view.parameters)} parameters")
        for axes in grid[1:]:
            axes.set_ylabel("")
        heading(figure, report, unit=unit)
        legend(figure, report)
    return figure


def _value(cell: CellOptimum, name: str) -> float:
    return {"tokens": cell.tokens, "batch_tokens": cell.batch_tokens}[name]


def _target_values(report: LawReport, name: str) -> list[float]:
    return [float(report.verdict.target[name])] if report.verdict else []


def _views(report: LawReport) -> list[View]:
    """Return a panel for each model size (the smallest, the largest and one between, if there are many)."""
    tokens = {cell.tokens for cell in report.cells}
    x, by = ("tokens", "batch_tokens") if len(tokens) > 1 or not report.cells else ("batch_tokens", "tokens")
    seen = [_value(cell, x) for cell in report.cells] + _target_values(report, x)
    low, high = (min(seen), max(seen)) if seen else (1.0, 10.0)
    if report.law is not None:
        high = max(high, report.law.reach[x][1])
    sizes = sorted({cell.parameters for cell in report.cells}) or [0]
    if report.verdict and report.verdict.target.get("parameters") not in (None, *sizes):
        sizes.append(int(report.verdict.target["parameters"]))
    kept = sizes if len(sizes) <= MAX_PANELS else [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    return [View(x, by, low / 1.25, high * 1.12, size) for size in kept]


def _panel(axes: Axes, report: LawReport, view: View, looks: dict[float, Series], *, unit: str) -> None:
    cells = [cell for cell in report.cells if cell.parameters == view.parameters]
    x_label = {"tokens": f"training {unit}s", "batch_tokens": f"batch size ({unit}s)"}[view.x]
    count_axis(axes, "x", [_value(c, view.x) for c in report.cells] + _target_values(report, view.x), label=x_label)
    axes.set_xlim(view.low, view.high)
    lines = _lines(report.law, view, looks) if report.law is not None else {}
    low, high = _span(report, list(lines.values()))
    lr_axis(axes, "y", low=low, high=high, label="best learning rate")
    ends = []
    if None in lines:
        _line(axes, lines[None], Series(INK, "", 1.0))
    for by, look in looks.items():
        _line(axes, lines.get(by, []), look)
        own = [cell for cell in cells if _value(cell, view.by) == by]
        for cell in own:
            _optimum(axes, _value(cell, view.x) * look.dodge, cell.optimum, look)
        drawn = [p.lr for _, p in lines.get(by, [])] or [c.optimum.lr for c in own if c.optimum.lr is not None]
        if drawn:
            name = "batch" if view.by == "batch_tokens" else f"{unit}s"
            ends.append((drawn[-1], f"{name} {exact_text(by)}", look.colour))
    _regions(axes, report, view)
    if report.verdict is not None and report.verdict.target.get("parameters", view.parameters) == view.parameters:
        _held_out(axes, report.verdict, view, looks)
    _label_ends(axes, ends)


def _span(report: LawReport, lines: list[Line]) -> tuple[float, float]:
    """Return the limits of the LR axis: all that is known, with a margin; censored cells do not stretch it."""
    optima = [cell.optimum for cell in report.cells] + ([report.verdict.observed] if report.verdict else [])
    sharp = [o for o in optima if o.censored is None and o.lr is not None]
    middle = [p.lr for line in lines for _, p in line] + [o.lr for o in sharp if o.lr is not None]
    middle = middle or [o.lr for o in optima if o.lr is not None] or [1e-4, 1e-2]
    ends = [x for line in lines for _, p in line for x in (p.low, p.high)]
    ends += [x for o in sharp for x in (o.low, o.high) if x is not None]
    low, high = min([*middle, *ends]), max([*middle, *ends])
    return max(low, min(middle) / WIDEST) / 1.25, min(high, max(middle) * WIDEST) * 1.25


def _lines(law: Law, view: View, looks: dict[float, Series]) -> dict[float | None, Line]:
    """Return what the law says for each value of `by`, or once, under None, where it does not depend on it."""
    if view.by in law.variables:
        return {by: _predictions(law, view, by) for by in looks}
    return {None: _predictions(law, view, math.sqrt(math.prod(law.box[view.by])))}


def _predictions(law: Law, view: View, by: float) -> Line:
    """Return what the law says along one line, where it says anything."""
    points = []
    for x in sorted({*np.geomspace(view.low, view.high, SAMPLES).tolist(), *law.box[view.x], law.reach[view.x][1]}):
        batch, tokens = (by, x) if view.by == "batch_tokens" else (x, by)
        size = view.parameters if "parameters" in law.variables else None
        try:
            points.append((x, law.predict(batch_tokens=batch, tokens=tokens, parameters=size)))
        except ReachError:
            continue  # beyond its reach a law is not drawn
    return points


def _line(axes: Axes, points: Line, look: Series) -> None:
    """Draw the law for one batch size: solid in its box, dashed and lighter in its reach."""
    pieces = [list(piece) for _, piece in itertools.groupby(points, key=lambda p: p[1].place)]
    for i, piece in enumerate(pieces):
        inside = piece[0][1].place == "box"
        joined = list(piece)
        if not inside and i > 0:  # a piece outside the box begins where the box ends, at its own width
            joined.insert(0, (pieces[i - 1][-1][0], piece[0][1]))
        if not inside and i + 1 < len(pieces):
            joined.append((pieces[i + 1][0][0], piece[-1][1]))
        xs = [x for x, _ in joined]
        lows, mids, highs = ([getattr(p, name) for _, p in joined] for name in ("low", "lr", "high"))
        axes.fill_between(xs, lows, highs, color=look.colour, alpha=0.18 if inside else 0.07, linewidth=0)
        dashes = "-" if inside else (0, (4, 2.5))
        axes.plot(xs, mids, color=look.colour, linestyle=dashes, linewidth=2.0 if inside else 1.5, zorder=3)


def _optimum(axes: Axes, x: float, optimum: Optimum, look: Series) -> None:
    """Draw the optimum of a cell: a point with its interval; where censored, hollow, with an arrow past the edge tried.

    A censored cell outside the picture is drawn at its border. The number beside it is the best LR tried; cells that
    lie on each other share one.
    """
    if optimum.lr is None:
        return
    colour = look.colour
    if optimum.censored is None:
        if optimum.low is not None and optimum.high is not None:
            axes.plot([x, x], [optimum.low, optimum.high], color=colour, linewidth=1.4, solid_capstyle="butt", zorder=4)
        axes.plot(x, optimum.lr, look.marker, color=colour, markersize=7, markeredgecolor="white", zorder=5)
        return
    low, high = axes.get_ylim()
    way = {"edge high": 1, "edge low": -1}.get(optimum.censored, 0)
    y = float(np.clip(optimum.lr, low * 1.04 * (1.1 if way < 0 else 1), high / 1.04 / (1.1 if way > 0 else 1)))
    axes.plot(x, y, look.marker, color="white", markersize=6.5, markeredgecolor=colour, markeredgewidth=1.5, zorder=5)
    if way:
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 4, "shrinkB": 0}
        axes.annotate("", xy=(x, y * math.exp(0.055 * way * math.log(high / low))), xytext=(x, y), arrowprops=arrow)
    label = {1: "> ", -1: "< "}.get(way, "") + lr_text(optimum.lr)
    said = [text.xy for text in axes.texts if isinstance(text, Annotation) and text.get_text() == label]
    if not any(math.isclose(y, at_y) and abs(math.log(x / at_x)) < ONE_PLACE for at_x, at_y in said):
        axes.annotate(label, (x, y), (11, 0), textcoords="offset points", color=colour, fontsize=8.5, va="center")


def _regions(axes: Axes, report: LawReport, view: View) -> None:
    """Mark where the fitted cells end."""
    if report.law is None:
        return
    edge = report.law.box[view.x][1]
    if not view.low < edge < view.high:
        return
    axes.axvline(edge * 1.06, color=FAINT, linewidth=0.9, linestyle=":", zorder=1)
    for text, where, offset in (("fitted", "right", -6), ("extrapolated", "left", 6)):
        axes.annotate(
            text,
            (edge * 1.06, 0.985),
            (offset, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha=where,
            va="top",
            color=FAINT,
            fontsize=8.5,
        )


def _held_out(axes: Axes, verdict: Verdict, view: View, looks: dict[float, Series]) -> None:
    """Draw the held-out optimum as a star with its interval, beside the interval that the law gave for it."""
    x, look = float(verdict.target[view.x]), looks[float(verdict.target[view.by])]
    predicted, observed = verdict.predicted, verdict.observed
    left, right = x / 1.03, x * 1.03
    axes.plot([left, left], [predicted.low, predicted.high], color=look.colour, linewidth=7, alpha=0.45, zorder=4)
    axes.plot(left, predicted.lr, "_", color=INK, markersize=9, markeredgewidth=1.6, zorder=6)
    if observed.lr is None:
        return
    if observed.low is not None and observed.high is not None:
        axes.errorbar(
            right,
            observed.lr,
            yerr=[[observed.lr - observed.low], [observed.high - observed.lr]],
            color=INK,
            linewidth=1.4,
            capsize=3.5,
            zorder=6,
        )
    face = look.colour if observed.censored is None else "white"
    axes.plot(right, observed.lr, "*", color=face, markersize=17, markeredgecolor=INK, markeredgewidth=1.1, zorder=7)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line at its right end, in its colour, moved apart where they would touch."""
    low, high = np.log(axes.get_ylim())
    wanted = sorted((float((np.log(lr) - low) / (high - low)), text, colour) for lr, text, colour in ends)
    heights: list[float] = []
    for height, _, _ in wanted:
        heights.append(max(height, heights[-1] + 0.055) if heights else height)
    shift = float(np.mean([h - w[0] for h, w in zip(heights, wanted, strict=True)])) if heights else 0.0
    for height, (_, text, colour) in zip(heights, wanted, strict=True):
        axes.text(
            1.012, height - shift, text, transform=axes.transAxes, color=colour, va="center", fontsize=9, weight="bold"
        )
