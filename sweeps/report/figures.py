"""The figures of a report, by file name."""

from __future__ import annotations

from matplotlib.figure import Figure

from sweeps.report.basins import draw_basins
from sweeps.report.data import ReportData
from sweeps.report.law import draw_law
from sweeps.report.look import png
from sweeps.report.runs import draw_curves
from sweeps.report.spread import draw_interval, draw_residuals

KINDS = ("law", "basins", "curves", "residuals", "interval")


def file_name(kind: str, index: int) -> str:
    """Return the file of a figure: law.png for the first law of a sweep, law-2.png for the second."""
    return f"{kind}.png" if index == 0 else f"{kind}-{index + 1}.png"


def draw(data: ReportData) -> dict[str, bytes]:
    """Return file name -> PNG of every figure; the same bytes for the same data."""
    drawn: dict[str, bytes] = {}
    for index, report in enumerate(data.laws):
        figures: dict[str, Figure] = {
            "law": draw_law(report, unit=data.unit),
            "basins": draw_basins(report, unit=data.unit, metric=data.loss),
            "curves": draw_curves(report, data.curves, unit=data.unit, metric=data.loss),
            "residuals": draw_residuals(report, unit=data.unit),
            "interval": draw_interval(report, data.curves),
        }
        drawn |= {file_name(kind, index): png(figures[kind]) for kind in KINDS}
    return drawn
