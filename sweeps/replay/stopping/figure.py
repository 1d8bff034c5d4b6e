"""The figure of `replay stopping`: the runs of each cell, where they were stopped, and which one won."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sweeps.replay.stopping.scores import CellScore, StoppingReplay
from sweeps.report.look import COLOURS, FAINT, INK, WARN, styled
from sweeps.stopping import CellSoFar, RunSoFar

COLUMNS = 3
MOST_CELLS = 12  # drawn; the largest of more
NAME_LETTERS = 44


def draw_stopping(result: StoppingReplay, cells: tuple[CellSoFar, ...]) -> Figure:
    """Return the figure: a panel a cell, loss over share of the horizon; `cells` hold the curves in full."""
    full = {(cell.recipe, cell.name): cell for cell in cells}
    shown = list(zip(result.scores, result.cells, strict=True))[-MOST_CELLS:]
    across = min(COLUMNS, len(shown))
    down = -(-len(shown) // across)
    with styled():
        figure = Figure(figsize=(4.0 * across + 0.4, 2.9 * down + 1.2), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        for place in range(down * across):
            row, column = divmod(place, across)
            axes = grid[row, column]
            if place < len(shown):
                score, left = shown[place]
                _cell(axes, score, left, full=full[left.recipe, left.name])
                axes.set_ylabel("loss" if column == 0 else "")
                axes.set_xlabel("share of the horizon" if place + across >= len(shown) else "")
            else:
                axes.set_axis_off()
        _words(figure, result, left_out=len(result.scores) - len(shown))
    return figure


def _cell(axes: Axes, score: CellScore, left: CellSoFar, *, full: CellSoFar) -> None:
    horizon, log = full.horizon_tokens, all(np.all(run.loss > 0) for run in full.runs)
    whole = {run.key: run for run in full.runs}
    for run in left.runs:
        curve = whole[run.key]
        if run.outcome == "stopped":
            axes.plot(curve.tokens / horizon, curve.loss, color=FAINT, linewidth=0.7, alpha=0.35, zorder=1)
            axes.plot(run.tokens / horizon, run.loss, color=FAINT, linewidth=1.0, alpha=0.9, zorder=2)
            if len(run.tokens):
                axes.plot(run.tokens[-1] / horizon, run.loss[-1], "x", color=INK, markersize=5, zorder=4)
        elif run.key != score.winner:
            axes.plot(run.tokens / horizon, run.loss, color=COLOURS[4], linewidth=1.1, alpha=0.9, zorder=3)
    if score.winner is not None:
        best = whole[score.winner]
        colour = WARN if score.lost else COLOURS[0]
        axes.plot(best.tokens / horizon, best.loss, color=colour, linewidth=2.2, zorder=5)
    axes.set_xlim(0, 1.02)
    _limits(axes, full, log=log)
    saved = 1 - score.trained / score.total
    name = score.cell if len(score.cell) <= NAME_LETTERS else "…" + score.cell[-NAME_LETTERS:]
    axes.set_title(name, fontsize=9.5)
    paper = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.5}
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 8.5}
    told = f"{len(score.stopped)} of {score.runs} stopped, {saved:.0%} saved" + (", winner lost" if score.lost else "")
    axes.text(0.98, 0.96, told, bbox=paper, zorder=6, **place)


def _limits(axes: Axes, full: CellSoFar, *, log: bool) -> None:
    """Show what is above the best final loss, up to where most runs are early on."""
    finite = [_late(run, full.horizon_tokens) for run in full.runs]
    seen = np.concatenate([loss for loss in finite if len(loss)] or [np.ones(1)])
    low, high = float(seen.min()), float(np.quantile(seen, 0.97))
    if log and high > 1.5 * low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10.0, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.18)
    elif high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.18 * (high - low))


def _late(run: RunSoFar, horizon: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return run.loss[np.isfinite(run.loss) & (run.tokens >= 0.1 * horizon)]


def _words(figure: Figure, result: StoppingReplay, *, left_out: int) -> None:
    entries: list[tuple[Line2D, str]] = [
        (Line2D([], [], color=COLOURS[0], linewidth=2.2), "best run, kept"),
        (Line2D([], [], color=WARN, linewidth=2.2), "best run, stopped"),
        (Line2D([], [], color=COLOURS[4], linewidth=1.2), "went on"),
        (Line2D([], [], color=FAINT, linewidth=1.0, marker="x", markeredgecolor=INK, markersize=5), "stopped"),
    ]
    handles, names = zip(*entries, strict=True)
    kind = " (biased: ranks raw losses)" if result.biased else ""
    more = f"; {left_out} smaller cells not drawn" if left_out else ""
    lost = f"{result.winners_lost} of {len(result.scores)} winners lost"
    figure.suptitle(f"{result.rule}{kind}: {result.saved:.1%} saved, {lost}{more}", fontsize=11)
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=1.8)
