"""Fits the joint surrogate: the most likely unknowns under their priors, and their covariance there (Laplace)."""

# P places, U unknowns of the shape, G groups of one (tokens, parameters), W = U + 3 G: each group's own level, best LR
# and best batch beside those of the formula

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import FitError
from sweeps.surrogate.posterior import Surface
from sweeps.surrogate.priors import Prior, prior_of
from sweeps.surrogate.rows import Rows
from sweeps.surrogate.shape import AT, NAMES, membership, model_at

Floats = NDArray[np.float64]
Modelled = tuple[Floats, Floats, Floats]  # level [P], height above it [P], slopes of their sum [P, W]

# Chosen among fifteen pairs, 0.05 to 0.5 and 0.02 to 0.06, by the loss gap of cells left out one by one, of the eight
# cells of Step Law's dense runs with N <= 430M and D <= 25e9
FORM_ERROR = 0.3  # of the height above the optimum to which the formula is trusted there
NEAR = 0.04  # ln loss above the optimum, or four noises: up to there the form error grows in proportion
FAR = 2.0  # times NEAR: above, a row only says that the loss is high; assumed
HIGH_SD = 0.03  # how firmly: sd of ln loss; assumed
OUTLYING = 2.5  # Huber's bound, in standard errors
NOISES = np.geomspace(2e-4, 0.1, 28)  # sd of ln loss of one seed
NOISE_PRIOR = (math.log(0.002), 1.5)  # of ln sd: 0.0007 to 0.01 in published language model runs; assumed
OWN = (0.01, 0.1, 0.1)  # sd of a group's own level (ln loss), best LR and best batch (ln) about the formula; assumed,
OWN_DOF = 4.0  # and worth as many groups; the latter two are found from the data
OUTER, INNER = 6, 20
SETTLED = 1e-4  # fall of the objective at which a step ends the search


def fit_surface(
    rows: Rows | None, *, prior: Prior | None = None, places: Floats | None = None, start: Surface | None = None
) -> Surface:
    """Return the surrogate of these rows.

    Rows far above the optimum, and diverged ones, only say that the loss is high there. Any number of rows will do:
    what they do not tell stays as wide as the prior.

    Args:
        rows: what was trained; None: nothing yet.
        prior: of the unknowns; None: that of the places and rows.
        places: (lr, batch_tokens, tokens, parameters) that may be trained, [P, 4]; None: those of the rows.
        start: a fit of fewer rows, as one more place to start from.

    Raises:
        FitError: neither rows nor places.
    """
    known = [p for p in (places, None if rows is None else rows.places) if p is not None]
    if not known:
        raise FitError("surrogate: no runs to fit, and no places to run")
    all_P4 = np.concatenate(known)
    prior = prior_of(all_P4) if prior is None else prior
    groups_G2 = np.unique(np.log(all_P4[:, 2:]).round(9), axis=0) - np.array(prior.middle)
    problem = _Problem.of(rows, prior, groups_G2)
    starts = [problem.centre, problem.from_best()]
    if start is not None:
        starts.insert(0, problem.from_surface(start))
    problem, best_W, noise = min((problem.solve(at) for at in starts), key=lambda found: found[0].cost(*found[1:]))
    covariance_WW, used, squares = problem.curvature(best_W, noise)
    told = max(1.0, used - len(NAMES) + problem.held(covariance_WW))
    spread = math.sqrt((prior.dof + squares) / (prior.dof + told))
    return Surface(
        unknowns=best_W,
        covariance=covariance_WW * max(1.0, spread) ** 2,
        dof=prior.dof + told,
        noise_sd=noise,
        own_sd=problem.own_sd[1:],
        groups=groups_G2,
        prior=prior,
    )


