"""A cell's results by LR, and what they say before any basin is fitted: which are near the best, and how noisy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.basin import Noise
from sweeps.optima.records import Optimum
from sweeps.spec import Result

Floats = NDArray[np.float64]

WINDOW = math.log(4.0)  # the basin is fitted within this much of the best LR tried (in ln lr); assumed
SAME = 1e-6  # ln lr closer than this are one LR
POOLED_DOF = 4.0  # weight of the noise of other cells against a cell's own; noise differs between cells; assumed
LONE_NOISE = Noise(0.01, 1.0)  # of the loss; one curve an LR and nothing else known: worth one observation; assumed
NOISE_FLOOR = 1e-5  # of the loss; float32 losses are no better


@dataclass(frozen=True)
class Tried:
    """A cell's results by LR.

    Attributes:
        log_lr: every LR that says something (finished, diverged or stopped), ascending, shape [L].
        loss: mean over seeds, their offsets removed, shape [L]; inf where a seed diverged or all were stopped.
        height: what a basin is fitted to: ln loss, or the loss itself where not all are positive. Shape [L].
        count: seeds behind each loss, shape [L].
        diverged: whether a seed diverged, shape [L].
        residuals: of the height: less LR mean less seed offset, shape [L, S]; nan where there is no loss.
        relative: whether the height is ln loss.
    """

    log_lr: Floats
    loss: Floats
    height: Floats
    count: Floats
    diverged: NDArray[np.bool_]
    residuals: Floats
    relative: bool

    @property
    def best(self) -> int:
        """The index of the lowest loss."""
        return int(np.argmin(self.loss))

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The nearest ln LRs below and above the best that it cannot lie beyond: stopped either side, diverged above.

        A run is stopped as it would end above another: a basin that is higher there than here has its minimum on this
        side.
        """
        best = self.log_lr[self.best]
        above = self.log_lr[np.isinf(self.loss) & (self.log_lr > best)]
        below = self.log_lr[np.isinf(self.loss) & ~self.diverged & (self.log_lr < best)]
        return float(below[-1]) if len(below) else None, float(above[0]) if len(above) else None


def tabulate(results: Sequence[Result], *, relative: bool = True) -> Tried | None:
    """Return the results by LR, or None if no trial gave a loss. Failed trials say nothing.

    The height is ln loss where that is wanted (`relative`) and all losses are positive.
    """
    told = [r for r in results if r.outcome != "failed"]
    if not any(r.loss is not None and r.outcome != "diverged" for r in told):
        return None
    raw = np.array(sorted({math.log(r.lr) for r in told}))
    log_lr = raw[np.concatenate(([True], np.diff(raw) > SAME))]
    seeds = sorted({r.seed for r in told})
    loss = np.full((len(log_lr), len(seeds)), np.nan)
    diverged = np.zeros(len(log_lr), dtype=np.bool_)
    for r in sorted(told, key=lambda r: (r.lr, r.seed, r.key)):
        row = int(np.argmin(np.abs(log_lr - math.log(r.lr))))
        if r.outcome == "diverged":
            diverged[row] = True
        elif r.loss is not None:
            loss[row, seeds.index(r.seed)] = r.loss
    loss[diverged] = np.nan
    if not np.isfinite(loss).any():
        return None
    means, residuals = _two_way(loss)
    relative = relative and bool(np.nanmin(loss) > 0.0 and means.min() > 0.0)
    height = means
    if relative:
        height = np.log(means)
        _, residuals = _two_way(loss / means[:, None])
    count = np.count_nonzero(np.isfinite(loss), axis=1).astype(np.float64)
    return Tried(log_lr, means, height, count, diverged, residuals, relative)


def reason_censored(tried: Tried) -> str | None:
    """Return why no basin can be fitted around the best LR tried, or None."""
    best = tried.best
    if len(tried.log_lr) < 3:
        return "too few points"
    if best == 0:
        return "edge low"
    if best == len(tried.log_lr) - 1:
        return "edge high"
    return "too few points" if len(window_of(tried)) < 3 else None


def noise_of(tried: Tried, used: NDArray[np.intp], *, noise_sd: float | None) -> Noise:
    """Return what the seeds at the LRs used say of the noise of a height, weighed with that of other cells."""
    residuals = tried.residuals[used]
    seen = np.isfinite(residuals)
    seeds = int(np.count_nonzero(seen.any(axis=0)))
    dof = max(0, int(np.count_nonzero(seen)) - len(used) - seeds + 1)
    own = float(np.sum(np.square(residuals[seen]))) if dof else 0.0
    prior = LONE_NOISE
    if noise_sd is not None:
        prior = Noise(max(noise_sd, NOISE_FLOOR), POOLED_DOF)
    elif dof:
        prior = Noise(math.sqrt(max(own / dof, NOISE_FLOOR**2)), 1.0)
    total = prior.dof + dof
    return Noise(math.sqrt(max((prior.dof * prior.sd**2 + own) / total, NOISE_FLOOR**2)), total)


def window_of(tried: Tried) -> NDArray[np.intp]:
    """Return the LRs to fit: finished, within WINDOW of the best, and its three nearest at least."""
    distance = np.abs(tried.log_lr - tried.log_lr[tried.best])
    finite = np.isfinite(tried.loss)
    if np.count_nonzero(finite) < 3:
        return np.flatnonzero(finite)
    third = np.sort(distance[finite])[2]
    return np.flatnonzero(finite & (distance <= max(WINDOW, third) + SAME))


def edge_of(tried: Tried, reason: str) -> Optimum:
    """Return the record of a censored optimum: the best LR tried."""
    best = tried.best
    lr = math.exp(float(tried.log_lr[best]))
    return Optimum(lr, None, None, None, None, reason, loss=float(tried.loss[best]))


def _two_way(loss: Floats) -> tuple[Floats, Floats]:
    """Return LR means [L] (inf where none) and residuals [L, S] of loss = LR + seed, by least squares."""
    rows, columns = np.nonzero(np.isfinite(loss))
    height, width = loss.shape
    design = np.zeros((len(rows), height + width))
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), height + columns] = 1.0
    values = loss[rows, columns]
    level = float(values.mean())
    effects = np.linalg.lstsq(design, values - level, rcond=None)[0]  # the shortest solution: unique
    seen = np.isfinite(loss).any(axis=1)
    means = np.where(seen, level + effects[:height] + effects[height:].mean(), np.inf)
    residuals = np.full(loss.shape, np.nan)
    residuals[rows, columns] = values - level - design @ effects
    return means, residuals
