"""The figure of `replay curves`: every curve with what the law says of it, and by how much it is off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sweeps.forecast.records import LossCurve
from sweeps.replay.curves import CurveScore, CurvesReplay
from sweeps.report.look import COLOURS, FAINT, INK, styled
from sweeps.report.text import count_text

COLUMNS = 3
OFF = 15.0  # thousandths of a nat: at least what the lower panels show, so that noise looks like noise
LINE_POINTS = 160


def draw_replay(result: CurvesReplay, curves: Mapping[str, LossCurve]) -> Figure:
    """Return the figure: two panels a curve, its losses with the law's, and true less predicted below them."""
    scores = sorted(result.scores, key=lambda score: (score.fitted, -score.steps, score.name))
    down = -(-len(scores) // COLUMNS)
    with styled():
        figure = Figure(figsize=(11.4, 2.9 * down + 1.1), layout="constrained")
        heights = [ratio for _ in range(down) for ratio in (2.3, 1.0)]
        grid = figure.subplots(2 * down, COLUMNS, squeeze=False, gridspec_kw={"height_ratios": heights})
        reach = max(OFF, *(_usual_miss(result, curves[score.name]) for score in scores))
        for place in range(down * COLUMNS):
            row, column = divmod(place, COLUMNS)
            top, bottom = grid[2 * row, column], grid[2 * row + 1, column]
            if place >= len(scores):
                top.set_axis_off()
                bottom.set_axis_off()
                continue
            _curve(top, bottom, scores[place], result, curve=curves[scores[place].name].settled)
            bottom.set_ylim(-reach, reach)
        _words(figure, result)
    return figure


def _usual_miss(result: CurvesReplay, curve: LossCurve) -> float:
    seen = curve.settled
    off_P = 1e3 * np.abs(seen.loss - result.law.predict(seen.path, seen.step))
    return 1.15 * float(np.quantile(off_P, 0.97))


def _curve(top: Axes, bottom: Axes, score: CurveScore, result: CurvesReplay, *, curve: LossCurve) -> None:
    colour = FAINT if score.fitted else COLOURS[0]
    every = max(len(curve) // LINE_POINTS, 1)
    top.plot(curve.step[::every], curve.loss[::every], "o", color=colour, markersize=2.6, markeredgewidth=0)
    found_P = result.law.predict(curve.path, curve.step)
    top.plot(curve.step, found_P, color=COLOURS[1], linewidth=1.4)
    low, high = float(min(curve.loss.min(), found_P.min())), float(np.quantile(curve.loss, 0.93))
    margin = 0.08 * (high - low) or 0.05
    top.set_ylim(low - margin, high + 3 * margin)
    top.set_title(score.name + (", fitted" if score.fitted else ""), fontsize=9.5)
    off_P = 1e3 * (curve.loss - found_P)
    bottom.axhline(0.0, color=COLOURS[1], linewidth=1.1)
    bottom.plot(curve.step, off_P, color=colour, linewidth=0.9)
    for axes in (top, bottom):
        axes.set_xlim(0, score.steps * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value) if value else "0"))
        if score.leaves_step is not None:
            axes.axvline(score.leaves_step, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.7)
    top.tick_params(labelbottom=False)
    top.yaxis.set_major_locator(MaxNLocator(4))
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    after = "" if score.r2_after is None else f"   R2 after {score.r2_after:.3f}"
    place: dict[str, Any] = {"transform": top.transAxes, "ha": "right", "va": "top", "fontsize": 8.5}
    paper = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5}
    top.text(0.98, 0.95, f"MAE {score.mae:.4f}{after}", bbox=paper, **place)


def _words(figure: Figure, result: CurvesReplay) -> None:
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("loss  (and below: true less predicted, 1/1000 nat)", fontsize=10)
    dot: dict[str, Any] = {"color": "none", "marker": "o", "markersize": 5, "markeredgewidth": 0}
    entries: list[tuple[Line2D, str]] = [
        (Line2D([], [], markerfacecolor=COLOURS[0], **dot), "held out"),
        (Line2D([], [], markerfacecolor=FAINT, **dot), "fitted"),
        (Line2D([], [], color=COLOURS[1], linewidth=1.6), f"{result.law_name} law"),
        (Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (2, 2))), "LR leaves that of the fitted curves"),
    ]
    handles, names = zip(*entries, strict=True)
    figure.legend(handles, names, loc="outside upper center", ncols=4, handlelength=1.8)
