"""The best LR of a cell from its (LR, seed, loss) points: whether there is one, and its interval (docs/laws.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import unknown_name
from sweeps.optima.basin import BasinPosterior, Curvature, Noise, Points, Shape, basin_posterior
from sweeps.optima.records import Optimum
from sweeps.optima.student import two_sided
from sweeps.spec import Result

Floats = NDArray[np.float64]

WINDOW = math.log(4.0)  # the basin is fitted within this much of the best LR tried (in ln lr); assumed
MARGIN = math.log(4.0)  # and its minimum sought this far beyond the LRs tried; assumed
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


def find_optimum(
    results: Sequence[Result],
    *,
    estimator: str = "asymmetric",
    confidence: float = 0.95,
    noise_sd: float | None = None,
    curvature: Curvature | None = None,
    shape: Shape | None = None,
    relative: bool = True,
) -> Optimum:
    """Return the optimum of one cell, with its interval, or censored with the reason.

    Seeds are paired: a seed's offset, the same at all LRs, is removed. Diverged results bracket the optimum and are
    not fitted. `noise_sd` is the noise of other cells (`pooled_noise`), in nats; a cell's own seeds and its scatter
    about the basin are weighed with it. `curvature` and `shape` are those of other cells (`pooled_curvature`,
    `pooled_shape`); `shape` stands for the estimator's. `relative` as in `tabulate`.

    Raises:
        ConfigError: `estimator` is not in ESTIMATORS.
    """
    shape = shape or shape_of(estimator)
    tried = tabulate(results, relative=relative)
    if tried is None:
        return Optimum(None, None, None, None, None, "too few points")
    reason = _censored(tried)
    if reason is not None:
        return _edge(tried, reason)
    posterior, used = posterior_of(tried, shape=shape, noise_sd=noise_sd, curvature=curvature)
    low, high = posterior.interval(confidence)
    inside = tried.log_lr[0] < posterior.mean < tried.log_lr[-1]
    if not (posterior.convex and inside and high - low < tried.log_lr[-1] - tried.log_lr[0]):
        return _edge(tried, "no minimum")
    return as_optimum(posterior, tried, used, confidence=confidence)


def posterior_of(
    tried: Tried, *, shape: Shape, noise_sd: float | None, curvature: Curvature | None = None
) -> tuple[BasinPosterior, NDArray[np.intp]]:
    """Return the posterior of the basin's minimum, and the indices of the LRs fitted (three at least are needed)."""
    used = _window(tried)
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
    noise = Noise(math.sqrt(max((prior.dof * prior.sd**2 + own) / total, NOISE_FLOOR**2)), total)
    blown = tried.log_lr[(tried.log_lr > tried.log_lr[tried.best]) & tried.diverged]
    support = (
        float(tried.log_lr[0]) - MARGIN,
        float(blown[0]) if len(blown) else float(tried.log_lr[-1]) + MARGIN,
    )
    points = Points(tried.log_lr[used], tried.height[used], tried.count[used])
    return basin_posterior(points, noise=noise, support=support, shape=shape, curvature=curvature), used


def as_optimum(posterior: BasinPosterior, tried: Tried, used: NDArray[np.intp], *, confidence: float) -> Optimum:
    """Return the record of an interior optimum."""
    log_lr = tried.log_lr[used]
    low, high = posterior.interval(confidence)
    return Optimum(
        lr=math.exp(posterior.mean),
        low=math.exp(low),
        high=math.exp(high),
        log_sd=0.5 * (high - low) / two_sided(confidence, dof=posterior.dof),
        dof=posterior.dof,
        censored=None,
        loss=math.exp(posterior.loss) if tried.relative else posterior.loss,
        noise_sd=posterior.noise_sd,
        basin=posterior.basin,
        centre=posterior.mean,
        window=(math.exp(float(log_lr[0])), math.exp(float(log_lr[-1]))),
        form_sd=posterior.form_sd,
        asymmetry=posterior.asymmetry,
        relative=tried.relative,
    )


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


def shape_of(estimator: str) -> Shape:
    """Return the prior of an estimator's asymmetry. Raises ConfigError."""
    try:
        return ESTIMATORS[estimator]
    except KeyError:
        raise unknown_name("law.estimator", estimator, ESTIMATORS, "estimator") from None


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


def _censored(tried: Tried) -> str | None:
    """Return why no basin can be fitted around the best LR tried, or None."""
    best = tried.best
    if len(tried.log_lr) < 3:
        return "too few points"
    if best == 0:
        return "edge low"
    if best == len(tried.log_lr) - 1:
        return "edge high"
    return "too few points" if len(_window(tried)) < 3 else None


def _window(tried: Tried) -> NDArray[np.intp]:
    """Return the LRs to fit: finished, within WINDOW of the best, and its three nearest at least."""
    distance = np.abs(tried.log_lr - tried.log_lr[tried.best])
    finite = np.isfinite(tried.loss)
    if np.count_nonzero(finite) < 3:
        return np.flatnonzero(finite)
    third = np.sort(distance[finite])[2]
    return np.flatnonzero(finite & (distance <= max(WINDOW, third) + SAME))


def _edge(tried: Tried, reason: str) -> Optimum:
    best = tried.best
    lr = math.exp(float(tried.log_lr[best]))
    return Optimum(lr, None, None, None, None, reason, loss=float(tried.loss[best]))


ESTIMATORS: Mapping[str, Shape] = {
    # The third over the second derivative of the loss in ln lr, at the optimum: median 0.72, quartiles 0.36 and 1.18 in
    # 115 (N, D, B) slices of the dense runs of Step Law (arXiv:2503.04715); measured.
    "asymmetric": Shape(0.7, 0.6, 0.5),
    "quadratic": Shape(0.0, 0.0),
}
