"""How noisy a sweep is: of the loss and of lr* between seeds, against what the basins show, and along the curves.

What to report of variance is that of Madaan et al., "Quantifying Variance in Evaluation Benchmarks"
(arXiv:2406.10229): seed variance, signal to noise, monotonicity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.optimum import find_optimum
from sweeps.optima.pooled import all_positive, pooled_curvature, pooled_noise
from sweeps.optima.records import CellOptimum
from sweeps.optima.tried import SAME, WINDOW, tabulate

if TYPE_CHECKING:
    from sweeps.curves import Curve

Floats = NDArray[np.float64]

BASIN = 3.0  # coefficients of a basin: so many times the variance of a mean is that of its level at the minimum
SLACK = 1e-6  # of an LR on the border of a window


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepNoise:
    """How noisy a sweep's cells are; losses as a share of themselves where all are positive (`relative`), else nats.

    Attributes:
        loss_sd: of the final loss between paired seeds, offsets removed; with one seed, the scatter about a cubic.
        offset_sd: of the offset that a seed adds at every LR of a cell, which no comparison of LRs sees; None with one
            seed.
        log_lr_sd: of ln lr* of a cell between seeds, each seed's optimum found by itself; None without two such seeds.
        log_lr_dof: degrees of freedom behind log_lr_sd.
        signal: how far the loss rises above the best within a factor 4 of it in LR, the median over cells.
        relative: see above.
    """

    loss_sd: float | None
    offset_sd: float | None
    log_lr_sd: float | None
    log_lr_dof: int
    signal: float | None
    relative: bool

    @property
    def signal_to_noise(self) -> float | None:
        """What the basins show over the sd between seeds."""
        return self.signal / self.loss_sd if self.signal is not None and self.loss_sd else None


def sweep_noise(cells: Sequence[CellOptimum], *, estimator: str = "asymmetric") -> SweepNoise:
    """Return how noisy the cells are; the cells' results are looked at, and their fitted basins where they have them.

    Raises:
        ConfigError: `estimator` is not in ESTIMATORS.
    """
    loss_sd, relative = pooled_noise(cells), all_positive(cells)
    log_lr_sd, dof = _log_lr_sd(cells, estimator=estimator, loss_sd=loss_sd)
    rises = [x for x in (_rise(cell, relative=relative) for cell in cells) if x is not None]
    return SweepNoise(
        loss_sd=loss_sd,
        offset_sd=_offset_sd(cells, relative=relative),
        log_lr_sd=log_lr_sd,
        log_lr_dof=dof,
        signal=float(np.median(rises)) if rises else None,
        relative=relative,
    )


def monotonicity(curves: Iterable[Curve], *, metric: str) -> tuple[float, ...]:
    """Return of each curve the share of its pairs of reports of which the later one is lower, ascending.

    1: it falls at every report; 0.5: no trend. Pairs of equal value count half. Curves of under two reports are left
    out.
    """
    shares = []
    for curve in curves:
        _, values = curve.present(metric)
        values = values[np.isfinite(values)]
        if len(values) > 1:
            later, earlier = np.tril_indices(len(values), -1)
            falls = values[later] < values[earlier]
            shares.append(float(np.mean(falls + 0.5 * (values[later] == values[earlier]))))
    return tuple(sorted(shares))


def _log_lr_sd(cells: Sequence[CellOptimum], *, estimator: str, loss_sd: float | None) -> tuple[float | None, int]:
    """Return the sd of ln lr* between seeds, pooled over cells, and its degrees of freedom."""
    curvature = pooled_curvature([c.optimum.basin for c in cells])
    relative, total, dof = all_positive(cells), 0.0, 0
    for cell in cells:
        found = []
        for seed in sorted({r.seed for r in cell.results}):
            own = [replace(r, seed=0) for r in cell.results if r.seed == seed]
            optimum = find_optimum(own, estimator=estimator, noise_sd=loss_sd, curvature=curvature, relative=relative)
            if optimum.censored is None and optimum.lr is not None:
                found.append(math.log(optimum.lr))
        if len(found) > 1:
            total, dof = total + float(np.var(found)) * len(found), dof + len(found) - 1
    return (math.sqrt(total / dof), dof) if dof else (None, 0)


def _offset_sd(cells: Sequence[CellOptimum], *, relative: bool) -> float | None:
    """Return the sd of a seed's mean loss in a cell about that of all, at the LRs that every seed finished."""
    total, dof = 0.0, 0
    for cell in cells:
        lrs = sorted({r.lr for r in cell.results})
        seeds = sorted({r.seed for r in cell.results})
        loss_LS = np.full((len(lrs), len(seeds)), np.nan)
        for r in cell.results:
            if r.loss is not None:
                loss_LS[lrs.index(r.lr), seeds.index(r.seed)] = r.loss
        whole_LS = loss_LS[np.isfinite(loss_LS).all(axis=1)]
        if len(whole_LS) and len(seeds) > 1:
            level_S = np.log(whole_LS).mean(axis=0) if relative else whole_LS.mean(axis=0)
            total, dof = total + float(np.var(level_S)) * len(seeds), dof + len(seeds) - 1
    return math.sqrt(total / dof) if dof else None


