"""Fitting a curve law to loss curves, and asking it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from sweeps.errors import ConfigError, FitError
from sweeps.forecast.form import CurveForm
from sweeps.forecast.forms import NoAnnealing
from sweeps.forecast.records import Floats, Ints, LossCurve, LrPath

# P points of all curves, K weights, U bends

HUBER = 1e-3  # of ln loss; arXiv:2408.11029 and arXiv:2503.12811 (published)
REFINED = 4  # of the starts, the best by a linear fit are refined
MOST_EVALUATIONS = 200
LEAST_POINTS = 3  # a parameter; assumed


@dataclass(frozen=True, eq=False)
class FittedCurveLaw:
    """A curve law with its numbers.

    Attributes:
        form: the law.
        weights, bends: [K] and [U], its parameters, as in `form.weights` and `form.bends`.
        fitted_on: names of the curves.
        residual_sd: root mean square of ln loss about the law at the points fitted.
        curves: those fitted, without their warm-up.
    """

    form: CurveForm
    weights: Floats
    bends: Floats
    curves: tuple[LossCurve, ...]
    residual_sd: float

    @property
    def fitted_on(self) -> tuple[str, ...]:
        """Names of the curves fitted."""
        return tuple(curve.name for curve in self.curves)

    @property
    def parameters(self) -> dict[str, float]:
        """Name -> value."""
        values = (*self.weights.tolist(), *self.bends.tolist())
        return dict(zip(self.form.parameters, values, strict=True))

    def predict(self, path: LrPath, step_P: Ints | None = None) -> Floats:
        """Return the loss after these steps of a path; after its last one where none are given."""
        at_P = np.array([len(path)]) if step_P is None else np.asarray(step_P, dtype=np.int64)
        if len(at_P) and not 1 <= at_P.min() <= at_P.max() <= len(path):
            raise ConfigError(f"step: must be between 1 and the path's {len(path)} steps")
        order = np.argsort(at_P, kind="stable")
        terms_PK = self.form.terms(self.bends, self.form.read(path, at_P[order]))
        loss_P = np.empty(len(at_P))
        loss_P[order] = terms_PK @ self.weights
        return loss_P

    def residuals(self, curve: LossCurve) -> Floats:
        """Return ln loss less the law's, at the points of a curve."""
        return np.asarray(np.log(curve.loss) - np.log(self.predict(curve.path, curve.step)), dtype=np.float64)


def known(form: CurveForm, parameters: Mapping[str, float]) -> FittedCurveLaw:
    """Return the law of these parameters, of the form's convention, fitted on nothing here.

    A name that the form has as a logarithm ("ln C") may be given plain ("C").
    """
    plain = {f"ln {name}": float(np.log(value)) for name, value in parameters.items() if value > 0}
    values = {**plain, **parameters}
    missing = [name for name in form.parameters if name not in values]
    if missing:
        raise ConfigError(f"parameters: must have {', '.join(form.parameters)}; missing {', '.join(missing)}")
    weights_K = np.array([values[name] for name in form.weights])
    return FittedCurveLaw(form, weights_K, np.array([values[bend.name] for bend in form.bends]), (), 0.0)


def fit_curves(curves: Sequence[LossCurve], form: CurveForm) -> FittedCurveLaw:
    """Return the law through the curves, all points after warm-up counting alike.

    Minimises the Huber loss (delta 1e-3) of ln loss less ln law, plus the form's prior, over bounded parameters, from
    the best few of a grid of starts at which the weights are a linear fit.

    Raises:
        FitError: too few points after warm-up; no LR that falls, for a law that reads falls (the estimate is then the
            law without annealing); no fit with finite losses.
    """
    settled = tuple(curve.settled for curve in curves)
    points = sum(len(curve) for curve in settled)
    needed = LEAST_POINTS * len(form.parameters)
    if points < needed:
        raise FitError(f"curves: {points} points after warm-up say too little, {needed} are needed", estimate=None)
    if form.reads_falls and not any(_falls(curve) for curve in settled):
        simple = fit_curves(curves, NoAnnealing(warmup="area" if form.warmup == "ramp" else form.warmup))
        raise FitError("curves: in none of them does the LR fall, so what a fall gains is not known", estimate=simple)
    # in the order of names, so that the same curves give the same bits in any order
    settled = tuple(sorted((curve for curve in settled if len(curve)), key=lambda curve: curve.name))
    problem = _Problem(form, settled)
    best_weights, best_bends, cost = None, None, np.inf
    for weights_K, bends_U in problem.starts():
        found = problem.refine(weights_K, bends_U)
        if found.cost < cost:
            cost = float(found.cost)
            best_weights, best_bends = problem.split(found.x)
    if best_weights is None or best_bends is None:
        raise FitError("curves: no parameters give finite losses", estimate=None)
    raw_K = best_weights * form.scale(best_bends, problem.unit)
    law = FittedCurveLaw(form, raw_K, best_bends, settled, 0.0)
    left_P = np.concatenate([law.residuals(curve) for curve in settled])
    return FittedCurveLaw(form, raw_K, best_bends, settled, float(np.sqrt(np.mean(left_P**2))))


