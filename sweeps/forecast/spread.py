"""How far a fitted curve law may be off on a run it has not seen, from the curves it was fitted on alone.

Three errors, taken as independent:

    noise     runs wander about the law: root mean square of ln loss less ln law over the points fitted.
    falls     what falls of the LR gain is of the law's form only roughly: the same residuals after a fall, over what
              the law says the fall has gained, is the share by which any further gain may be off.
    numbers   the parameters' covariance, from the Jacobian. Neighbouring points err together: with r their
              correlation, n points count as n (1 - r) / (1 + r), and what they leave beyond the parameters is `dof`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sweeps.errors import FitError
from sweeps.forecast.fitting import FittedCurveLaw
from sweeps.forecast.records import Floats, Ints, LrPath

# P points, W parameters (weights first)

MOST_CORRELATED = 0.99
STEP = 1e-6  # of the differences that stand for derivatives by the bends


@dataclass(frozen=True, eq=False)
class Spread:
    """How far a law may be off, in ln loss.

    Attributes:
        noise_sd: of runs about the law.
        fall_share: by which a fall's further gain may be off.
        covariance: of the parameters, [W, W].
        dof: degrees of freedom of all of it, at least 1.
    """

    noise_sd: float
    fall_share: float
    covariance: Floats
    dof: float

    def sd(self, *, slope_W: Floats, gain: float, offset: bool) -> float:
        """Return the standard deviation of a forecast of ln loss.

        `slope_W` are its derivatives by the parameters, `gain` what falls are still to bring, and `offset` says
        whether the run's own level is an estimate of its own, which errs too.
        """
        numbers = float(slope_W @ self.covariance @ slope_W)
        noise = self.noise_sd**2 * (2.0 if offset else 1.0)
        return float(np.sqrt(max(numbers, 0.0) + noise + (self.fall_share * gain) ** 2))


def spread_of(law: FittedCurveLaw) -> Spread:
    """Return how far a law may be off. Raises FitError for a law that was fitted on nothing."""
    if not law.curves:
        raise FitError("law: was fitted on no curves here, so how far it is off is not known", estimate=None)
    left = [law.residuals(curve) for curve in law.curves]
    slopes = [slopes_of(law, curve.path, curve.step) for curve in law.curves]
    gains = [falls_gain(law, curve.path, curve.step) for curve in law.curves]
    left_P, slope_PW = np.concatenate(left), np.concatenate(slopes)
    noise = float(np.sqrt(np.mean(left_P**2)))
    gain_P = np.concatenate([gain - gain[0] for gain in gains])
    gained = np.abs(gain_P) > noise
    share = float(np.sqrt(np.sum(left_P[gained] ** 2) / np.sum(gain_P[gained] ** 2))) if gained.any() else 0.0
    together = _correlation(left)
    counts = len(left_P) * (1 - together) / (1 + together)
    rows = np.concatenate([slope_PW, _prior_slopes(law)])
    size_W = np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    inverse = np.linalg.pinv((rows / size_W).T @ (rows / size_W), rcond=1e-9, hermitian=True)
    covariance = inverse / np.outer(size_W, size_W) * noise**2 * len(left_P) / counts
    return Spread(noise, share, covariance, max(counts - slope_PW.shape[1], 1.0))


def slopes_of(law: FittedCurveLaw, path: LrPath, step_P: Ints) -> Floats:
    """Return the derivatives of ln loss by the parameters, [P, W]: exact in the weights, by differences otherwise."""
    reading = law.form.read(path, step_P)
    terms_PK = law.form.terms(law.bends, reading)
    loss_P = terms_PK @ law.weights
    columns = [terms_PK[:, k] / loss_P for k in range(len(law.weights))]
    for u in range(len(law.bends)):
        moved_U = law.bends.copy()
        moved_U[u] += STEP
        columns.append((law.form.terms(moved_U, reading) @ law.weights / loss_P - 1) / STEP)
    return np.column_stack(columns)


def falls_gain(law: FittedCurveLaw, path: LrPath, step_P: Ints) -> Floats:
    """Return by how much falls of the LR have lowered ln loss at points, [P]."""
    terms_PK = law.form.terms(law.bends, law.form.read(path, step_P))
    loss_P = terms_PK @ law.weights
    return np.asarray(np.log(terms_PK[:, :2] @ law.weights[:2] / loss_P), dtype=np.float64)


def _prior_slopes(law: FittedCurveLaw) -> Floats:
    """Return the derivatives of the prior's residuals by the parameters; no rows without a prior."""
    base = law.form.penalty(law.weights, law.bends)
    values = np.concatenate([law.weights, law.bends])
    columns = []
    for i in range(len(values)):
        step = STEP * max(abs(float(values[i])), 1.0)
        moved = values.copy()
        moved[i] += step
        columns.append((law.form.penalty(moved[: len(law.weights)], moved[len(law.weights) :]) - base) / step)
    return np.column_stack(columns) if len(base) else np.empty((0, len(values)))


def _correlation(left: list[Floats]) -> float:
    """Return the correlation of neighbouring points, pooled over curves, between 0 and MOST_CORRELATED."""
    pairs = sum(float(np.sum(one[1:] * one[:-1])) for one in left)
    own = sum(float(np.sum(one[1:] ** 2) + np.sum(one[:-1] ** 2)) / 2 for one in left)
    return min(max(pairs / own, 0.0), MOST_CORRELATED) if own > 0 else 0.0
