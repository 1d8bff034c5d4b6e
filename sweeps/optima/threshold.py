"""The estimator by a threshold: the mean ln lr of all that is nearly as good as the best, Step Law's recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.basin import Shape
from sweeps.optima.linex import Known
from sweeps.optima.records import Optimum
from sweeps.optima.student import two_sided
from sweeps.optima.tried import SAME, Floats, Tried, edge_of, noise_of, window_of

SEED = 2503  # of the noise drawn on the losses: any number, the same for every cell
DRAWS = 400
SHARED = 0.5  # of what the gaps between LRs leave open, in cells tried at the same LRs; assumed


@dataclass(frozen=True, slots=True)
class Threshold:
    """The mean ln lr of the LRs whose loss is below (1 + share) x the lowest (Step Law, arXiv:2503.04715).

    Attributes:
        share: of the loss; 0.0025 there; published.
        shape: prior of the asymmetry of basins: what the middle of a level set misses the minimum by, and what
            held-out checks take.
    """

    shape: Shape
    share: float = 0.0025

    def find(self, tried: Tried, known: Known, *, confidence: float) -> Optimum:
        """Return the optimum, or which edge the nearly best LRs run into.

        Three errors are in its interval: the LRs stand apart, so that where the losses cross the threshold is known to
        a gap at each end (uniform); noise, drawn on the losses anew; and the asymmetry k of the basin: the middle of
        a level set of half-width w lies k w^2 / 6 below the minimum.
        """
        kept = np.flatnonzero(self._kept(tried.height, tried))
        if kept[0] == 0 or kept[-1] == len(tried.log_lr) - 1:
            return edge_of(tried, "edge low" if kept[0] == 0 else "edge high")
        below, above = kept[0] - 1, kept[-1] + 1
        gap_low, gap_high = tried.log_lr[kept[0]] - tried.log_lr[below], tried.log_lr[above] - tried.log_lr[kept[-1]]
        width = 0.25 * float(tried.log_lr[above] - tried.log_lr[below] + tried.log_lr[kept[-1]] - tried.log_lr[kept[0]])
        used = window_of(tried)
        noise = noise_of(tried, used, noise_sd=known.noise_sd)
        apart = float(gap_low**2 + gap_high**2) / 48.0
        variance = apart
        variance += self._drawn(tried, noise.sd)
        variance += (self.shape.mean**2 + self.shape.sd**2) * (width**2 / 6.0) ** 2
        centre, log_sd = float(np.mean(tried.log_lr[kept])), math.sqrt(variance)
        half = two_sided(confidence, dof=noise.dof) * log_sd
        if 2.0 * half >= tried.log_lr[-1] - tried.log_lr[0]:
            return edge_of(tried, "no minimum")
        loss = float(np.interp(centre, tried.log_lr[kept], tried.loss[kept]))
        return Optimum(
            lr=math.exp(centre),
            low=math.exp(centre - half),
            high=math.exp(centre + half),
            log_sd=log_sd,
            dof=noise.dof,
            censored=None,
            loss=loss,
            noise_sd=noise.sd,
            # the parabola that reaches the threshold at both ends of the level set
            basin=(math.log(loss) if tried.relative else loss, 0.0, float(self._rise(loss, tried)) / width**2),
            centre=centre,
            window=(math.exp(float(tried.log_lr[used[0]])), math.exp(float(tried.log_lr[used[-1]]))),
            # the recipe corrects for no k, and cells that share a grid err by it together
            form_sd=math.hypot(
                math.hypot(self.shape.mean, self.shape.common) * width**2 / 6.0, SHARED * math.sqrt(apart)
            ),
            relative=tried.relative,
        )

    def _kept(self, height: Floats, tried: Tried) -> NDArray[np.bool_]:
        """Return which heights are below the threshold over their lowest; shape [..., L]."""
        lowest = np.min(height, axis=-1, keepdims=True)
        return np.asarray(height <= lowest + self._rise(lowest, tried) + SAME * 1e-6)

    def _rise(self, lowest: Floats | float, tried: Tried) -> Floats:
        """Return how far the threshold is above the lowest heights."""
        return np.asarray(math.log1p(self.share) if tried.relative else self.share * np.abs(lowest))

    def _drawn(self, tried: Tried, noise_sd: float) -> float:
        """Return the variance of the mean over losses drawn anew."""
        rng = np.random.default_rng(SEED)
        sd = math.sqrt(2.0) * noise_sd / np.sqrt(np.maximum(tried.count, 1.0))  # the losses hold it once already
        drawn = tried.height + sd * rng.normal(size=(DRAWS, len(sd)))
        kept = self._kept(np.where(np.isfinite(drawn), drawn, np.inf), tried)
        means = (kept @ tried.log_lr) / kept.sum(axis=1)
        return float(np.var(means))