def _rise(cell: CellOptimum, *, relative: bool) -> float | None:
    """Return how far the highest mean loss within WINDOW of the best LR lies above the lowest."""
    tried = tabulate(cell.results, relative=relative)
    if tried is None:
        return None
    near = np.isfinite(tried.loss) & (np.abs(tried.log_lr - tried.log_lr[tried.best]) <= WINDOW + SAME)
    height: Floats = tried.height[near]
    return float(np.ptp(height)) if len(height) > 1 else None


@dataclass(frozen=True, slots=True)
class Minimum:
    """The loss at a cell's optimum, and its error.

    Attributes:
        loss: by the fitted basin, the mean over seeds.
        by_seed: the same of each seed: its offset added.
        offset_sd: between seeds; None with one seed, and where only the mean is known.
        fit_sd: of the basin's level, the offsets of seeds apart; None where the noise is not known.
    """

    loss: float
    by_seed: Mapping[int, float]
    offset_sd: float | None
    fit_sd: float | None


def minimum_of(cell: CellOptimum) -> Minimum | None:
    """Return the loss at the optimum of a cell, with its error; None where the cell is censored.

    A seed's offset is its mean loss less that of all seeds, at the LRs within the fitted window that all finished.
    """
    optimum = cell.optimum
    if optimum.censored is not None or optimum.loss is None:
        return None
    low, high = optimum.window or (0.0, math.inf)
    by_lr: dict[float, dict[int, float]] = {}
    for r in cell.results:
        if r.loss is not None and low * (1.0 - SLACK) <= r.lr <= high * (1.0 + SLACK):
            by_lr.setdefault(r.lr, {})[r.seed] = r.loss
    seeds = sorted({seed for losses in by_lr.values() for seed in losses})
    whole_LS = np.array([[losses[s] for s in seeds] for losses in by_lr.values() if len(losses) == len(seeds)])
    points = sum(map(len, by_lr.values()))
    fit_sd = None
    if optimum.noise_sd is not None and points:
        noise = optimum.noise_sd * (optimum.loss if optimum.relative else 1.0)
        fit_sd = noise * math.sqrt(BASIN / points)
    if not len(whole_LS):
        return Minimum(optimum.loss, {}, None, fit_sd)
    offset_S = whole_LS.mean(axis=0) - whole_LS.mean()
    return Minimum(
        loss=optimum.loss,
        by_seed={s: optimum.loss + float(x) for s, x in zip(seeds, offset_S, strict=True)},
        offset_sd=float(offset_S.std(ddof=1)) if len(seeds) > 1 else None,
        fit_sd=fit_sd,
    )
