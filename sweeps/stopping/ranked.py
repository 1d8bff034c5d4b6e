"""Stoppers that rank raw losses in mid-schedule. Biased, and here for comparison: no sweep is to be run by them.

A high LR looks bad before its cooldown and may win after it; a low LR under a falling schedule looks bad late. What
such a rule keeps is what is good early, so that the LR it finds is off (docs/curves.md has by how much).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sweeps.stopping.records import CellSoFar, Known, RunSoFar, Stop


@dataclass(frozen=True, slots=True)
class Median:
    """Biased. Stops a run whose loss is above the median of its cell at the same share of the horizon.

    The median stopping rule of Golovin et al. 2017 (Google Vizier) on last losses, as Optuna has it; runs that were
    stopped or diverged count as above it.

    Attributes:
        grace_share: of the horizon before which nothing is stopped.
        least_runs: a cell must have.
    """

    version: ClassVar[int] = 1
    biased: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    grace_share: float = 0.25
    least_runs: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.grace_share < 1:
            raise ValueError(f"grace_share: must be at least 0 and below 1, got {self.grace_share}")
        if self.least_runs < 2:
            raise ValueError(f"least_runs: must be at least 2, got {self.least_runs}")

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return the running runs above the median."""
        del known
        found = []
        for run in cell.running:
            mark = run.done_tokens
            if mark < self.grace_share * cell.horizon_tokens:
                continue
            there = [loss for other in cell.runs if (loss := _standing(other, mark)) is not None]
            if len(there) < self.least_runs:
                continue
            middle = float(np.sort(there)[(len(there) - 1) // 2])
            if run.loss[-1] > middle:
                found.append(Stop(run.key, f"loss {run.loss[-1]:.4g} above the median {middle:.4g} of its cell"))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Asha:
    """Biased. Successive halving: of the runs that reach a rung, the best 1 / eta go on.

    Li et al. 2018, arXiv:1810.05934; where runs advance together it is synchronous. Rungs stand at shares of the
    horizon: `first_share`, eta times that, and so on below 1.

    Attributes:
        eta: over 1.
        first_share: of the first rung; a run that reaches it late is judged then.
    """

    version: ClassVar[int] = 1
    biased: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    eta: float = 4.0
    first_share: float = 1 / 16

    def __post_init__(self) -> None:
        if not 1 < self.eta < math.inf:
            raise ValueError(f"eta: must be over 1 and finite, got {self.eta}")
        if not 0 < self.first_share < 1:
            raise ValueError(f"first_share: must be between 0 and 1, got {self.first_share}")

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return the running runs that are not among the best 1 / eta at the last rung they have reached."""
        del known
        return tuple(stop for run in cell.running if (stop := self._judge(run, cell)))

    def _judge(self, run: RunSoFar, cell: CellSoFar) -> Stop | None:
        share = cell.share(run)
        if share < self.first_share:
            return None
        number = int(math.log(share / self.first_share, self.eta) + 1e-9)
        mark = self.first_share * self.eta**number * cell.horizon_tokens
        own = run.loss_at(mark)
        there = [loss for other in cell.runs if (loss := _standing(other, mark, stopped=False)) is not None]
        if own is None or mark >= cell.horizon_tokens or len(there) < 2:
            return None
        kept = max(int(len(there) / self.eta), 1)
        last = float(np.sort(there)[kept - 1])
        if not own > last:
            return None
        return Stop(
            run.key, f"loss {own:.4g} at {mark / cell.horizon_tokens:.3g} of the horizon, the best {kept} go on"
        )


def _standing(run: RunSoFar, mark: float, *, stopped: bool = True) -> float | None:
    """Return a run's loss at a mark; infinite where it was stopped (if that counts) or diverged before it."""
    loss = run.loss_at(mark)
    if loss is None and (run.outcome == "diverged" or (stopped and run.outcome == "stopped")):
        return math.inf
    return loss
