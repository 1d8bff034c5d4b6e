"""The posterior of a loss basin's minimum, by quadrature over its shape.

loss(x) = c + h (exp(k (x - m)) - 1 - k (x - m)) / k^2,  x = ln lr

Convex for every k; at the minimum m the second derivative is h and the third h k (Varian's LINEX loss, 1975). Where
k = 0 it is a parabola. c and h > 0 have flat priors and are integrated in closed form; m (flat on its support), k
(normal) and the noise (scaled inverse chi-squared) on grids. Where h is known from like cells, its prior is normal.
"""

# P points, M minima, K asymmetries, J noises

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FORM_ERROR = 0.07  # share of a point's rise above the best to which the form is trusted; measured 3 to 6 % on Step Law
MINIMA, ASYMMETRIES, NOISES = 81, 7, 11
TERMS = 9  # of the basin's Taylor polynomial, for drawing
REFINEMENTS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """The prior of the asymmetry k: normal, mean and sd; sd 0 fixes it.

    `common` is the sd of the part that like cells share.
    """

    mean: float
    sd: float
    common: float = 0.0

    def grid(self) -> tuple[Floats, Floats]:
        """Return values of k, and their log weights."""
        if self.sd == 0.0:
            return np.array([self.mean]), np.zeros(1)
        z = np.linspace(-2.4, 2.4, ASYMMETRIES)
        return self.mean + self.sd * z, -0.5 * z * z


@dataclass(frozen=True, slots=True)
class Noise:
    """What is known of the sd of a loss before the basin is fitted: a value, and how many observations it is worth."""

    sd: float
    dof: float


@dataclass(frozen=True, slots=True)
class Curvature:
    """The prior of h where like cells tell it: normal, above 0."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Points:
    """LRs (ln), losses and the number of seeds behind each, ascending in LR, shape [P] each."""

    log_lr: Floats
    loss: Floats
    count: Floats


@dataclass(frozen=True)
class BasinPosterior:
    """Where the minimum is.

    Attributes:
        log_lr, density: the marginal of m on a grid, trapezoid weights included; the sum is 1. Shape [M].
        mean, sd: of m.
        form_sd: sd of the mean of m given k, over the part of k that like cells share.
        asymmetry: posterior mean and sd of k.
        dof: observations behind the noise.
        loss, basin: the fitted minimum, and the polynomial in (x - mean).
        convex: whether the best-fitting basin opens upwards without being told to.
    """

    log_lr: Floats
    density: Floats
    mean: float
    sd: float
    form_sd: float
    asymmetry: tuple[float, float]
    dof: float
    noise_sd: float
    loss: float
    basin: tuple[float, ...]
    convex: bool

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the equal-tailed interval of m."""
        inner = np.cumsum(self.density) - 0.5 * self.density
        tail = 0.5 * (1.0 - confidence)
        low, high = np.interp([tail, 1.0 - tail], inner, self.log_lr)
        return float(low), float(high)


def basin_posterior(
    points: Points,
    *,
    noise: Noise,
    support: tuple[float, float],
    shape: Shape,
    curvature: Curvature | None = None,
) -> BasinPosterior:
    """Return the posterior of the minimum of a basin through at least three points."""
    asymmetry_K, prior_K = shape.grid()
    sd_J = noise.sd * np.geomspace(0.2, 8.0, NOISES)
    # scaled inverse chi-squared in ln sd: the seeds' scatter, and what other cells say
    prior_J = -noise.dof * (np.log(sd_J / noise.sd) + 0.5 * (noise.sd / sd_J) ** 2)
    variance_JP = sd_J[:, None] ** 2 / points.count + _form_error(points, noise) ** 2
    low, high = support
    for _ in range(REFINEMENTS):
        log_lr_M = np.linspace(low, high, MINIMA)
        fit = _Fit.of(points, log_lr_M, asymmetry_K, variance_JP, curvature)
        log_MKJ = fit.evidence + prior_K[None, :, None] + prior_J
        weight_MKJ = np.exp(log_MKJ - log_MKJ.max())
        density_M = weight_MKJ.sum(axis=(1, 2))
        density_M /= density_M.sum()
        mean = float(density_M @ log_lr_M)
        sd = math.sqrt(float(density_M @ (log_lr_M - mean) ** 2))
        inside = np.flatnonzero(density_M > 1e-7 * density_M.max())
        step = log_lr_M[1] - log_lr_M[0]
        if sd > 4.0 * step or (sd == 0.0 and step < 1e-9):
            break
        low, high = max(low, log_lr_M[inside[0]] - step), min(high, log_lr_M[inside[-1]] + step)
    sd = max(sd, step)
    at = np.unravel_index(int(np.argmax(log_MKJ)), log_MKJ.shape)
    free = np.unravel_index(int(np.argmax(fit.free + prior_K[None, :, None] + prior_J)), log_MKJ.shape)
    level, bend = fit.at(at)
    share_J = weight_MKJ.sum(axis=(0, 1)) / weight_MKJ.sum()
    form_sd, asymmetry = _form(log_lr_M, asymmetry_K, weight_MKJ)
    return BasinPosterior(
        log_lr=log_lr_M,
        density=density_M,
        mean=mean,
        sd=sd,
        form_sd=form_sd * (shape.common / shape.sd if shape.sd else 0.0),
        asymmetry=asymmetry,
        dof=noise.dof + max(0.0, len(points.loss) - 3.0),
        noise_sd=float(np.exp(share_J @ np.log(sd_J))),
        loss=level,
        basin=polynomial(level, bend, float(asymmetry_K[at[1]]), mean - float(log_lr_M[at[0]])),
        convex=bool(fit.curvature[free] > 0.0),
    )


