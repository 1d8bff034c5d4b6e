"""Stoppers that look at one run by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sweeps.spec import ABSURD_FACTOR
from sweeps.stopping.records import CellSoFar, Known, RunSoFar, Stop


@dataclass(frozen=True, slots=True)
class NoStopper:
    """Stops nothing: what the others are measured against."""

    version: ClassVar[int] = 1
    biased: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return no run."""
        del cell, known
        return ()


@dataclass(frozen=True, slots=True)
class Diverged:
    """Ends a run whose loss is not finite, or above `above` times its loss before training.

    It is always on: naming it in a sweep sets its threshold.
    """

    version: ClassVar[int] = 1
    biased: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    above: float = ABSURD_FACTOR

    def __post_init__(self) -> None:
        if not (math.isfinite(self.above) and self.above > 1):
            raise ValueError(f"above: must be a finite factor over 1, got {self.above}")

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return the running runs whose last loss is not finite or absurd; the first one stands for before training."""
        del known
        return tuple(Stop(run.key, why) for run in cell.running if (why := self._why(run)))

    def _why(self, run: RunSoFar) -> str | None:
        if not len(run.loss):
            return None
        first, last = float(run.loss[0]), float(run.loss[-1])
        if not math.isfinite(last):
            return f"its loss is {last}"
        if first > 0 and last > self.above * first:
            return f"its loss {last:.4g} is over {self.above:g} times its first, {first:.4g}"
        return None


@dataclass(frozen=True, slots=True)
class Patience:
    """Stops a run that has gained nothing for part of its horizon, unless it is the best of its cell there.

    Biased where the LR is to fall yet: a run on a plateau may gain most in its cooldown.

    Attributes:
        share: of the horizon without gain.
        least_gain: of the loss, as a share of it, that counts as gain.
    """

    version: ClassVar[int] = 1
    biased: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    share: float = 0.2
    least_gain: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share: must be between 0 and 1, got {self.share}")
        if not 0 <= self.least_gain < 1:
            raise ValueError(f"least_gain: must be at least 0 and below 1, got {self.least_gain}")

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return the running runs without gain that others are ahead of."""
        del known
        return tuple(
            Stop(run.key, f"no gain in {self.share:.0%} of the horizon")
            for run in cell.running
            if self._flat(run, cell) and _behind(run, cell)
        )

    def _flat(self, run: RunSoFar, cell: CellSoFar) -> bool:
        old_P = run.tokens <= run.done_tokens - self.share * cell.horizon_tokens
        if not old_P.any():
            return False
        before, since = float(np.min(run.loss[old_P])), float(np.min(run.loss[~old_P]))
        return not since < before - self.least_gain * abs(before)


def _behind(run: RunSoFar, cell: CellSoFar) -> bool:
    """Whether another run has a lower loss where this one is."""
    others = [other.loss_at(run.done_tokens) for other in cell.runs if other.key != run.key]
    return any(loss is not None and loss < run.loss[-1] for loss in others)
