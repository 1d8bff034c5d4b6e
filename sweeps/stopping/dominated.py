"""The stopper that compares what runs will end with, not what they are at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sweeps.errors import FitError
from sweeps.forecast.fitting import FittedCurveLaw
from sweeps.forecast.records import Forecast
from sweeps.forecast.running import forecast_final
from sweeps.forecast.spread import spread_of
from sweeps.optima.tried import SAME
from sweeps.stopping.history import Finals, height_of, is_relative, lessons_of, predict_finals
from sweeps.stopping.records import CellSoFar, FinalLoss, Known, RunSoFar, Stop


@dataclass(frozen=True, slots=True)
class Dominated:
    """Stops a run whose predicted final loss is worse than the best of its cell, interval included.

    The best is the lowest final loss of a finished run or the predicted one of a running run; a run is dominated where
    its prediction is above that by more than the interval of the difference. Predictions are from a curve law where one
    is given and the LR of every step is known (`forecast_final`), else from earlier cells of the recipe
    (`sweeps.stopping.history`). A run of which neither says anything goes on.

    Attributes:
        confidence: that it is worse, one-sided; over 0.5.
        grace_share: of the horizon before which nothing is stopped.
        neighbours: LRs on either side of one that may be best yet that go on with it, all their seeds, so that the
            cell's optimum can be fitted; 0 judges each run by itself, as does a cell of one LR.
    """

    version: ClassVar[int] = 1
    biased: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    confidence: float = 0.95
    grace_share: float = 0.05
    neighbours: int = 1

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence: must be between 0.5 and 1, got {self.confidence}")
        if not 0 <= self.grace_share < 1:
            raise ValueError(f"grace_share: must be at least 0 and below 1, got {self.grace_share}")
        if self.neighbours < 0:
            raise ValueError(f"neighbours: must be at least 0, got {self.neighbours}")

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        """Return the running runs that cannot end best, nor are needed beside one that can."""
        judged = [run for run in cell.running if len(run.loss) and cell.share(run) >= self.grace_share]
        earlier = [other for other in known.earlier if other.recipe == cell.recipe]
        relative = is_relative([cell, *earlier])
        if known.law is not None:
            said = [self._by_law(judged, known.law)]
        else:
            said = self._by_history(cell, judged, earlier, relative=relative)
        worse = self._worse(cell, said, relative=relative)
        spared = self._beside(cell, worse, _promised(said, relative=relative))
        going = [run for run in judged if run.key in worse and run.key not in spared]
        return tuple(worse[run.key] for run in going if _beaten(run, cell))

    def _by_law(self, judged: Sequence[RunSoFar], law: FittedCurveLaw) -> Finals:
        spread = spread_of(law)
        keys: list[str] = []
        said: list[Forecast] = []
        for run in judged:
            if run.curve is None:
                continue
            try:
                said.append(forecast_final(law, run.curve, confidence=2 * self.confidence - 1, spread=spread))
            except FitError:  # the law is not of this run, or too little of it is seen: nothing is known
                continue
            keys.append(run.key)
        heights = [math.log(one.final) for one in said]
        return Finals.independent(keys, heights, [0.5 * math.log(one.high / one.low) for one in said])

    def _by_history(
        self, cell: CellSoFar, judged: Sequence[RunSoFar], earlier: Sequence[CellSoFar], *, relative: bool
    ) -> list[Finals]:
        lessons = lessons_of(earlier)
        found = []
        for share in sorted({cell.share(run) for run in judged}):
            there = [run for run in judged if cell.share(run) == share]
            found.append(
                predict_finals(cell, there, lessons, share=share, confidence=self.confidence, relative=relative)
            )
        return found

    def _worse(self, cell: CellSoFar, said: Sequence[Finals], *, relative: bool) -> dict[str, Stop]:
        """Return the stop of each run that is dominated; runs at unlike shares are compared as if independent."""
        ended = [loss for run in cell.runs if (loss := run.final_loss) is not None and math.isfinite(loss)]
        best = height_of(min(ended), relative=relative) if ended else math.inf
        found: dict[str, Stop] = {}
        for own in said:
            for other in said:
                apart_QO = own.apart if own is other else np.hypot(own.half[:, None], other.half)
                above_QO = own.height[:, None] - other.height
                beaten_QO = above_QO > apart_QO
                for q in np.flatnonzero(beaten_QO.any(axis=1)):
                    rival = float(np.min(other.height[beaten_QO[q]]))
                    found[own.keys[q]] = self._stop(own, int(q), rival, relative=relative)
            for q in np.flatnonzero(own.height - best > own.half):
                found[own.keys[q]] = self._stop(own, int(q), best, relative=relative)
        return found

    def _stop(self, own: Finals, q: int, rival: float, *, relative: bool) -> Stop:
        height, half = float(own.height[q]), float(own.half[q])
        heights = (height, height - half, height + half, rival)
        said = FinalLoss(*(math.exp(min(x, 700.0)) if relative else x for x in heights))
        why = f"will end at {said.loss:.4g}, another at {said.best:.4g}: worse at {self.confidence:.0%} confidence"
        return Stop(own.keys[q], why, said)

    def _beside(self, cell: CellSoFar, worse: Mapping[str, Stop], promised: float) -> set[str]:
        """Return the runs at LRs that may be best yet, and at the next ones on either side."""
        rank = _ranks([run.lr for run in cell.runs])
        if self.neighbours == 0 or max(rank.values()) == 0:
            return set()
        hopeful = {rank[run.lr] for run in cell.runs if run.key not in worse and _may_win(run, cell, promised)}
        near = {place + by for place in hopeful for by in range(-self.neighbours, self.neighbours + 1)}
        return {run.key for run in cell.runs if rank[run.lr] in near}


def _promised(said: Sequence[Finals], *, relative: bool) -> float:
    """Return the loss that some running run will end below."""
    height = min((float(np.min(one.height + one.half)) for one in said if one.keys), default=math.inf)
    return math.exp(min(height, 700.0)) if relative and math.isfinite(height) else height


def _may_win(run: RunSoFar, cell: CellSoFar, promised: float) -> bool:
    """Whether a run has begun, and has not ended above another one of its seed, nor above what is promised."""
    if run.running:
        return len(run.loss) > 0
    own = run.final_loss
    finals = [loss for other in cell.runs if other.seed == run.seed and (loss := other.final_loss) is not None]
    return own is not None and math.isfinite(own) and own <= min(promised, *filter(math.isfinite, finals))


def _ranks(lrs: Sequence[float]) -> dict[float, int]:
    """Return the place of each LR among those that differ by more than rounding."""
    ordered = sorted(set(lrs))
    steps = [math.log(above / below) > SAME for below, above in itertools.pairwise(ordered)]
    return dict(zip(ordered, itertools.accumulate(steps, initial=0), strict=True))


def _beaten(run: RunSoFar, cell: CellSoFar) -> bool:
    """Whether another run has been below it at one of its reports; no stopper ends a run that leads throughout."""
    points = list(zip(run.tokens.tolist(), run.loss.tolist(), strict=True))[::-1]
    others = [other for other in cell.runs if other.key != run.key]
    return any((there := other.loss_at(mark)) is not None and there < loss for mark, loss in points for other in others)