def rise(x: Floats, asymmetry: Floats | float) -> Floats:
    """Return (exp(kx) - 1 - kx) / k^2, and its limit x^2/2 at k = 0."""
    kx = np.clip(asymmetry * x, -50.0, 50.0)
    small = np.abs(kx) < 1e-3
    safe = np.where(small, 1.0, kx)
    return np.asarray(x * x * np.where(small, 0.5 + kx / 6.0, (np.expm1(safe) - safe) / safe**2))


def _form(log_lr_M: Floats, asymmetry_K: Floats, weight_MKJ: Floats) -> tuple[float, tuple[float, float]]:
    """Return the sd over k of the mean of m given k; and mean and sd of k."""
    weight_MK = weight_MKJ.sum(axis=2)
    share_K = weight_MK.sum(axis=0) / weight_MK.sum()
    mean_K = log_lr_M @ weight_MK / np.maximum(weight_MK.sum(axis=0), 1e-300)
    (_, form_sd), asymmetry = _moments(mean_K, share_K), _moments(asymmetry_K, share_K)
    return form_sd, asymmetry


def _moments(values: Floats, shares: Floats) -> tuple[float, float]:
    mean = float(shares @ values)
    return mean, math.sqrt(float(shares @ (values - mean) ** 2))


def _form_error(points: Points, noise: Noise) -> Floats:
    """Return the sd of the form at each point, shape [P].

    FORM_ERROR of its rise above the best, and more where losses shoot up on the high side beyond all on the low side.
    """
    up = points.loss - points.loss.min()
    best = int(np.argmin(points.loss))
    low = float(up[:best].max()) if best else 0.0
    usual = max(2.0 * low, float(np.median(up)), 4.0 * noise.sd)
    return np.asarray(FORM_ERROR * up * (1.0 + (up / usual) ** 2))


@dataclass(frozen=True)
class _Fit:
    """Weighted least squares of (c, h) at every (m, k, noise): arrays of shape [M, K, J]."""

    free: Floats  # log evidence with h of either sign
    evidence: Floats  # with h > 0
    curvature: Floats
    level: Floats

    @classmethod
    def of(
        cls,
        points: Points,
        log_lr_M: Floats,
        asymmetry_K: Floats,
        variance_JP: Floats,
        curvature: Curvature | None,
    ) -> _Fit:
        offset_MKP = (points.log_lr - log_lr_M[:, None])[:, None, :]
        g_MKP = rise(offset_MKP, asymmetry_K[None, :, None])
        w_JP = 1.0 / variance_JP
        total_J = w_JP.sum(axis=1)
        share_JP = w_JP / total_J[:, None]
        g_mean = g_MKP @ share_JP.T
        y_mean = share_JP @ points.loss
        wy = w_JP * (points.loss - y_mean[:, None])
        gy = g_MKP @ wy.T
        gg = np.maximum((g_MKP**2) @ w_JP.T - total_J * g_mean**2, 1e-300)
        yy = (wy * (points.loss - y_mean[:, None])).sum(axis=1)
        if curvature is not None:
            gy, gg = gy + curvature.mean / curvature.sd**2, gg + 1.0 / curvature.sd**2
        h = gy / gg
        constant_J = 0.5 * np.log(w_JP).sum(axis=1) - 0.5 * np.log(total_J) - 0.5 * yy
        free = constant_J - 0.5 * np.log(gg) + 0.5 * h * gy
        return cls(free, free + _log_normal_cdf(h * np.sqrt(gg)), h, y_mean - h * g_mean)

    def at(self, index: tuple[np.intp, ...]) -> tuple[float, float]:
        """Return (loss at the minimum, curvature)."""
        return float(self.level[index]), max(float(self.curvature[index]), 0.0)


def polynomial(level: float, curvature: float, asymmetry: float, shift: float) -> tuple[float, ...]:
    """Return the ascending Taylor coefficients of the basin around (minimum + shift)."""
    series = [0.0, 0.0, *(curvature * asymmetry ** (n - 2) / math.factorial(n) for n in range(2, TERMS))]
    moved = [math.fsum(math.comb(n, i) * shift ** (n - i) * series[n] for n in range(i, TERMS)) for i in range(TERMS)]
    return (moved[0] + level, *moved[1:])


def _log_normal_cdf(z: Floats) -> Floats:
    """Return ln of the standard normal cdf, to 1.2e-7 in relative terms (Press et al., Numerical Recipes, erfcc)."""
    x = np.abs(z) / math.sqrt(2.0)
    t = 1.0 / (1.0 + 0.5 * x)
    series = np.polynomial.polynomial.polyval(t, np.array(_ERFC))
    log_tail = np.log(0.5 * t) - x * x + series
    return np.asarray(np.where(z < 0.0, log_tail, np.log1p(-np.exp(log_tail))))


_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)
