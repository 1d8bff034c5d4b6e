"""What a stopper reads and says: the runs of a cell so far, what is known from elsewhere, the runs to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from sweeps.forecast.fitting import FittedCurveLaw
from sweeps.forecast.records import LossCurve

# P points

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RunSoFar:
    """A run of a cell, up to now.

    Attributes:
        key: of its trial.
        lr: its peak LR.
        seed: its seed.
        tokens: [P], consumed at each report, ascending.
        loss: [P], held-out loss there; not finite where it diverged.
        outcome: one of `sweeps.spec.OUTCOMES` once it has ended, None while it runs.
        curve: the same points with the LR of every step, where that is known.

    Raises:
        ValueError: arrays that differ in length, tokens that do not ascend.
    """

    key: str
    lr: float
    seed: int
    tokens: Floats
    loss: Floats
    outcome: str | None = None
    curve: LossCurve | None = None

    def __post_init__(self) -> None:
        if self.tokens.shape != self.loss.shape or self.tokens.ndim != 1:
            raise ValueError(f"{self.key}: must have one loss a report, got {len(self.tokens)} and {len(self.loss)}")
        if np.any(np.diff(self.tokens) <= 0):
            raise ValueError(f"{self.key}: tokens must ascend")

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.outcome is None

    @property
    def done_tokens(self) -> float:
        """Tokens at its last report; 0 before the first."""
        return float(self.tokens[-1]) if len(self.tokens) else 0.0

    @property
    def final_loss(self) -> float | None:
        """The loss it ended with; None unless it finished."""
        return float(self.loss[-1]) if self.outcome == "finished" and len(self.loss) else None

    def loss_at(self, tokens: float) -> float | None:
        """Return its loss at this mark, straight between reports; None where it has not been."""
        if not len(self.tokens) or not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        after = int(np.searchsorted(self.tokens, tokens))
        if self.tokens[after] == tokens:
            return float(self.loss[after])
        found = float(np.interp(tokens, self.tokens[after - 1 : after + 1], self.loss[after - 1 : after + 1]))
        return math.inf if math.isnan(found) else found


@dataclass(frozen=True, eq=False)
class CellSoFar:
    """The runs that compete for the lowest loss at one horizon.

    Attributes:
        name: for messages.
        runs: those that run and those that ended.
        horizon_tokens: where all of them end.
        recipe: cells of one recipe teach each other.
        batch_tokens, parameters: as far as cells of the recipe differ in them.
    """

    name: str
    runs: tuple[RunSoFar, ...]
    horizon_tokens: float
    recipe: str = ""
    batch_tokens: float = 1.0
    parameters: float = 1.0

    @property
    def running(self) -> tuple[RunSoFar, ...]:
        """The runs that have not ended."""
        return tuple(run for run in self.runs if run.running)

    @cached_property
    def place(self) -> Floats:
        """Where the cell lies: ln of (horizon, batch, parameters), shape [3]."""
        return np.log([self.horizon_tokens, self.batch_tokens, self.parameters])

    def share(self, run: RunSoFar) -> float:
        """Return the part of the horizon that a run has behind it."""
        return run.done_tokens / self.horizon_tokens


@dataclass(frozen=True, eq=False)
class Known:
    """What else a stopper may use.

    Attributes:
        earlier: cells whose runs have all ended, in the order in which they were run; of any recipe.
        law: a curve law of the recipe and peak LR of the runs that have a `curve`.
    """

    earlier: Sequence[CellSoFar] = ()
    law: FittedCurveLaw | None = None


@dataclass(frozen=True, slots=True)
class FinalLoss:
    """The loss a run is predicted to end with, its interval, and the loss it was compared with."""

    loss: float
    low: float
    high: float
    best: float


@dataclass(frozen=True, slots=True)
class Stop:
    """A run to be stopped, and why; with what it would have ended with, from a rule that predicts."""

    key: str
    why: str
    forecast: FinalLoss | None = None


class Stopper(Protocol):
    """A rule over the curves so far. Stopping never changes a trial's identity.

    It never stops a run that is best of its cell at every point so far and has not diverged, and says the same of the
    same curves.
    """

    version: ClassVar[int]
    biased: ClassVar[bool]  # whether it ranks raw losses in mid-schedule, which favours LRs that only look good early
    learns: ClassVar[bool]  # whether it predicts from earlier cells, so that short ones are to end before long ones

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return which of the running runs to stop, in the order of the cell's runs."""
        ...
