"""The estimator by a basin's posterior: `asymmetric` and `quadratic` (docs/laws.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.basin import BasinPosterior, Curvature, Points, Shape, basin_posterior
from sweeps.optima.records import Optimum
from sweeps.optima.student import two_sided
from sweeps.optima.tried import Tried, edge_of, noise_of, window_of

MARGIN = math.log(4.0)  # the minimum is sought this far beyond the LRs tried (in ln lr); assumed


@dataclass(frozen=True, slots=True)
class Known:
    """What other cells say: the noise of a height, how curved basins are, and how lopsided."""

    noise_sd: float | None
    curvature: Curvature | None
    shape: Shape


@dataclass(frozen=True, slots=True)
class Basin:
    """The posterior of the minimum of a LINEX basin whose asymmetry has this prior."""

    shape: Shape

    def find(self, tried: Tried, known: Known, *, confidence: float) -> Optimum:
        """Return the optimum, or why the losses have no minimum."""
        posterior, used = posterior_of(tried, shape=known.shape, noise_sd=known.noise_sd, curvature=known.curvature)
        low, high = posterior.interval(confidence)
        inside = tried.log_lr[0] < posterior.mean < tried.log_lr[-1]
        if not (posterior.convex and inside and high - low < tried.log_lr[-1] - tried.log_lr[0]):
            return edge_of(tried, "no minimum")
        return as_optimum(posterior, tried, used, confidence=confidence)


def posterior_of(
    tried: Tried, *, shape: Shape, noise_sd: float | None, curvature: Curvature | None = None
) -> tuple[BasinPosterior, NDArray[np.intp]]:
    """Return the posterior of the basin's minimum, and the indices of the LRs fitted (three at least are needed)."""
    used = window_of(tried)
    noise = noise_of(tried, used, noise_sd=noise_sd)
    below, above = tried.bounds
    support = (
        float(tried.log_lr[0]) - MARGIN if below is None else below,
        float(tried.log_lr[-1]) + MARGIN if above is None else above,
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
