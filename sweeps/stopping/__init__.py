"""Stoppers: what ends a run before its horizon, and why.

To add one: a frozen dataclass, and its name in RULES below; `powersweep replay stopping` scores it on recorded curves.
"""

from __future__ import annotations

from sweeps.stopping.dominated import Dominated
from sweeps.stopping.plain import Diverged, NoStopper, Patience
from sweeps.stopping.ranked import Asha, Median
from sweeps.stopping.records import CellSoFar, Known, RunSoFar, Stop, Stopper

__all__ = ["RULES", "STOPPERS", "CellSoFar", "Known", "RunSoFar", "Stop", "Stopper"]

RULES: dict[str, type[Stopper]] = {  # what a replay can score
    "none": NoStopper,
    "diverged": Diverged,
    "patience": Patience,
    "dominated": Dominated,
    "median": Median,
    "asha": Asha,
}
STOPPERS: dict[str, type[Stopper]] = {"diverged": RULES["diverged"]}  # those that a sweep follows
