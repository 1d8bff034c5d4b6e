"""What a sweep found, for people: figures and one HTML page."""

from __future__ import annotations

from pathlib import Path

from sweeps.curves import replacing
from sweeps.report import figures, page
from sweeps.report.data import Cost, LawReport, ReportData

__all__ = ["Cost", "LawReport", "ReportData", "write_report"]


def write_report(folder: Path, data: ReportData) -> list[Path]:
    """Write the figures (law.png, basins.png ...) and report.html, each whole or not at all; return the paths.

    Further laws of a sweep have law-2.png and so on. The same data give the same bytes.

    Raises:
        StoreError: the folder cannot be written.
    """
    drawn = figures.draw(data)
    files = {**drawn, "report.html": page.render(data, drawn).encode()}
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in files]
