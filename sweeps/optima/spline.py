"""The estimator by a smoothing spline in ln lr: the minimum of curves drawn from its posterior."""

# D dense points, P points, J noises, S smoothnesses, R draws

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sweeps.optima.basin import NOISES, Noise, Shape
from sweeps.optima.linex import Known
from sweeps.optima.records import Optimum
from sweeps.optima.student import two_sided
from sweeps.optima.tried import SAME, Floats, Tried, edge_of, noise_of, window_of

WINDOW = math.log(8.0)  # the spline goes through the LRs within this much of the best (in ln lr); a choice
DENSE = 96  # gaps of the grid on which curves are drawn
SMOOTHNESSES = 9
ROUGH = (1.0, 30.0)  # sd of the second derivative over the window's width, in spreads of the losses; a choice
DRAWS = 1200
LEAST = 60  # curves of those drawn that rise to a divergence; a choice
SHARED = 0.3  # of the uncertainty: a spline flattens like basins alike; chosen on other drawn laws than are reported
SEED = 1973  # of the curves drawn: any number, the same for every cell
TERMS = 7  # of the polynomial that draws the spline


@dataclass(frozen=True, slots=True)
class Spline:
    """The minimum of a cubic smoothing spline (Reinsch 1967) through the losses near the best.

    Such a spline is the mean of a posterior under a prior of integrated white noise (Wahba 1978): smoothness and noise
    are weighed by their likelihood, curves are drawn, and the minimum of each is found on a dense grid. A
    divergence above is worse than any loss: curves that fall to it, below the median loss, are dropped.

    Attributes:
        shape: prior of the asymmetry of basins, for held-out checks; the spline knows of none.
    """

    shape: Shape

    def find(self, tried: Tried, known: Known, *, confidence: float) -> Optimum:
        """Return the optimum, or "no minimum" where curves drawn have theirs at the ends too often."""
        near = np.flatnonzero(
            np.isfinite(tried.loss) & (np.abs(tried.log_lr - tried.log_lr[tried.best]) <= WINDOW + SAME)
        )
        used = near if len(near) >= 3 else window_of(tried)
        x_P, y_P = tried.log_lr[used], tried.height[used]
        noise = noise_of(tried, used, noise_sd=known.noise_sd)
        blown = tried.log_lr[tried.diverged & (tried.log_lr > x_P[-1])]
        end = float(blown[0]) if len(blown) else float(x_P[-1])  # a divergence above is a bracket
        dense_D = np.linspace(x_P[0], end, DENSE + 1)
        drawn_RD, noise_sd = _posterior(x_P, y_P, tried.count[used], dense_D, noise)
        if len(blown):
            at_P = np.argmin(np.abs(dense_D[:, None] - x_P), axis=0)
            drawn_RD = drawn_RD[drawn_RD[:, -1] >= np.median(drawn_RD[:, at_P], axis=1)]
            if len(drawn_RD) < LEAST:
                return edge_of(tried, "no minimum")
        mean_D = drawn_RD.mean(axis=0)
        lowest_R = dense_D[np.argmin(drawn_RD, axis=1)]
        tail = 0.5 * (1.0 - confidence)
        low, middle, high = (float(q) for q in np.quantile(lowest_R, [tail, 0.5, 1.0 - tail]))
        if low <= dense_D[0] or high >= dense_D[-1] or high - low >= tried.log_lr[-1] - tried.log_lr[0]:
            return edge_of(tried, "no minimum")
        step = float(dense_D[1] - dense_D[0])
        dof = noise.dof + max(0.0, len(x_P) - 3.0)
        scale = 0.5 * max(high - low, 2.0 * step)
        basin = np.polynomial.Polynomial.fit(dense_D - middle, mean_D, min(TERMS, len(x_P)) - 1).convert().coef
        level = float(np.interp(middle, dense_D, mean_D))
        return Optimum(
            lr=math.exp(middle),
            low=math.exp(min(low, middle - step)),
            high=math.exp(max(high, middle + step)),
            log_sd=scale / two_sided(confidence, dof=dof),
            form_sd=SHARED * scale / two_sided(confidence, dof=dof),
            dof=dof,
            censored=None,
            loss=math.exp(level) if tried.relative else level,
            noise_sd=noise_sd,
            basin=tuple(float(c) for c in basin),
            centre=middle,
            window=(math.exp(float(x_P[0])), math.exp(float(x_P[-1]))),
            relative=tried.relative,
        )


