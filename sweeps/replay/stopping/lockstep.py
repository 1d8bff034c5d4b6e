"""A stopper over recorded cells: the runs of a cell advance together, small cells before large ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from sweeps.errors import ConfigError
from sweeps.forecast.fitting import FittedCurveLaw
from sweeps.replay.stopping.scores import Stopped, StoppingReplay, score_cell
from sweeps.stopping import CellSoFar, Known, RunSoFar, Stopper

LOOKS = 40  # evenly spaced shares of the horizon at which a rule is asked
ROUNDING = 1e-9  # of the horizon


def replay_stopping(
    cells: Sequence[CellSoFar],
    stopper: Stopper,
    *,
    rule: str,
    law: FittedCurveLaw | None = None,
    given: Collection[str] = (),
    looks: int = LOOKS,
) -> StoppingReplay:
    """Return what a rule would have done to recorded cells.

    Args:
        cells: all runs ended.
        stopper: the rule.
        rule: its name.
        law: a curve law for it.
        given: keys of runs that are known in full from the start, as those that the law was fitted on.
        looks: at how many evenly spaced shares of the horizon the rule is asked, the horizon itself included.

    Raises:
        ConfigError: no cell in which two runs compete.
    """
    ordered = sorted((cell for cell in cells if len(cell.runs) > 1), key=by_size)
    if not ordered:
        raise ConfigError("replay stopping: no cell has two runs, so there is nothing to stop")
    known_lrs = any(run.curve is not None for cell in ordered for run in cell.runs)
    has_lrs = known_lrs or any(len({run.lr for run in cell.runs}) > 1 for cell in ordered)
    left: list[CellSoFar] = []
    scores = []
    for cell in ordered:
        ended, stopped = play(cell, stopper, Known(tuple(left), law), given=given, looks=looks)
        left.append(ended)
        scores.append(score_cell(cell, ended, stopped, has_lrs=has_lrs))
    return StoppingReplay(rule, stopper.biased, tuple(scores), tuple(left))


def by_size(cell: CellSoFar) -> tuple[float, str]:
    """Return what cells are ordered by: tokens times parameters, then the name."""
    return cell.horizon_tokens * cell.parameters, cell.name


def mark_of(cell: CellSoFar, share: float) -> float:
    """Return the tokens at a share of the horizon, a report there included."""
    return share * cell.horizon_tokens * (1 + ROUNDING)


def play(
    cell: CellSoFar, stopper: Stopper, known: Known, *, given: Collection[str] = (), looks: int = LOOKS
) -> tuple[CellSoFar, list[Stopped]]:
    """Return a cell as the rule leaves it, and what it stopped, in the order of time."""
    ends: dict[str, float] = {}
    stopped: list[Stopped] = []
    for look in range(1, looks):
        share = look / looks
        mark = mark_of(cell, share)
        runs = [run if run.key in given else _until(run, mark, ends.get(run.key)) for run in cell.runs]
        for stop in stopper.stops(replace(cell, runs=tuple(runs)), known):
            ends[stop.key] = mark
            stopped.append(Stopped(stop.key, share, stop.why))
    left = tuple(cut(run, ends[run.key], "stopped") if run.key in ends else run for run in cell.runs)
    return replace(cell, runs=left), stopped


def _until(run: RunSoFar, mark: float, end: float | None) -> RunSoFar:
    """Return a run as it is at a mark: stopped at `end`, over with by itself, or still going."""
    if end is not None:
        return cut(run, end, "stopped")
    if run.outcome != "finished" and run.done_tokens <= mark:
        return run
    return cut(run, mark, None)


def cut(run: RunSoFar, mark: float, outcome: str | None) -> RunSoFar:
    """Return a run with the reports up to a mark, ended so (None: still running)."""
    seen_P = run.tokens <= mark
    curve = run.curve.where(np.arange(len(run.curve)) < seen_P.sum()) if run.curve is not None else None
    return replace(run, tokens=run.tokens[seen_P], loss=run.loss[seen_P], outcome=outcome, curve=curve)
