"""A schedule written down as points: piecewise linear over the horizon. What `forecast.design` exports."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import ClassVar

from sweeps.schedules.base import require


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Factors of the peak LR at fractions of the horizon, straight lines between them; a warm-up is part of it.

    Attributes:
        fractions: of the horizon, rising strictly from 0 to 1.
        factors: one for each fraction, between 0 and 1; the highest is 1, so that the lr axis is the peak.
    """

    version: ClassVar[int] = 1
    horizon_free: ClassVar[bool] = False

    fractions: tuple[float, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = tuple(self.fractions), tuple(self.factors)
        ends = len(x) >= 2 and x[0] == 0 and x[-1] == 1 and all(a < b for a, b in itertools.pairwise(x))
        require("fractions", list(x), ends, "rise strictly from 0 to 1")
        require("factors", list(y), len(y) == len(x), f"be as many as the fractions ({len(x)})")
        within = all(0 <= value <= 1 for value in y) and max(y) == 1
        require("factors", list(y), within, "be between 0 and 1, the highest 1")

    @property
    def open_ended(self) -> bool:
        """False: the curve depends on the horizon."""
        return False

    def __call__(self, seen: float, total: float, floor: float = 0.0) -> float:
        del floor
        x = min(max(seen / total, 0.0), 1.0)
        right = min(bisect.bisect_right(self.fractions, x), len(self.fractions) - 1)
        x0, x1 = self.fractions[right - 1], self.fractions[right]
        share = (x - x0) / (x1 - x0)
        return (1 - share) * self.factors[right - 1] + share * self.factors[right]

    def floor(self, peak: float) -> float:
        """Return zero: this schedule has no absolute floor."""
        del peak
        return 0.0

    def check(self, total: int) -> None:
        """Accept every horizon: all of the schedule is in fractions of it."""
        del total