def _posterior(x_P: Floats, y_P: Floats, count_P: Floats, dense_D: Floats, noise: Noise) -> tuple[Floats, float]:
    """Return curves drawn on the dense grid, and the noise."""
    unit = x_P[-1] - x_P[0]
    at_P, at_D = (x_P - x_P[0]) / unit, (dense_D - x_P[0]) / unit
    prior_PP, prior_DP = _wiener(at_P, at_P), _wiener(at_D, at_P)
    line_P, line_D = np.vander(at_P, 2), np.vander(at_D, 2)
    spread = max(float(np.ptp(y_P)), noise.sd)
    size_S = spread * np.geomspace(*ROUGH, SMOOTHNESSES)
    sd_J = noise.sd * np.geomspace(0.2, 8.0, NOISES)
    log_J = -noise.dof * (np.log(sd_J / noise.sd) + 0.5 * (noise.sd / sd_J) ** 2)
    log_SJ = np.array(
        [[_evidence(y_P, line_P, size**2 * prior_PP + np.diag(sd**2 / count_P)) for sd in sd_J] for size in size_S]
    )
    log_SJ += log_J
    share_SJ = np.exp(log_SJ - log_SJ.max())
    share_SJ /= share_SJ.sum()
    rng = np.random.default_rng(SEED)
    normal_RD = rng.normal(size=(DRAWS, len(dense_D)))
    own_DD = _wiener(at_D, at_D)
    curves, first = [], 0
    ends = np.rint(np.cumsum(share_SJ.ravel()) * DRAWS).astype(int)
    for index, last in enumerate(ends):
        if last == first:
            continue
        size, sd = size_S[index // len(sd_J)], sd_J[index % len(sd_J)]
        covariance = size**2 * prior_PP + np.diag(sd**2 / count_P)
        weight = np.linalg.inv(covariance)
        inner = np.linalg.inv(line_P.T @ weight @ line_P)
        slope = inner @ line_P.T @ weight @ y_P
        centre_D = line_D @ slope + size**2 * prior_DP @ weight @ (y_P - line_P @ slope)
        lever_DK = line_D - size**2 * prior_DP @ weight @ line_P
        spread_DD = size**2 * (own_DD - size**2 * prior_DP @ weight @ prior_DP.T) + lever_DK @ inner @ lever_DK.T
        value, vector = np.linalg.eigh(spread_DD)
        root_DD = vector * np.sqrt(np.maximum(value, 0.0))
        curves.append(centre_D + normal_RD[first:last] @ root_DD.T)
        first = last
    noise_sd = float(np.exp(share_SJ.sum(axis=0) @ np.log(sd_J)))
    return np.concatenate(curves), noise_sd


def _wiener(a: Floats, b: Floats) -> Floats:
    """Return the covariance of an integrated Wiener process on [0, 1]."""
    low = np.minimum(a[:, None], b[None, :])
    return np.asarray(low**2 * (3.0 * np.maximum(a[:, None], b[None, :]) - low) / 6.0)


def _evidence(y_P: Floats, line_P: Floats, covariance_PP: Floats) -> float:
    """Return the log likelihood with the straight part integrated out."""
    weight = np.linalg.inv(covariance_PP)
    inner = line_P.T @ weight @ line_P
    slope = np.linalg.solve(inner, line_P.T @ weight @ y_P)
    residual = y_P - line_P @ slope
    _, log_prior = np.linalg.slogdet(covariance_PP)
    _, log_inner = np.linalg.slogdet(inner)
    return float(-0.5 * (log_prior + log_inner + residual @ weight @ residual))
