"""A schedule by design: the LR over a run that a curve law says ends lowest.

The LR after warm-up is straight between knots and never rises: the falls from knot to knot are shares of the peak
(arXiv:2503.12811 has one fall a step). Only laws in which a fall's gain takes LR to come in have a sensible optimum:
against the momentum law it is the peak and then a drop to zero (its appendix F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from sweeps.errors import ConfigError, FitError
from sweeps.forecast.fitting import FittedCurveLaw
from sweeps.forecast.forms import CURVE_LAWS
from sweeps.forecast.records import Floats, LrPath
from sweeps.schedules.table import Table

# T steps, J knots after the end of warm-up, K = J + 1 shares of the peak (the last is what is left at the end)

KNOTS = 32
DIGITS = 5  # of fractions and factors in the table
STRAIGHT = 2e-3  # a knot that is so near the line between others is left out of the table
STARTS = ("straight", "late")
DECAYING = (0.02, 0.98)  # factors between which the descent is measured


@dataclass(frozen=True, eq=False)
class Designed:
    """A schedule that a law says is best.

    Attributes:
        fractions, factors: its points, over the whole horizon, warm-up included.
        path: LR of every step.
        loss: final loss by the law.
        cosine_loss: that of a cosine to zero, with the same warm-up, peak and length.
        decay_fraction: share of the horizon after the LR has left the peak (98 % of it).
        decay_power: p of (1 - t)^p that the descent is nearest to, t its own time.
    """

    fractions: tuple[float, ...]
    factors: tuple[float, ...]
    path: LrPath
    loss: float
    cosine_loss: float
    decay_fraction: float
    decay_power: float

    def schedule(self) -> Table:
        """Return it as a schedule of tokens, for a run of any length."""
        return Table(fractions=self.fractions, factors=self.factors)

    def yaml(self) -> str:
        """Return the part of a sweep that runs it."""
        fractions = ", ".join(f"{x:g}" for x in self.fractions)
        factors = ", ".join(f"{y:g}" for y in self.factors)
        return f"schedule:\n  name: table\n  fractions: [{fractions}]\n  factors: [{factors}]\n"


def design_schedule(
    law: FittedCurveLaw, *, peak: float, steps: int, warmup_steps: int = 0, knots: int = KNOTS
) -> Designed:
    """Return the schedule of this peak LR, length and linear warm-up that ends lowest by the law.

    Raises:
        ConfigError: a law that says nothing sensible of it, or a peak, length or number of knots that cannot be.
        FitError: no schedule found that the law puts below a cosine; the estimate is what was found.
    """
    if not law.form.designs:
        able = ", ".join(sorted(name for name, form in CURVE_LAWS.items() if form.designs))
        raise ConfigError(
            f"law: {type(law.form).__name__} is minimised by the peak LR and then a drop to zero, "
            f"which says nothing of real runs; design against {able}"
        )
    if not (math.isfinite(peak) and peak > 0):
        raise ConfigError(f"peak: must be above 0 and finite, got {peak:g}")
    if not (knots >= 4 and warmup_steps >= 0 and warmup_steps + 4 * knots <= steps):
        raise ConfigError(f"steps: must be at least the warm-up ({warmup_steps}) and 4 for each of 4 knots or more")
    grid = _Grid(law, peak, steps, warmup_steps, knots)
    best_z, loss = None, np.inf
    for start in STARTS:
        found = minimize(grid.loss_of, grid.start(start), method="L-BFGS-B", options={"maxiter": 400, "ftol": 1e-12})
        if found.fun < loss:
            best_z, loss = found.x, float(found.fun)
    factor_J = grid.factors(best_z) if best_z is not None else np.linspace(1.0, 0.0, knots + 1)
    designed = _designed(grid, factor_J)
    if not designed.loss < designed.cosine_loss:
        raise FitError("law: no schedule found that it puts below a cosine", estimate=designed)
    return designed


class _Grid:
    """The search space: falls between knots as a softmax, so that they are at least 0 and sum to the peak at most."""

    def __init__(self, law: FittedCurveLaw, peak: float, steps: int, warmup: int, knots: int) -> None:
        self.law, self.peak, self.steps, self.warmup, self.knots = law, peak, steps, warmup, knots
        self.step_T = np.arange(1, steps + 1, dtype=np.float64)
        self.knot_J = np.linspace(max(warmup, 1), steps, knots + 1)

    def factors(self, z_K: Floats) -> Floats:
        """Return the factor of the peak at every knot, the first 1."""
        share_K = np.exp(z_K - z_K.max())
        share_K /= share_K.sum()
        factor_J = np.concatenate([[1.0], 1.0 - np.cumsum(share_K[:-1])])
        return np.asarray(np.clip(factor_J, 0.0, 1.0), dtype=np.float64)

    def path(self, factor_J: Floats) -> LrPath:
        """Return LR of every step."""
        lr_T = self.peak * np.interp(self.step_T, self.knot_J, factor_J)
        if self.warmup:
            lr_T[: self.warmup] = self.peak * self.step_T[: self.warmup] / self.warmup
        return LrPath(lr_T, self.warmup)

    def loss_of(self, z_K: Floats) -> float:
        """Return the final loss by the law."""
        return float(self.law.predict(self.path(self.factors(z_K)))[0])

    def start(self, name: str) -> Floats:
        """Return the shares of a straight descent, or of one over the last quarter."""
        time_K = np.arange(self.knots) / self.knots
        fall_K = np.ones(self.knots) if name == "straight" else np.where(time_K >= 0.75, 4.0, 0.05)
        return np.asarray(np.log(np.concatenate([fall_K / fall_K.sum(), [1e-3]])), dtype=np.float64)

    def cosine(self) -> LrPath:
        """Return the path of a cosine to zero after the same warm-up."""
        t_T = np.clip((self.step_T - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        rise_T = np.minimum(self.step_T / max(self.warmup, 1), 1.0)
        return LrPath(self.peak * rise_T * (1 + np.cos(np.pi * t_T)) / 2, self.warmup)


def _corners(x_J: Floats, y_J: Floats) -> list[int]:
    """Return the points that straight lines need to pass within STRAIGHT of all: Ramer, Douglas and Peucker."""
    last = len(x_J) - 1
    if last < 2:
        return list(range(len(x_J)))
    line_J = np.interp(x_J, x_J[[0, -1]], y_J[[0, -1]])
    far = int(np.argmax(np.abs(y_J - line_J)))
    if abs(float(y_J[far] - line_J[far])) <= STRAIGHT:
        return [0, last]
    right = [far + i for i in _corners(x_J[far:], y_J[far:])]
    return [*_corners(x_J[: far + 1], y_J[: far + 1])[:-1], *right]


def _designed(grid: _Grid, factor_J: Floats) -> Designed:
    path = grid.path(factor_J)
    kept = _corners(grid.knot_J, factor_J)
    x_J, y_J = grid.knot_J[kept] / grid.steps, factor_J[kept]
    x_J = np.concatenate([[0.0], x_J if grid.warmup else x_J[1:]])
    y_J = np.concatenate([[0.0], y_J]) if grid.warmup else y_J
    t_J = np.linspace(0.0, 1.0, len(factor_J))
    begin = float(t_J[np.flatnonzero(factor_J >= DECAYING[1])[-1]])
    within = (factor_J < DECAYING[1]) & (factor_J > DECAYING[0]) & (t_J < 1)
    rest_J = np.log(1 - (t_J[within] - begin) / (1 - begin))
    power = float(np.sum(rest_J * np.log(factor_J[within])) / np.sum(rest_J**2)) if within.any() else 0.0
    return Designed(
        fractions=tuple(round(value, DIGITS) for value in x_J.tolist()),
        factors=tuple(round(value, DIGITS) for value in y_J.tolist()),
        path=path,
        loss=float(grid.law.predict(path)[0]),
        cosine_loss=float(grid.law.predict(grid.cosine())[0]),
        decay_fraction=(1 - begin) * (1 - grid.warmup / grid.steps),
        decay_power=power,
    )