def _falls(curve: LossCurve) -> bool:
    lr_T = curve.path.lr[curve.path.warmup_steps : curve.step[-1] if len(curve) else 0]
    return bool(len(lr_T) > 1 and np.any(np.diff(lr_T) < 0))


class _Problem:
    """The least-squares problem of one fit. The LR's sum is counted in `unit`, so that A and alpha hardly interact."""

    def __init__(self, form: CurveForm, curves: Sequence[LossCurve]) -> None:
        self.form = form
        self.readings: list[Any] = [form.reading_of(curve) for curve in curves]
        self.loss = np.concatenate([curve.loss for curve in curves])
        sums = [np.cumsum(curve.path.lr)[curve.step - 1] for curve in curves]
        self.unit = float(np.exp(np.mean(np.log(np.concatenate(sums)))))
        self.weights = len(form.weights)

    def split(self, x: Floats) -> tuple[Floats, Floats]:
        return x[: self.weights], x[self.weights :]

    def terms(self, bends_U: Floats) -> Floats:
        rows_PK = np.concatenate([self.form.terms(bends_U, reading) for reading in self.readings])
        return np.asarray(rows_PK * self.form.scale(bends_U, self.unit), dtype=np.float64)

    def raw(self, weights_K: Floats, bends_U: Floats) -> Floats:
        return weights_K * self.form.scale(bends_U, self.unit)

    def starts(self) -> list[tuple[Floats, Floats]]:
        """Return the best starts: weights by linear least squares on relative errors, for each bend of a grid."""
        tried: list[tuple[float, int, Floats, Floats]] = []
        for number, values in enumerate(itertools.product(*(bend.starts for bend in self.form.bends))):
            bends_U = np.array(values)
            weights_K, error = nnls(self.terms(bends_U) / self.loss[:, None], np.ones(len(self.loss)))
            tried.append((float(error), number, weights_K, bends_U))
        tried.sort(key=lambda item: item[:2])
        return [(weights_K, bends_U) for _, _, weights_K, bends_U in tried[:REFINED]]

    def residuals(self, x: Floats) -> Floats:
        weights_K, bends_U = self.split(x)
        loss_P = np.maximum(self.terms(bends_U) @ weights_K, 1e-12)
        prior = self.form.penalty(self.raw(weights_K, bends_U), bends_U)
        return np.concatenate([np.log(loss_P / self.loss), prior])

    def jacobian(self, x: Floats) -> Floats:
        """Return derivatives: exact in the weights, by differences in the bends and for the prior."""
        weights_K, bends_U = self.split(x)
        terms_PK = self.terms(bends_U)
        loss_P = np.maximum(terms_PK @ weights_K, 1e-12)
        columns = [terms_PK[:, k] / loss_P for k in range(len(weights_K))]
        for u in range(len(bends_U)):
            moved_U = bends_U.copy()
            moved_U[u] += 1e-6
            columns.append((self.terms(moved_U) @ weights_K / loss_P - 1) / 1e-6)
        data = np.column_stack(columns)
        base = self.form.penalty(self.raw(weights_K, bends_U), bends_U)
        if len(base) == 0:
            return data
        prior = []
        for i in range(len(x)):
            step = 1e-6 * max(abs(x[i]), 1e-3)
            moved = x.copy()
            moved[i] += step
            weights, bends = self.split(moved)
            prior.append((self.form.penalty(self.raw(weights, bends), bends) - base) / step)
        return np.concatenate([data, np.column_stack(prior)])

    def refine(self, weights_K: Floats, bends_U: Floats) -> Any:
        low = np.array([0.0] * self.weights + [bend.low for bend in self.form.bends])
        high = np.array([np.inf] * self.weights + [bend.high for bend in self.form.bends])
        start = np.clip(np.concatenate([np.maximum(weights_K, 1e-6), bends_U]), low, high)
        return least_squares(
            self.residuals,
            start,
            jac=self.jacobian,
            bounds=(low, high),
            x_scale="jac",
            loss="huber",
            f_scale=HUBER,
            max_nfev=MOST_EVALUATIONS,
            xtol=1e-9,
            ftol=1e-9,
            gtol=1e-12,
        )
