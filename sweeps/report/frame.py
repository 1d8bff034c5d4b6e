"""What stands around the picture of a law: the formula and the verdict above it, the names of its marks below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sweeps.report.data import LawReport
from sweeps.report.look import FAINT, INK, WARN
from sweeps.report.text import count_text, exact_text, interval_text, lr_text, optimum_text

VERDICT_COLOURS = {"validated": "#007A56", "rejected": WARN, "cannot tell": "#9A6700"}


def heading(figure: Figure, report: LawReport, *, unit: str) -> None:
    """Write the law, and what the held-out check says of it, above the panels."""
    label = f"{report.label}: " if report.label else ""
    if report.law is None:
        lines = [(f"{label}no law", INK), (report.refusal or "", WARN)]
    else:
        lines = [(label + report.law.one_line().replace(" * ", " · "), INK)]
    if report.verdict is not None:
        verdict = report.verdict
        where = f"batch {exact_text(verdict.target['batch_tokens'])}, {count_text(verdict.target['tokens'])} {unit}s"
        predicted = f"{lr_text(verdict.predicted.lr)} {interval_text(verdict.predicted.low, verdict.predicted.high)}"
        seen = optimum_text(verdict.observed)
        text = f"{verdict.status}: predicted {predicted}, found {seen} at {where}"
        lines.append((text, VERDICT_COLOURS.get(verdict.status, INK)))
    shown = [(textwrap.fill(text, 108 if i == 0 else 118), colour) for i, (text, colour) in enumerate(lines) if text]
    height = figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.24 * _line_count(shown) / height))  # type: ignore[call-arg, union-attr]  # of its engine
    y = 1 - 0.1 / height
    for i, (text, colour) in enumerate(shown):
        figure.text(
            0.012,
            y,
            text,
            ha="left",
            va="top",
            fontsize=10 if i == 0 else 9.5,
            color=colour,
            weight="bold" if i == 0 else "normal",
        )
        y -= 0.22 * (text.count("\n") + 1) / height


def _line_count(shown: Sequence[tuple[str, str]]) -> int:
    return sum(text.count("\n") + 1 for text, _ in shown)


def legend(figure: Figure, report: LawReport) -> None:
    """Name the marks of the figure below it."""
    grey = FAINT
    dot = Line2D([], [], color="none", marker="o", markersize=8, markerfacecolor=grey, markeredgecolor="white")
    entries: list[tuple[Line2D, str]] = [(dot, "cell, with interval")]
    if report.law is not None:
        entries.append((Line2D([], [], color=grey, linewidth=2), "law"))
        entries.append((Line2D([], [], color=grey, linewidth=1.5, linestyle=(0, (4, 2.5))), "extrapolated"))
    if any(cell.optimum.censored for cell in report.cells):
        hollow = Line2D([], [], color="none", marker="o", markersize=7, markerfacecolor="white", markeredgecolor=grey)
        entries.append((hollow, "censored, not fitted"))
    if report.verdict is not None:
        entries.append((Line2D([], [], color=grey, linewidth=7, alpha=0.5), "predicted"))
        star = Line2D([], [], color="none", marker="*", markersize=14, markerfacecolor=grey, markeredgecolor=INK)
        entries.append((star, "held out, found"))
    figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=len(entries), columnspacing=1.5)