@dataclass(frozen=True)
class _Problem:
    """The rows about the middle, and the priors of all unknowns.

    Attributes:
        places: ln lr, ln B, ln T, ln N, the last two about the middle, [P, 4].
        ln_loss: [P]; inf where diverged.
        count: seeds, [P].
        group: 1 where a row is of a group, [P, G].
        centre, precision: of the normal priors, [W].
        scatter: sum of squares of ln loss between seeds, and its degrees of freedom.
        own_sd: of groups' own level, ln lr* and ln B*.
    """

    places: Floats
    ln_loss: Floats
    count: Floats
    group: Floats
    centre: Floats
    precision: Floats
    scatter: tuple[float, int]
    own_sd: tuple[float, float, float]

    @classmethod
    def of(cls, rows: Rows | None, prior: Prior, groups_G2: Floats) -> _Problem:
        centre_W = np.concatenate([prior.mean, np.zeros(3 * len(groups_G2))])
        precision_W = np.concatenate([prior.sd**-2.0, np.repeat(np.array(OWN) ** -2.0, len(groups_G2))])
        if rows is None:
            none_P = np.empty(0)
            return cls(
                np.empty((0, 4)), none_P, none_P, np.empty((0, len(groups_G2))), centre_W, precision_W, (0.0, 0), OWN
            )
        x_P4 = np.log(rows.places) - np.array([0.0, 0.0, *prior.middle])
        whole = (rows.count > 0.0) & ~rows.diverged
        y_P = np.where(whole, np.log(np.where(whole, rows.loss, 1.0)), np.inf)
        return cls(
            places=x_P4,
            ln_loss=y_P,
            count=np.maximum(rows.count, 1.0),
            group=membership(x_P4, groups_G2),
            centre=centre_W,
            precision=precision_W,
            scatter=(rows.scatter, rows.scatter_dof),
            own_sd=OWN,
        )

    def with_own(self, at_W: Floats, covariance_WW: Floats) -> _Problem:
        """Return the problem with the spread of the groups' own optima as these unknowns tell it (one step of EM)."""
        groups, size = self.group.shape[1], len(NAMES)
        variance_W = at_W**2 + np.diag(covariance_WW)
        own = [OWN[0]]
        for i in (1, 2):
            found = float(variance_W[size + i * groups : size + (i + 1) * groups].sum())
            own.append(math.sqrt((OWN_DOF * OWN[i] ** 2 + found) / (OWN_DOF + groups)))
        precision_W = self.precision.copy()
        precision_W[size:] = np.repeat(np.array(own) ** -2.0, groups)
        return replace(self, precision=precision_W, own_sd=(own[0], own[1], own[2]))

    def from_best(self) -> Floats:
        """Return the prior's centre with the optimum moved to the middle of the groups' best places."""
        start_W = self.centre.copy()
        loss_PG = np.where(self.group > 0.0, self.ln_loss[:, None], np.inf)
        best = [int(np.argmin(loss_P)) for loss_P in loss_PG.T if np.isfinite(loss_P).any()]
        if best:
            start_W[[AT["m0"], AT["b0"]]] = self.places[best, :2].mean(axis=0)
        return start_W

    def from_surface(self, start: Surface) -> Floats:
        """Return the unknowns of a fit of fewer rows."""
        start_W = self.centre.copy()
        start_W[: len(NAMES)] = start.unknowns[: len(NAMES)]
        return start_W

    def model(self, at_W: Floats) -> Modelled:
        """Return the level, the height above it, and the slopes [P, W]."""
        return model_at(at_W, self.places, self.group)

    def weigh(self, level_P: Floats, noise: float) -> tuple[NDArray[np.bool_], Floats]:
        """Return which rows are far above the optimum, and the precision of all."""
        near = near_of(noise)
        up_P = np.maximum(self.ln_loss - level_P, 0.0)
        far_P = up_P > FAR * near
        near_P = np.where(far_P, 0.0, up_P)
        precision_P = 1.0 / (noise**2 / self.count + form_error(near_P, near) ** 2)
        return far_P, np.where(far_P, max(HIGH_SD, 2.0 * noise) ** -2.0, precision_P)

    def residuals(self, level_P: Floats, height_P: Floats, far_P: NDArray[np.bool_], noise: float) -> Floats:
        """Return model less loss; of a far row how much its height falls short of being high, else 0."""
        high = 0.6 * FAR * near_of(noise)
        return np.where(
            far_P, np.minimum(0.0, height_P - high), level_P + height_P - np.where(far_P, 0.0, self.ln_loss)
        )

    def solve(self, start_W: Floats) -> tuple[_Problem, Floats, float]:
        """Return problem, unknowns and noise at a local minimum of the cost, weights and unknowns by turns."""
        problem, at_W, noise = self, start_W.copy(), math.exp(NOISE_PRIOR[0])
        for _ in range(OUTER):
            level_P, height_P, _ = problem.model(at_W)
            noise = problem.noise_at(level_P, height_P)
            far_P, precision_P = problem.weigh(level_P, noise)
            moved_W = problem._descend(at_W, far_P, precision_P, noise)
            settled = np.max(np.abs(moved_W - at_W) * np.sqrt(problem.precision)) < 1e-3
            at_W = moved_W
            if settled:
                break
            problem = problem.with_own(at_W, problem.curvature(at_W, noise)[0])
        return problem, at_W, noise

    def noise_at(self, level_P: Floats, height_P: Floats) -> float:
        """Return the most likely noise given the unknowns, by the rows' residuals and the seeds' scatter."""
        scatter, dof = self.scatter
        best, found = -math.inf, NOISES[0]
        for noise in NOISES.tolist():
            far_P, precision_P = self.weigh(level_P, noise)
            r_P = self.residuals(level_P, height_P, far_P, noise)
            squares_P = np.minimum(r_P**2 * precision_P, OUTLYING**2)
            likely = 0.5 * float(np.sum(np.log(precision_P) - squares_P))
            likely -= dof * math.log(noise) + 0.5 * scatter / noise**2
            likely -= 0.5 * ((math.log(noise) - NOISE_PRIOR[0]) / NOISE_PRIOR[1]) ** 2
            if likely > best:
                best, found = likely, noise
        return float(found)

    def cost(self, at_W: Floats, noise: float) -> float:
        """Return minus the log posterior."""
        level_P, height_P, _ = self.model(at_W)
        far_P, precision_P = self.weigh(level_P, noise)
        said = 0.5 * float(np.sum(np.log(precision_P)))
        return self._cost(at_W, level_P, height_P, far_P=far_P, precision_P=precision_P, noise=noise) - said

    def _cost(
        self,
        at_W: Floats,
        level_P: Floats,
        height_P: Floats,
        *,
        far_P: NDArray[np.bool_],
        precision_P: Floats,
        noise: float,
    ) -> float:
        z_P = np.abs(self.residuals(level_P, height_P, far_P, noise)) * np.sqrt(precision_P)
        huber_P = np.where(z_P < OUTLYING, 0.5 * z_P**2, OUTLYING * z_P - 0.5 * OUTLYING**2)
        believed = self.precision * (at_W - self.centre) ** 2 - np.log(self.precision)
        return float(huber_P.sum() + 0.5 * believed.sum())

    def _normal(
        self, at_W: Floats, here: Modelled, far_P: NDArray[np.bool_], precision_P: Floats, noise: float
    ) -> tuple[Floats, Floats, Floats]:
        """Return the gradient [W] and the Gauss-Newton curvature [W, W] of the cost, and the robust weights [P]."""
        level_P, height_P, slopes_PW = here
        slopes_PW = slopes_PW.copy()
        slopes_PW[far_P] -= self._level_slopes(slopes_PW[far_P], far_P)
        r_P = self.residuals(level_P, height_P, far_P, noise)
        z_P = np.abs(r_P) * np.sqrt(precision_P)
        weight_P = precision_P * np.minimum(1.0, OUTLYING / np.maximum(z_P, 1e-12)) * (~far_P | (r_P < 0.0))
        gradient_W = slopes_PW.T @ (weight_P * r_P) + self.precision * (at_W - self.centre)
        return gradient_W, slopes_PW.T @ (slopes_PW * weight_P[:, None]) + np.diag(self.precision), weight_P

    def _level_slopes(self, slopes_FW: Floats, far_P: NDArray[np.bool_]) -> Floats:
        """Return the part of the slopes that is of the level: a far row's residual is of the height alone."""
        level_FW = np.zeros_like(slopes_FW)
        level_FW[:, : AT["m0"]] = slopes_FW[:, : AT["m0"]]
        groups = self.group.shape[1]
        level_FW[:, len(NAMES) : len(NAMES) + groups] = self.group[far_P]
        return level_FW

    def _descend(self, at_W: Floats, far_P: NDArray[np.bool_], precision_P: Floats, noise: float) -> Floats:
        """Return a minimum of the cost at fixed weights, by Levenberg and Marquardt's steps."""

        def cost_at(at: Floats, there: Modelled) -> float:
            level_P, height_P, _ = there
            return self._cost(at, level_P, height_P, far_P=far_P, precision_P=precision_P, noise=noise)

        here = self.model(at_W)
        now, damping = cost_at(at_W, here), 1e-3
        longest_W = self.precision**-0.5
        for _ in range(INNER):
            gradient_W, curvature_WW, _ = self._normal(at_W, here, far_P, precision_P, noise)
            before = now
            for _ in range(8):
                damped_WW = curvature_WW + damping * np.diag(np.diag(curvature_WW))
                step_W = np.clip(np.linalg.solve(damped_WW, -gradient_W), -longest_W, longest_W)
                there = self.model(at_W + step_W)
                then = cost_at(at_W + step_W, there)
                if then < now:
                    at_W, here, now, damping = at_W + step_W, there, then, max(damping / 5.0, 1e-9)
                    break
                damping *= 5.0
            if before - now < SETTLED:
                break
        return at_W

    def curvature(self, at_W: Floats, noise: float) -> tuple[Floats, float, float]:
        """Return the covariance of the unknowns, the number of rows that say something, and their weighted squares."""
        here = self.model(at_W)
        level_P, height_P, _ = here
        far_P, precision_P = self.weigh(level_P, noise)
        _, curvature_WW, weight_P = self._normal(at_W, here, far_P, precision_P, noise)
        r_P = self.residuals(level_P, height_P, far_P, noise)
        used = float(np.count_nonzero(~far_P))
        return np.asarray(np.linalg.inv(curvature_WW)), used, float(np.sum((weight_P * r_P**2)[~far_P]))

    def held(self, covariance_WW: Floats) -> float:
        """Return how many of the shape's unknowns the prior holds, not the rows."""
        size = len(NAMES)
        return float(np.sum(np.diag(covariance_WW)[:size] * self.precision[:size]))


def near_of(noise_sd: float) -> float:
    """Return the height above the optimum up to which the form error grows in proportion."""
    return max(NEAR, 4.0 * noise_sd)


def form_error(height: Floats, near: float) -> Floats:
    """Return the sd of the formula at this height above the optimum: more than in proportion beyond `near`."""
    return np.asarray(FORM_ERROR * height * (1.0 + (height / near) ** 2))
