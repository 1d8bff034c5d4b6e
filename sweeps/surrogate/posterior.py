"""The joint surrogate fitted: the best LR and batch anywhere, with intervals, and what missing them costs."""

# U unknowns of the formula, G groups of one (tokens, parameters), W = U + 3 G, P places

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError
from sweeps.optima.student import two_sided
from sweeps.surrogate.priors import Prior
from sweeps.surrogate.shape import AT, NAMES, best_batch, best_lr, membership, model_at

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The LR to use at a target, and the batch where it is free, each with its interval.

    Attributes:
        lr, lr_low, lr_high: peak LR per step.
        batch_tokens, batch_low, batch_high: the batch given (then all three are equal), or the best one.
        convention: "batch fixed" or "batch free".
        gap: expected loss above the best, as a share of it, from not knowing the optimum better.
        confidence: of the intervals.
    """

    lr: float
    lr_low: float
    lr_high: float
    batch_tokens: float
    batch_low: float
    batch_high: float
    convention: str
    gap: float
    confidence: float


@dataclass(frozen=True)
class Surface:
    """The posterior of the loss over (lr, B, T, N): normal about the most likely unknowns (Laplace).

    Attributes:
        unknowns: [W]: those of `shape.NAMES`, then each group's own level, ln lr* and ln B*.
        covariance: [W, W].
        dof: of t intervals.
        noise_sd: of ln loss of one seed.
        own_sd: of groups' own ln lr* and ln B*.
        groups: (ln T, ln N) about the middle, [G, 2].
        prior: what was believed before, and the middle.
    """

    unknowns: Floats
    covariance: Floats
    dof: float
    noise_sd: float
    own_sd: tuple[float, float]
    groups: Floats
    prior: Prior

    def recommend(
        self,
        *,
        tokens: float,
        parameters: float = 1.0,
        batch_tokens: float | None = None,
        confidence: float = 0.95,
    ) -> Recommendation:
        """Return the best LR at a batch, or the best LR and batch where none is given.

        Raises:
            ConfigError: a number that is not positive, or a confidence outside (0, 1).
        """
        asked = {"tokens": tokens, "parameters": parameters, "batch_tokens": batch_tokens}
        for name, value in asked.items():
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}: must be a positive number, got {value}")
        if not 0.0 < confidence < 1.0:
            raise ConfigError(f"confidence: must be in (0, 1), got {confidence}")
        target = self.target(tokens=tokens, parameters=parameters, batch_tokens=batch_tokens)
        width = two_sided(confidence, dof=self.dof)
        lr_sd, batch_sd = target.sds(self.covariance)
        return Recommendation(
            lr=math.exp(target.lr),
            lr_low=math.exp(target.lr - width * lr_sd),
            lr_high=_exp(target.lr + width * lr_sd),
            batch_tokens=math.exp(target.batch),
            batch_low=math.exp(target.batch - width * batch_sd),
            batch_high=_exp(target.batch + width * batch_sd),
            convention="batch free" if batch_tokens is None else "batch fixed",
            gap=target.gap(self.covariance),
            confidence=confidence,
        )

    def target(self, *, tokens: float, parameters: float = 1.0, batch_tokens: float | None = None) -> Optimal:
        """Return the optimum at a target as a linear function of the unknowns."""
        t, n = math.log(tokens) - self.prior.middle[0], math.log(parameters) - self.prior.middle[1]
        th = self.unknowns[: len(NAMES)]
        given = None if batch_tokens is None else math.log(batch_tokens)
        own = np.flatnonzero(membership(np.array([[0.0, 0.0, t, n]]), self.groups)[0])
        batch, batch_U = best_batch(th, t, n)
        of_batch = self._with_own(batch_U, {2: 1.0}, own)
        lr_own, batch_own = self.unknowns[len(NAMES) :].reshape(3, -1)[1:, own].sum(axis=1)
        # a group's own best batch moves the best LR at a given one as the formula's does
        lr, lr_U = best_lr(th, t, n, batch=None if given is None else given - batch_own)
        of_lr = self._with_own(lr_U, {1: 1.0} if given is None else {1: 1.0, 2: float(lr_U[AT["b0"]])}, own)
        h = math.exp(th[AT["ln_h"]] + th[AT["hT"]] * t)
        hb = math.exp(th[AT["ln_hB"]] + th[AT["hBT"]] * t)
        unseen = (0.0, 0.0) if len(own) else self.own_sd
        if given is None:
            # a batch that is off moves the best LR with it: what costs is the LR's distance at the batch used
            aside = of_lr - th[AT["p"]] * of_batch
            costs = np.stack([aside * math.sqrt(0.5 * h), of_batch * math.sqrt(0.5 * hb)])
            return Optimal(lr + lr_own, batch + batch_own, of_lr, of_batch, costs, unseen, (h, hb))
        costs = np.stack([of_lr * math.sqrt(0.5 * h), np.zeros_like(of_lr)])
        return Optimal(lr + lr_own, given, of_lr, np.zeros_like(of_lr), costs, (unseen[0], 0.0), (h, hb))

    def _with_own(self, slopes_U: Floats, own: Mapping[int, float], groups: NDArray[np.intp]) -> Floats:
        """Return slopes in all unknowns: of the formula, and of the group's own level (0), ln lr* (1), ln B* (2)."""
        own_3G = np.zeros((3, len(self.groups)))
        for row, value in own.items():
            own_3G[row, groups] = value
        return np.concatenate([slopes_U, own_3G.ravel()])

    def ln_loss(self, places_P4: Floats) -> Floats:
        """Return ln loss at places (lr, batch_tokens, tokens, parameters), shape [P, 4] -> [P]."""
        level_P, height_P, _ = self.model(places_P4)
        return level_P + height_P

    def model(self, places_P4: Floats, unknowns_W: Floats | None = None) -> tuple[Floats, Floats, Floats]:
        """Return the level of ln loss at places, the height above it, and the slopes [P, W] of their sum."""
        x_P4 = np.log(places_P4) - np.array([0.0, 0.0, *self.prior.middle])
        at_W = self.unknowns if unknowns_W is None else unknowns_W
        return model_at(at_W, x_P4, membership(x_P4, self.groups))


@dataclass(frozen=True)
class Optimal:
    """The optimum at one target: ln lr* and ln B*, and their slopes in the unknowns.

    Attributes:
        costs: [2, W] rows whose squares, summed, are what an error of the unknowns costs, in ln loss: h d^2 / 2 each.
        unseen_sd: of ln lr* and ln B* of a group that nothing was trained of.
        curvatures: of the loss in ln lr and in ln B.
    """

    lr: float
    batch: float
    lr_slopes: Floats
    batch_slopes: Floats
    costs: Floats
    unseen_sd: tuple[float, float]
    curvatures: tuple[float, float]

    def sds(self, covariance: Floats) -> tuple[float, float]:
        """Return the standard errors of ln lr* and ln B*."""
        found = [float(s @ covariance @ s) + own**2 for s, own in self._pairs()]
        return math.sqrt(max(0.0, found[0])), math.sqrt(max(0.0, found[1]))

    def gap(self, covariance: Floats) -> float:
        """Return the expected loss above the best, in ln loss."""
        known = float(np.einsum("iw,wv,iv->", self.costs, covariance, self.costs))
        return known + 0.5 * sum(h * own**2 for h, own in zip(self.curvatures, self.unseen_sd, strict=True))

    def _pairs(self) -> list[tuple[Floats, float]]:
        return list(zip((self.lr_slopes, self.batch_slopes), self.unseen_sd, strict=True))


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))
