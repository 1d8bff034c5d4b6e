"""How well a law fits its cells, and how sharp the cells are: residuals, intervals and noise."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sweeps.errors import ReachError
from sweeps.laws.law import Law
from sweeps.laws.records import Prediction
from sweeps.optima.records import CellOptimum
from sweeps.report.data import LawReport
from sweeps.report.look import FAINT, Series, count_axis, series_of, styled
from sweeps.report.text import exact_text

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
