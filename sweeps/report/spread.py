"""How well a law fits its cells, how sharp the cells are, and what would narrow the law's interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sweeps.curves import Curve
from sweeps.errors import FitError, ReachError
from sweeps.laws.law import Law
from sweeps.laws.noise import SeedWidth, Spent, by_trials, seed_widths
from sweeps.laws.records import Prediction
from sweeps.optima.records import CellOptimum
from sweeps.report.data import LawReport
from sweeps.report.look import COLOURS, FAINT, INK, Series, count_axis, series_of, styled
from sweeps.report.text import exact_text

WIDEST = 10.0  # an early interval may reach this far; further it is cut by the picture
RATIOS = (0.1, 0.2, 0.33, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 3.0, 5.0, 10.0)


def draw_residuals(report: LawReport, *, unit: str = "token") -> Figure:
    """Return the figure: cells over the law, the width of their intervals, and the noise between seeds."""
    with styled():
        figure = Figure(figsize=(10.6, 3.7), layout="constrained")
        residuals, widths, noise = figure.subplots(1, 3)
        looks = series_of([cell.batch_tokens for cell in report.cells])
        for axes in (residuals, widths, noise):
            tokens = [cell.tokens for cell in report.cells] or [1, 10]
            count_axis(axes, "x", tokens, label=f"training {unit}s")
            axes.set_xlim(min(tokens) / 1.3, max(tokens) * 1.3)
        _residuals(residuals, report, looks)
        _widths(widths, report, looks)
        _noise(noise, report, looks)
        handles = [
            axes_line
            for batch, look in looks.items()
            for axes_line in residuals.plot(
                [], [], look.marker, color=look.colour, markeredgecolor="white", label=f"batch {exact_text(batch)}"
            )
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def _predict(law: Law, cell: CellOptimum) -> Prediction | None:
    size = cell.parameters if "parameters" in law.variables else None
    try:
        return law.predict(batch_tokens=cell.batch_tokens, tokens=cell.tokens, parameters=size)
    except ReachError:
        return None


def _residuals(axes: Axes, report: LawReport, looks: dict[float, Series]) -> None:
    axes.set_title("optimum of a cell / law")
    axes.axhline(1.0, color=FAINT, linewidth=1.2)
    reached = [1 / 1.3, 1.3]
    for cell in report.cells:
        optimum, look = cell.optimum, looks[cell.batch_tokens]
        predicted = _predict(report.law, cell) if report.law is not None else None
        if optimum.censored is not None or optimum.lr is None or predicted is None:
            continue
        x = cell.tokens * look.dodge
        axes.plot(
            x,
            optimum.lr / predicted.lr,
            look.marker,
            color=look.colour,
            markersize=7,
            markeredgecolor="white",
            zorder=4,
        )
        if optimum.low is not None and optimum.high is not None:
            ends = [optimum.low / predicted.lr, optimum.high / predicted.lr]
            axes.plot([x, x], ends, color=look.colour, linewidth=1.3, zorder=3)
            reached += ends
        reached.append(optimum.lr / predicted.lr)
    _ratio_axis(axes, reached)
    if report.law is None:
        axes.text(0.5, 0.5, "no law", transform=axes.transAxes, ha="center", va="bottom", color=FAINT)


def _ratio_axis(axes: Axes, values: list[float]) -> None:
    axes.set_yscale("log")
    axes.set_ylim(min(values) / 1.1, max(values) * 1.1)
    axes.yaxis.set_major_locator(FixedLocator(list(RATIOS)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _widths(axes: Axes, report: LawReport, looks: dict[float, Series]) -> None:
    axes.set_title("interval of an optimum, high / low")
    reached = [1.0, 1.4]
    for cell in report.cells:
        low, high, look = cell.optimum.low, cell.optimum.high, looks[cell.batch_tokens]
        if low is not None and high is not None:
            reached.append(high / low)
            axes.plot(
                cell.tokens * look.dodge,
                high / low,
                look.marker,
                color=look.colour,
                markersize=7,
                markeredgecolor="white",
            )
    _ratio_axis(axes, reached)
    axes.set_ylim(0.95, max(reached) * 1.1)


def _noise(axes: Axes, report: LawReport, looks: dict[float, Series]) -> None:
    axes.set_title("sd between seeds / loss")
    reached = [0.0]
    for cell in report.cells:
        noise, look = cell.optimum.noise_sd, looks[cell.batch_tokens]
        if noise is not None and np.isfinite(noise):
            reached.append(noise)
            axes.plot(
                cell.tokens * look.dodge, noise, look.marker, color=look.colour, markersize=7, markeredgecolor="white"
            )
    axes.set_ylim(0, max(reached) * 1.15 or 1.0)


def target_of(report: LawReport) -> dict[str, float] | None:
    """Return where a law's interval is looked at: the held-out target, or the end of its reach in tokens."""
    law, verdict = report.law, report.verdict
    if law is None:
        return None
    if verdict is not None and verdict.predicted.place != "beyond":
        return dict(verdict.target)
    batches = sorted({cell["batch_tokens"] for cell in law.cells})
    target = {"batch_tokens": float(batches[len(batches) // 2]), "tokens": law.reach["tokens"][1]}
    return target | ({"parameters": law.box["parameters"][1]} if "parameters" in law.variables else {})


def widths_of(report: LawReport) -> tuple[SeedWidth, ...]:
    """Return how wide the interval at the target would be with other numbers of seeds; () where nothing says it."""
    target = target_of(report)
    if report.law is None or target is None:
        return ()
    try:
        return seed_widths(report.law, report.cells, target=target)
    except FitError:
        return ()


def seeds_of(report: LawReport) -> int:
    """Return how many seeds an LR had: the median over the cells fitted."""
    fitted = {cell["key"] for cell in report.law.cells} if report.law is not None else set()
    counts = [len({r.seed for r in c.results}) for c in report.cells if c.key in fitted and c.results]
    return round(float(np.median(counts))) if counts else 0


def draw_interval(report: LawReport, curves: Mapping[str, Curve]) -> Figure:
    """Return the figure: the law's interval at the target as trials ended, and with other numbers of seeds."""
    with styled():
        figure = Figure(figsize=(10.6, 3.5), layout="constrained")
        trials, seeds = figure.subplots(1, 2)
        target = target_of(report)
        ended = sorted((float(c.timestamp[-1]), key) for key, c in curves.items() if len(c))
        told: tuple[Spent, ...] = ()
        if report.law is not None and target is not None:
            told = by_trials(report.law, report.cells, [key for _, key in ended], target=target)
        _by_trials(trials, told)
        _by_seeds(seeds, widths_of(report), ran=seeds_of(report))
    return figure


def _by_trials(axes: Axes, told: tuple[Spent, ...]) -> None:
    axes.set_title("lr* at the target, as trials ended")
    axes.set_xlabel("trials")
    axes.grid(visible=False, axis="x")
    known = [(spent.trials, spent.found) for spent in told if spent.found is not None]
    if not known:
        _empty(axes, "no interval yet")
        return
    last = known[-1][1].lr
    for count, found in known:
        axes.plot([count, count], [found.low / last, found.high / last], color=COLOURS[0], linewidth=1.6)
        axes.plot(count, found.lr / last, "o", color=COLOURS[0], markersize=7, markeredgecolor="white", zorder=4)
    axes.axhline(1.0, color=FAINT, linewidth=1.0)
    ends = [x / last for _, found in known for x in (found.low, found.high)]
    _ratio_axis(axes, [max(min(ends), 1 / WIDEST), min(max(ends), WIDEST), 1 / 1.3, 1.3])
    refused = [spent.trials for spent in told if spent.found is None]
    for count in refused:
        axes.plot(count, 0.03, "x", color=FAINT, markersize=6, transform=axes.get_xaxis_transform(), clip_on=False)
    if refused:
        axes.annotate("x refused", (0.02, 0.95), xycoords="axes fraction", color=FAINT, fontsize=8.5, va="top")
    axes.set_xlim(0, told[-1].trials * 1.05)


def _by_seeds(axes: Axes, widths: tuple[SeedWidth, ...], *, ran: int) -> None:
    axes.set_title("half-width there, by seeds of each LR")
    axes.set_xlabel("seeds")
    if not widths:
        _empty(axes, "nothing says what seeds would do")
        return
    axes.set_xscale("log")
    axes.plot([w.seeds for w in widths], [w.factor for w in widths], color=FAINT, linewidth=1.4, zorder=2)
    for width in widths:
        face = COLOURS[1] if width.seeds == ran else "white"
        axes.plot(width.seeds, width.factor, "o", color=face, markeredgecolor=COLOURS[1], markersize=8, zorder=4)
        text = f"×{width.factor:.2f}" + (" (as run)" if width.seeds == ran else "")
        place = (width.seeds, width.factor)
        axes.annotate(text, place, (5, 6), textcoords="offset points", ha="left", color=INK, fontsize=8.5)
    axes.xaxis.set_major_locator(FixedLocator([w.seeds for w in widths]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:.3g}"))
    axes.set_xlim(min(w.seeds for w in widths) / 1.4, max(w.seeds for w in widths) * 1.8)
    top = max(w.factor for w in widths)
    axes.set_ylim(1.0, math.exp(1.25 * math.log(top)))


def _empty(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=FAINT)
