"""Stoppers: what ends a run before its horizon, and why.

To add one: a frozen dataclass, and its name in RULES below; `powersweep replay stopping` scores it on recorded curves.
"""

from __future__ import annotations

from sweeps.stopping.dominated import Dominated
from sweeps.stopping.plain import Diverged, NoStopper, Patience
from sweeps.stopping.ranked import Asha, Median
from sweeps.stopping.records import CellSoFar, FinalLoss, Known, RunSoFar, Stop, Stopper

__all__ = ["RULES", "STOPPERS", "CellSoFar", "FinalLoss", "Known", "RunSoFar", "Stop", "Stopper"]

RULES: dict[str, type[Stopper]] = {  # what a replay can score
    "none": NoStopper,
    "diverged": Diverged,
    "patience": Patience,
    "dominated": Dominated,
    "median": Median,
    "asha": Asha,
}
STOPPERS: dict[str, type[Stopper]] = {n: rule for n, rule in RULES.items() if n != "none"}  # what a sweep can follow
