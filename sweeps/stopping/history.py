"""What a run will end with, from what runs of earlier cells of its recipe still gained from the same share on.

The *gain* of a finished run is its final height less its height at a share of the horizon (height: ln loss, or the loss
itself where some are not positive). Cells of one recipe are alike once LRs are counted from the cell's best, so a run's
gain is read off those of earlier cells: a plane in ln (lr / best lr) and ln (horizon, batch, parameters), fitted to the
runs near in LR. The best LR of the cell at hand is not known yet; it is foreseen from those of earlier cells.

How far this is off is measured, not assumed: each earlier cell is predicted in the same way from those before it, and
the root mean square of those errors is the standard deviation, with one degree of freedom a cell so predicted. All that
the plane leaves out is in it: curvature, a best LR foreseen wrongly, noise. Runs of one cell and seed err alike, so of
a difference between two such runs the error is measured on differences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.optimum import find_optimum
from sweeps.optima.student import t_quantile
from sweeps.spec import Result
from sweeps.stopping.records import CellSoFar, RunSoFar

# R finished runs, Q runs asked about, E earlier cells

Floats = NDArray[np.float64]

WIDTH = 0.5  # of the plane's reach in ln lr, and of that over which errors are pooled; chosen on benchmarks/stopping.py
REACH = 0.75  # beyond the LRs tried, in ln lr; further out nothing is said; assumed
FIRST = 2  # cells before the first that is predicted: with fewer no slope by the horizon is known
PRIOR_RUNS = 1.0  # of the usual error that the error near an LR is weighed with; chosen on benchmarks/stopping.py
LEAST_RUNS = 4  # finished, of a cell that is to teach; assumed
RIDGE = 0.01  # (noise / sd of a slope of the gain)^2: holds a slope in where cells do not differ; assumed
SLOPE_SD = 0.5  # of ln best lr against ln tokens, batch and parameters, about 0: published laws reach it; assumed
CENTRE_SD = 0.2  # of a best LR about its law; assumed
EDGE_SD = 0.7  # of a best LR at the edge of what was tried; assumed
LEAST_SD = 1e-4  # of a height: no seed repeats a loss better; assumed


@dataclass(frozen=True, eq=False)
class Finals:
    """The heights that running runs will end with.

    Attributes:
        keys: of the runs, Q of them.
        height: predicted, [Q].
        half: by how much a run may end lower or higher, at the confidence asked for (one-sided), [Q].
        apart: the same of the difference between two of them, [Q, Q].
    """

    keys: tuple[str, ...]
    height: Floats
    half: Floats
    apart: Floats

    @classmethod
    def independent(cls, keys: Sequence[str], height: Sequence[float], half: Sequence[float]) -> Finals:
        """Return predictions whose errors have nothing in common."""
        half_Q = np.array(half, dtype=np.float64)
        apart_QQ = np.hypot(half_Q[:, None], half_Q)
        return cls(tuple(keys), np.array(height, dtype=np.float64), half_Q, apart_QQ)


@dataclass(frozen=True, eq=False)
class Lesson:
    """An earlier cell with its finished runs, ln of its best LR, and how sure that is."""

    cell: CellSoFar
    runs: tuple[RunSoFar, ...]
    centre: float
    centre_sd: float


@dataclass(frozen=True, eq=False)
class Gains:
    """ln lr, gain and seed of finished runs of one cell, [R]."""

    log_lr: Floats
    gain: Floats
    seed: Floats


@dataclass(frozen=True, eq=False)
class Errors:
    """How far the predictions of one cell and seed were off, and at which ln (lr / best lr foreseen), [R]."""

    x: Floats
    off: Floats


def is_relative(cells: Sequence[CellSoFar]) -> bool:
    """Return whether all losses are positive, so that heights are ln loss."""
    return all(bool(np.all(run.loss[np.isfinite(run.loss)] > 0)) for cell in cells for run in cell.runs)


def height_of(loss: float, *, relative: bool) -> float:
    """Return ln loss, or the loss."""
    return math.log(loss) if relative else loss


def lessons_of(cells: Sequence[CellSoFar]) -> tuple[Lesson, ...]:
    """Return what ended cells teach, in their order; those with too few finished runs are left out."""
    return tuple(lesson for cell in cells if (lesson := _lesson(cell)) is not None)


@functools.lru_cache(maxsize=1024)  # an ended cell does not change, and is asked about at every report of the next
def _lesson(cell: CellSoFar) -> Lesson | None:
    runs = tuple(run for run in cell.runs if run.final_loss is not None and math.isfinite(run.final_loss))
    if len(runs) < LEAST_RUNS:
        return None
    ended = [run for run in cell.runs if run.final_loss is None or math.isfinite(run.final_loss)]
    found = find_optimum([Result(run.key, run.lr, run.seed, run.final_loss, run.outcome or "failed") for run in ended])
    assert found.lr is not None  # some runs finished
    return Lesson(cell, runs, math.log(found.lr), CENTRE_SD if found.censored is None else EDGE_SD)


def predict_finals(
    cell: CellSoFar,
    runs: Sequence[RunSoFar],
    lessons: Sequence[Lesson],
    *,
    share: float,
    confidence: float,
    relative: bool,
) -> Finals:
    """Return what running runs that are at this share will end with; a run that nothing is known of is left out."""
    gains, errors = _learnt(tuple(lessons), share, relative)
    dof = sum(bool(one) for one in errors)
    kept = [run for run in runs if math.isfinite(run.loss[-1])]
    if not dof or not kept:
        return Finals.independent((), (), ())
    x_Q = np.log([run.lr for run in kept]) - _foreseen(cell, lessons)
    height_Q = _plane(x_Q, cell, lessons, gains) + [height_of(float(run.loss[-1]), relative=relative) for run in kept]
    sd_Q, apart_QQ = _spread(x_Q, [error for one in errors for error in one])
    seed_Q = np.array([run.seed for run in kept])
    apart_QQ = np.where(seed_Q[:, None] == seed_Q, apart_QQ, np.hypot(sd_Q[:, None], sd_Q))
    said_Q = np.isfinite(height_Q) & np.isfinite(sd_Q)
    wide = t_quantile(confidence, dof=float(dof))
    return Finals(
        tuple(run.key for run, said in zip(kept, said_Q, strict=True) if said),
        height_Q[said_Q],
        wide * sd_Q[said_Q],
        wide * apart_QQ[np.ix_(said_Q, said_Q)],
    )


@functools.lru_cache(maxsize=64)  # it is asked at every report of a cell, and changes when another one has ended
def _learnt(lessons: tuple[Lesson, ...], share: float, relative: bool) -> tuple[list[Gains], list[list[Errors]]]:
    """Return what each cell gained from this share on, and how far each was off when predicted from those before it."""
    gains = [_gains(lesson, share, relative=relative) for lesson in lessons]
    return gains, [_errors(lessons, gains, n) for n in range(FIRST, len(lessons))]


def _gains(lesson: Lesson, share: float, *, relative: bool) -> Gains:
    """Return the gains from this share on, of the runs that had a loss there."""
    mark = share * lesson.cell.horizon_tokens
    found = []
    for run in lesson.runs:
        loss = run.loss_at(min(mark, run.done_tokens))
        if loss is not None and math.isfinite(loss):
            gain = height_of(float(run.loss[-1]), relative=relative) - height_of(loss, relative=relative)
            found.append((math.log(run.lr), gain, float(run.seed)))
    rows_R3 = np.array(found, dtype=np.float64).reshape(-1, 3)
    return Gains(rows_R3[:, 0], rows_R3[:, 1], rows_R3[:, 2])


def _errors(lessons: Sequence[Lesson], gains: Sequence[Gains], n: int) -> list[Errors]:
    """Return the errors of predicting a cell from those before it, for each seed."""
    x_R = gains[n].log_lr - _foreseen(lessons[n].cell, lessons[:n])
    off_R = _plane(x_R, lessons[n].cell, lessons[:n], gains[:n]) - gains[n].gain
    found = []
    for seed in np.unique(gains[n].seed):
        kept_R = (gains[n].seed == seed) & np.isfinite(off_R)
        if kept_R.any():
            found.append(Errors(x_R[kept_R], off_R[kept_R]))
    return found


def _spread(x_Q: Floats, errors: Sequence[Errors]) -> tuple[Floats, Floats]:
    """Return the root mean square errors near x, [Q], and those of differences within a cell and seed, [Q, Q].

    What was measured anywhere counts as PRIOR_RUNS measured here.
    """
    one_Q, count_Q = _shrunk([error.off for error in errors], len(x_Q))
    two_QQ, pairs_QQ = np.outer(one_Q, count_Q) * 2, np.outer(count_Q, count_Q)
    for error in errors:
        near_QR = _kernel(x_Q, error.x)
        weight_Q, sum_Q, square_Q = near_QR.sum(axis=1), near_QR @ error.off, near_QR @ error.off**2
        one_Q += square_Q
        count_Q += weight_Q
        two_QQ += np.outer(square_Q, weight_Q) + np.outer(weight_Q, square_Q) - 2 * np.outer(sum_Q, sum_Q)
        pairs_QQ += np.outer(weight_Q, weight_Q)
    sd_Q, apart_QQ = np.sqrt(one_Q / count_Q), np.sqrt(np.maximum(two_QQ, 0.0) / pairs_QQ)
    return np.maximum(sd_Q, LEAST_SD), np.maximum(apart_QQ, LEAST_SD)


def _shrunk(off: Sequence[Floats], asked: int) -> tuple[Floats, Floats]:
    """Return the sum of squares and the count that PRIOR_RUNS errors of the usual size have, [Q] each."""
    usual = float(np.mean(np.concatenate(off) ** 2))
    return np.full(asked, PRIOR_RUNS * usual), np.full(asked, PRIOR_RUNS)


def _plane(x_Q: Floats, cell: CellSoFar, lessons: Sequence[Lesson], gains: Sequence[Gains]) -> Floats:
    """Return the gain at ln (lr / best lr) in a cell, by the plane through earlier ones, [Q]; nan beyond REACH."""
    pairs = list(zip(lessons, gains, strict=True))
    x_R = np.concatenate([gain.log_lr - one.centre for one, gain in pairs])
    if not len(x_R):
        return np.full(len(x_Q), np.nan)
    away_R3 = np.concatenate([np.tile(one.cell.place - cell.place, (len(gain.gain), 1)) for one, gain in pairs])
    slopes_QR4 = np.concatenate(
        [(x_R - x_Q[:, None])[..., None], np.broadcast_to(away_R3, (len(x_Q), *away_R3.shape))], axis=2
    )
    design_QR5 = np.concatenate([np.ones((*slopes_QR4.shape[:2], 1)), slopes_QR4], axis=2)
    weighted_Q5R = np.swapaxes(design_QR5 * _kernel(x_Q, x_R)[..., None], 1, 2)
    normal_Q55 = weighted_Q5R @ design_QR5 + np.diag([1e-9, 1e-6, RIDGE, RIDGE, RIDGE])  # solvable for one run too
    gain_R = np.concatenate([gain.gain for gain in gains])
    found_Q = np.linalg.solve(normal_Q55, (weighted_Q5R @ gain_R)[..., None])[:, 0, 0]
    outside_Q = (x_Q < x_R.min() - REACH) | (x_Q > x_R.max() + REACH)
    return np.where(outside_Q, np.nan, found_Q)


def _kernel(x_Q: Floats, x_R: Floats) -> Floats:
    return np.asarray(np.exp(-0.5 * ((x_Q[:, None] - x_R) / WIDTH) ** 2), dtype=np.float64)


def _foreseen(cell: CellSoFar, lessons: Sequence[Lesson]) -> float:
    """Return ln of the best LR that earlier cells promise: a line in ln (tokens, batch, parameters), slopes held in."""
    away_E3 = np.array([lesson.cell.place - cell.place for lesson in lessons])
    weight_E = np.array([1 / lesson.centre_sd for lesson in lessons])
    design = np.column_stack([np.ones(len(lessons)), away_E3]) * weight_E[:, None]
    prior = np.hstack([np.zeros((3, 1)), np.eye(3) / SLOPE_SD])
    centre_E = np.array([lesson.centre for lesson in lessons])
    level = float(centre_E.mean())
    wanted = np.concatenate([(centre_E - level) * weight_E, np.zeros(3)])
    return level + float(np.linalg.lstsq(np.concatenate([design, prior]), wanted, rcond=None)[0][0])
