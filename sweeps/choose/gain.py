"""How much a trial would shrink what is lost at a target, per cost: the next ones to run are those of the largest gain.

What is lost for want of a better estimate is h d^2 / 2 in ln loss, d the error of ln lr* (and of ln B*, where the batch
is free). Its expectation is a quadratic form of the unknowns' covariance, and a trial lowers it by the same amount
whatever its loss turns out to be, as long as the surrogate is linear there: a Bayesian L-optimal design (Chaloner and
Verdinelli 1995, section 2.3). Slopes are those of the most likely unknowns: averaged over draws of the posterior,
places were chosen that tell much of unlikely unknowns, and lr* at the target was known less well.
"""

# P places, W unknowns, K rows of costs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.surrogate import Surface
from sweeps.surrogate.fit import FAR, form_error, near_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the law will be asked: `batch_tokens` None is at the best batch; `weight` among several targets."""

    tokens: float
    parameters: float = 1.0
    batch_tokens: float | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """The places that may be trained.

    Attributes:
        places: (lr, batch_tokens, tokens, parameters), [P, 4].
        costs: of one seed there, in any unit; positive, [P].
        seeds: that ended there, [P].
        most_seeds: of one place.
        pending: indices of places under way, one entry a seed: they count as if they had ended.
    """

    places: Floats
    costs: Floats
    seeds: Floats
    most_seeds: int = 1
    pending: tuple[int, ...] = ()


def next_places(surface: Surface, pool: Pool, *, targets: Sequence[Target], count: int) -> list[int]:
    """Return the indices of the places to train next, the best first; each adds one seed to its place.

    Args:
        surface: fitted to what has ended; its groups hold those of all places (`fit_surface(places=...)`).
        pool: where to choose.
        targets: at least one.
        count: of places to choose; fewer where no more are left.
    """
    slopes_PW, form_P = _slopes(surface, pool.places)
    optima = [surface.target(tokens=t.tokens, parameters=t.parameters, batch_tokens=t.batch_tokens) for t in targets]
    cost_KW = np.concatenate([np.sqrt(t.weight) * o.costs for t, o in zip(targets, optima, strict=True)])
    state = _State(surface.covariance.copy(), pool.seeds.astype(np.float64), surface.noise_sd)
    for index in pool.pending:
        state.add(index, slopes_PW[index], form_P[index])
    chosen: list[int] = []
    while len(chosen) < count:
        gain_P = state.gain(slopes_PW, form_P, cost_KW)
        score_P = np.where(state.seeds < pool.most_seeds, gain_P / pool.costs, -np.inf)
        best = int(np.argmax(score_P))
        if not np.isfinite(score_P[best]):
            break
        chosen.append(best)
        state.add(best, slopes_PW[best], form_P[best])
    return chosen


@dataclass
class _State:
    """What is known once some places have been trained: the covariance of the unknowns [W, W], and seeds [P]."""

    covariance: Floats
    seeds: Floats
    noise_sd: float

    def gain(self, slopes_PW: Floats, form_P: Floats, cost_KW: Floats) -> Floats:
        """Return by how much one more seed at each place lowers what is lost, [P]."""
        reach_PW = slopes_PW @ self.covariance
        moved_PK = reach_PW @ cost_KW.T
        spread_P = np.einsum("pw,pw->p", reach_PW, slopes_PW)
        return np.asarray((moved_PK**2).sum(axis=1) / (self._error(form_P, self.seeds) + spread_P))

    def add(self, index: int, slopes_W: Floats, form: float) -> None:
        """Train one more seed at a place."""
        error = float(self._error(np.array([form]), self.seeds[[index]])[0])
        moved_W = self.covariance @ slopes_W
        if np.isfinite(error):
            self.covariance -= np.outer(moved_W, moved_W) / (error + slopes_W @ moved_W)
        self.seeds[index] += 1.0

    def _error(self, form_P: Floats, seeds_P: Floats) -> Floats:
        """Return the variance of an observation worth what one more seed adds: seeds share the form's error."""
        noise = self.noise_sd**2
        after_P = 1.0 / (form_P + noise / (seeds_P + 1.0))
        before_P = np.where(seeds_P > 0.0, 1.0 / (form_P + noise / np.maximum(seeds_P, 1.0)), 0.0)
        return np.asarray(1.0 / np.maximum(after_P - before_P, 1e-300))


def _slopes(surface: Surface, places_P4: Floats) -> tuple[Floats, Floats]:
    """Return the slopes of ln loss in the unknowns [P, W] and the variance of the formula there [P]."""
    near = near_of(surface.noise_sd)
    _, height_P, slopes_PW = surface.model(places_P4)
    far_P = height_P > FAR * near  # such a row tells next to nothing
    return slopes_PW, np.where(far_P, np.inf, form_error(np.where(far_P, 0.0, height_P), near) ** 2)
