"""The six steps in a row: from runs to L(N, S, B) with the uncertainty of its constants, and its check one scale up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.errors import FitError
from sweeps.optima.student import two_sided
from sweeps.scaling.law import ScalingLaw, losses
from sweeps.scaling.runs import Floats, TrainingRun, batch_study, largest_batches, usable
from sweeps.scaling.stages import critical_batch, size_law, step_law

LARGER = 4.0  # a check is of a model this many times larger than any fitted; Part I; published
TOLERANCE = 0.01  # of the loss: what a check allows


@dataclass(frozen=True)
class Scaling:
    """A scaling law with what it was fitted on.

    Attributes:
        law: L(N, S, B).
        staged: the law of steps two to four alone, before all curves are fitted together.
        covariance: of the logs of the six constants, in the order of `law.constants`; runs are its clusters.
        dof: runs less constants, one at least.
        residual_sd: of ln loss about the law.
        parameters: (smallest, largest) model fitted.
    """

    law: ScalingLaw
    staged: ScalingLaw
    covariance: tuple[tuple[float, ...], ...]
    dof: int
    residual_sd: float
    parameters: tuple[float, float]

    def intervals(self, confidence: float = 0.95) -> Mapping[str, tuple[float, float]]:
        """Return the t interval of each constant."""
        half = two_sided(confidence, dof=self.dof) * np.sqrt(np.diag(np.array(self.covariance)))
        return {
            name: (value * math.exp(-min(float(w), 600.0)), value * math.exp(min(float(w), 600.0)))
            for (name, value), w in zip(self.law.constants.items(), half, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Checked:
    """What a run says of a law fitted without it: mean and largest error as a share of the loss, and the verdict.

    `status` is "validated", "rejected", or "cannot tell" where the model is under LARGER times the largest fitted.
    """

    status: str
    mean_error: float
    max_error: float
    larger: float


def fit_scaling(runs: Sequence[TrainingRun]) -> Scaling:
    """Return L(N, S, B) from runs of several sizes at large batches and of one size at several: steps one to five.

    Each step gives the start of the next; then all six constants are fitted to every curve at once, by least squares
    of ln loss, S_min found from S at each point.

    Raises:
        FitError: what a step refuses, with its estimate.
        ConfigError: a run that is none.
    """
    kept = usable(runs)
    large = largest_batches(kept)
    steps = step_law(large, size_law(large))
    staged = ScalingLaw(steps, critical_batch(batch_study(kept)))
    points = [len(r.steps) for r in kept]
    run_P = np.repeat(np.arange(len(kept)), points)
    size_P, batch_P = (np.repeat([float(getattr(r, n)) for r in kept], points) for n in ("parameters", "batch_tokens"))
    step_P, loss_P = np.concatenate([r.steps for r in kept]), np.log(np.concatenate([r.loss for r in kept]))
    weight_P = 1.0 / np.sqrt(np.bincount(run_P)[run_P])  # a run counts once, however often it reported

    def residual(log_6: Floats) -> Floats:
        return np.asarray((np.log(losses(np.exp(log_6), size_P, step_P, batch_P)) - loss_P) * weight_P)

    from scipy.optimize import least_squares

    start = np.log(np.array(list(staged.constants.values())))
    done = least_squares(residual, start, x_scale="jac", method="trf")
    if not done.success:
        raise FitError(f"L(N, S, B): the fit of all curves does not end: {done.message}", estimate=staged)
    found = ScalingLaw.of(dict(zip(staged.constants, map(float, np.exp(done.x)), strict=True)))
    jacobian = np.asarray(done.jac, dtype=np.float64)
    if np.linalg.matrix_rank(jacobian) < len(start):
        raise FitError("L(N, S, B): the curves do not tell all six constants apart", estimate=staged)
    bread = np.linalg.inv(jacobian.T @ jacobian)
    scores = np.array([jacobian[run_P == i].T @ done.fun[run_P == i] for i in range(len(kept))])
    dof = max(1, len(kept) - len(start))
    covariance = bread @ (scores.T @ scores) @ bread * len(kept) / dof
    unweighted = done.fun / weight_P
    return Scaling(
        law=found,
        staged=staged,
        covariance=tuple(tuple(float(x) for x in row) for row in covariance),
        dof=dof,
        residual_sd=float(np.sqrt(np.mean(np.square(unweighted)))),
        parameters=(min(r.parameters for r in kept), max(r.parameters for r in kept)),
    )


def check_larger(scaling: Scaling, run: TrainingRun, *, tolerance: float = TOLERANCE) -> Checked:
    """Return whether a run of a larger model follows the law to `tolerance` of its loss, warm-up left out: step six.

    Raises:
        FitError: a run of too few points.
    """
    (held,) = usable([run])
    said = scaling.law.loss(held.parameters, held.steps, batch_tokens=held.batch_tokens)
    errors = np.abs(said / held.loss - 1.0)
    larger = held.parameters / scaling.parameters[1]
    close = float(np.mean(errors)) <= tolerance
    status = ("validated" if close else "rejected") if larger >= LARGER * (1.0 - 1e-9) else "cannot tell"
    return Checked(status, float(np.mean(errors)), float(np.max(errors)), larger)
