"""Learning traces: a power law in steps refitted as a curve grows, and when its refits can be believed.

After Vilares et al. 2017 (arXiv:2402.02515), whose curves are accuracies c - a x^-b; here losses, c + a x^-b. It knows
nothing of the LR: for a schedule that decays, use a curve law. Refits are at geometrically spaced points (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from sweeps.errors import ConfigError, FitError
from sweeps.forecast.fitting import HUBER
from sweeps.forecast.records import Floats, Ints, LossCurve

# P points

UNIT = 1000.0  # steps that x = 1 stands for
LEAST_POINTS = 6  # of a refit: twice the parameters; assumed
RATIO = 1.25  # of the steps between refits; assumed
AGREEING = 3  # refits in a row, feasible and monotone, that make the prediction level; assumed
STILL = 2  # refits in a row that move less than the threshold; assumed
EXPONENTS = (0.15, 0.3, 0.6, 1.2)  # starts of b
B_RANGE = (0.02, 5.0)


@dataclass(frozen=True, slots=True)
class PowerCurve:
    """loss = floor + gain * (step / 1000)^-exponent ("pow3").

    Attributes:
        floor: the asymptote c; below 0 it cannot be one, so the refit says nothing yet.
        gain: a, at least 0.
        exponent: b, above 0.
        upto_step: the last step it was fitted on.
    """

    floor: float
    gain: float
    exponent: float
    upto_step: int

    def predict(self, step_P: Ints) -> Floats:
        """Return the loss at steps."""
        x_P = np.asarray(step_P, dtype=np.float64) / UNIT
        return np.asarray(self.floor + self.gain * x_P**-self.exponent, dtype=np.float64)

    @property
    def feasible(self) -> bool:
        """Whether the asymptote is a loss."""
        return self.floor >= 0


@dataclass(frozen=True, slots=True)
class LearningTrace:
    """The refits of one curve, in the order of steps.

    Attributes:
        refits: one for each of the geometrically spaced marks.
        level: index of the refit at the prediction level, the last of the first three feasible ones in a row whose
            asymptotes go one way; None if that has not come.
    """

    refits: tuple[PowerCurve, ...]
    level: int | None

    def converged(self, *, threshold: float, at_step: int) -> int | None:
        """Return the step from which the asymptote is believed, or None if that has not come.

        That is the first refit past the prediction level at which the last two asymptotes moved by less than
        `threshold` (nats) and what the curve is still to gain until `at_step` is less than it.
        """
        if not threshold > 0:
            raise ConfigError(f"threshold: must be above 0, got {threshold:g}")
        if self.level is None:
            return None
        for i in range(max(self.level, STILL), len(self.refits)):
            moved = [abs(self.refits[j].floor - self.refits[j - 1].floor) for j in range(i - STILL + 1, i + 1)]
            now = self.refits[i]
            here, there = now.predict(np.array([now.upto_step, max(at_step, now.upto_step)]))
            if max(moved) < threshold and here - there < threshold:
                return now.upto_step
        return None


def fit_power(curve: LossCurve) -> PowerCurve:
    """Return the power law in steps through a curve after warm-up, by the Huber loss of ln loss.

    Raises:
        FitError: too few points.
    """
    seen = curve.settled
    if len(seen) < LEAST_POINTS:
        raise FitError(f"{curve.name}: {len(seen)} points after warm-up, a power law needs {LEAST_POINTS}")
    x_P, loss_P = seen.step.astype(np.float64) / UNIT, seen.loss

    def terms(b: float) -> Floats:
        return np.column_stack([np.ones_like(x_P), x_P**-b])

    def off(values: Floats) -> Floats:
        found_P = np.maximum(values[0] + values[1] * x_P ** -values[2], 1e-12)
        return np.asarray(np.log(found_P / loss_P), dtype=np.float64)

    best, cost = None, np.inf
    for b in EXPONENTS:
        c, a = np.linalg.lstsq(terms(b) / loss_P[:, None], np.ones_like(loss_P))[0]
        start = [c, max(a, 1e-9), b]
        bounds = ([-np.inf, 0.0, B_RANGE[0]], [np.inf, np.inf, B_RANGE[1]])
        found = least_squares(off, start, bounds=bounds, x_scale="jac", loss="huber", f_scale=HUBER)
        if found.cost < cost:
            best, cost = found.x, float(found.cost)
    if best is None:
        raise FitError(f"{curve.name}: no power law has finite losses")
    return PowerCurve(float(best[0]), float(best[1]), float(best[2]), int(seen.step[-1]))


def learning_trace(curve: LossCurve, *, ratio: float = RATIO) -> LearningTrace:
    """Return the refits of a curve, at steps `ratio` apart, the last point's included.

    Raises:
        ConfigError: a ratio not above 1.
        FitError: too few points for one refit.
    """
    if not ratio > 1:
        raise ConfigError(f"ratio: must be above 1, got {ratio:g}")
    seen = curve.settled
    if len(seen) < LEAST_POINTS:
        raise FitError(f"{curve.name}: {len(seen)} points after warm-up, a learning trace needs {LEAST_POINTS}")
    marks, mark = [], float(seen.step[LEAST_POINTS - 1])
    while mark < seen.step[-1]:
        marks.append(int(mark))
        mark = max(mark * ratio, mark + 1)
    refits = tuple(fit_power(seen.until(step)) for step in [*marks, int(seen.step[-1])])
    return LearningTrace(refits, _level(refits))


def _level(refits: Sequence[PowerCurve]) -> int | None:
    for i in range(AGREEING - 1, len(refits)):
        last = refits[i - AGREEING + 1 : i + 1]
        moves = np.diff([refit.floor for refit in last])
        if all(refit.feasible for refit in last) and (np.all(moves >= 0) or np.all(moves <= 0)):
            return i
    return None
