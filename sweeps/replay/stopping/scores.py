"""What a stopper did to one recorded cell and to all, in numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sweeps.optima.optimum import find_optimum
from sweeps.spec import Json, Result
from sweeps.stopping import CellSoFar, RunSoFar

BASIN_LRS = 3  # of a cell whose optimum is fitted


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that was stopped: at which share of the horizon, and why."""

    key: str
    share: float
    why: str


@dataclass(frozen=True, slots=True)
class CellScore:
    """What a stopper did to one cell.

    Attributes:
        cell, recipe, horizon_tokens: of the cell.
        runs: how many competed.
        stopped: those it stopped, in the order of time.
        trained, total: tokens times parameters, with the stopper and without.
        winner, kept: the run of the lowest final loss, of all and of those that were not stopped; None where none is.
        winner_loss, kept_loss: their final losses.
        winner_lr, kept_lr: their LRs; None where the record has no LR.
        basin_lr, kept_basin_lr: the cell's optimum fitted to all, and with stopped runs censored; None under three
            LRs or where no basin can be fitted.
    """

    cell: str
    recipe: str
    horizon_tokens: float
    runs: int
    stopped: tuple[Stopped, ...]
    trained: float
    total: float
    winner: str | None
    kept: str | None
    winner_loss: float | None
    kept_loss: float | None
    winner_lr: float | None
    kept_lr: float | None
    basin_lr: float | None
    kept_basin_lr: float | None

    @property
    def lost(self) -> bool:
        """Whether the winner was stopped: no run kept ends as low."""
        return self.winner_loss is not None and (self.kept_loss is None or self.kept_loss > self.winner_loss)


@dataclass(frozen=True, eq=False)
class StoppingReplay:
    """A rule and what it did.

    Attributes:
        rule: its name.
        biased: whether it ranks raw losses in mid-schedule.
        scores: of each cell, in the order in which they were run.
        cells: as the rule left them: curves cut where they were stopped.
    """

    rule: str
    biased: bool
    scores: tuple[CellScore, ...]
    cells: tuple[CellSoFar, ...]

    @property
    def saved(self) -> float:
        """The share of tokens times parameters that was not trained."""
        return 1.0 - sum(score.trained for score in self.scores) / sum(score.total for score in self.scores)

    @property
    def winners_lost(self) -> int:
        """Cells whose best run was stopped."""
        return sum(score.lost for score in self.scores)

    @property
    def lr_ratios(self) -> list[float]:
        """LR of the best run kept over that of the best run, of each cell that has both."""
        return [s.kept_lr / s.winner_lr for s in self.scores if s.kept_lr is not None and s.winner_lr is not None]

    @property
    def basin_ratios(self) -> list[float]:
        """The same of fitted optima."""
        pairs = [(s.kept_basin_lr, s.basin_lr) for s in self.scores]
        return [kept / full for kept, full in pairs if kept is not None and full is not None]

    @property
    def basins_lost(self) -> int:
        """Cells whose optimum can be fitted to all runs and not to those that were kept."""
        return sum(s.basin_lr is not None and s.kept_basin_lr is None for s in self.scores)

    def to_json(self) -> Json:
        """Return plain JSON; biases in percent away from 1, None where the record has no LRs."""
        return {
            "rule": self.rule,
            "biased_rule": self.biased,
            "saved": self.saved,
            "winners_lost": self.winners_lost,
            "lr_bias": _bias(self.lr_ratios),
            "lr_error": _error(self.lr_ratios),
            "lr_bias_basin": _bias(self.basin_ratios),
            "lr_error_basin": _error(self.basin_ratios),
            "basins": len(self.basin_ratios) + self.basins_lost,
            "basins_lost": self.basins_lost,
            "regret": self.regret,
            "cells": [{**asdict(score), "lost": score.lost} for score in self.scores],
        }

    @property
    def regret(self) -> float | None:
        """Mean over cells of how far the best run kept ends above the best run, as a share of its loss."""
        pairs = [(s.kept_loss, s.winner_loss) for s in self.scores]
        found = [(kept - best) / abs(best) for kept, best in pairs if kept is not None and best]
        return statistics.fmean(found) if found else None


def score_cell(full: CellSoFar, left: CellSoFar, stopped: Sequence[Stopped], *, has_lrs: bool) -> CellScore:
    """Return the score of a cell from its runs in full and as they were left."""
    winner, kept = _best(full), _best(left)
    return CellScore(
        cell=full.name,
        recipe=full.recipe,
        horizon_tokens=full.horizon_tokens,
        runs=len(full.runs),
        stopped=tuple(stopped),
        trained=full.parameters * sum(run.done_tokens for run in left.runs),
        total=full.parameters * sum(run.done_tokens for run in full.runs),
        winner=winner.key if winner else None,
        kept=kept.key if kept else None,
        winner_loss=winner.final_loss if winner else None,
        kept_loss=kept.final_loss if kept else None,
        winner_lr=winner.lr if winner and has_lrs else None,
        kept_lr=kept.lr if kept and has_lrs else None,
        basin_lr=_basin(full) if has_lrs else None,
        kept_basin_lr=_basin(left) if has_lrs else None,
    )


def _best(cell: CellSoFar) -> RunSoFar | None:
    ended = [(loss, run.key, run) for run in cell.runs if (loss := run.final_loss) is not None and math.isfinite(loss)]
    return min(ended, key=lambda item: item[:2])[2] if ended else None


def _basin(cell: CellSoFar) -> float | None:
    results = [
        Result(run.key, run.lr, run.seed, run.final_loss, run.outcome or "failed")
        for run in cell.runs
        if run.final_loss is None or math.isfinite(run.final_loss)
    ]
    if len({result.lr for result in results}) < BASIN_LRS:
        return None
    found = find_optimum(results)
    return None if found.censored else found.lr


def _bias(ratios: Sequence[float]) -> float | None:
    """Return the geometric mean in percent away from 1."""
    return 100.0 * math.expm1(statistics.fmean(map(math.log, ratios))) if ratios else None


def _error(ratios: Sequence[float]) -> float | None:
    """Return the mean distance from 1 in percent, whichever way."""
    return 100.0 * math.expm1(statistics.fmean(abs(math.log(ratio)) for ratio in ratios)) if ratios else None
