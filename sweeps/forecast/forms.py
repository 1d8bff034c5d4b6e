"""The curve laws. To add one: a frozen dataclass that is a CurveForm, and its name in CURVE_LAWS below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sweeps.errors import ConfigError, unknown_name
from sweeps.forecast.features import WARMUPS, Falls, falls_of, momentum_sum, steps_of
from sweeps.forecast.form import Bend, CurveForm
from sweeps.forecast.published import DRAWN, PRIORS, REPOSITORY, Prior
from sweeps.forecast.records import Floats, Ints, LrPath
from sweeps.schedules.base import require

# P points, K falls (or terms), U bends

ALPHA = Bend("alpha", 0.02, 3.0, (0.25, 0.4, 0.55, 0.8))
TINY_LR = 1e-10  # an LR of zero counts as this where a power of it is taken; arXiv:2503.12811, its repository


def gained(sum_P: Floats, alpha: float) -> Floats:
    """Return S1^-alpha."""
    return np.asarray(np.maximum(sum_P, 1e-300) ** -alpha, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class NoAnnealing(CurveForm):
    """L = L0 + A S1^-alpha: the LR's sum alone. A baseline: it does not know that falls of the LR gain anything."""

    weights: ClassVar[tuple[str, ...]] = ("L0", "A")
    bends: ClassVar[tuple[Bend, ...]] = (ALPHA,)
    reads_falls: ClassVar[bool] = False

    def read(self, path: LrPath, step_P: Ints) -> Any:
        """Return S1 at the points."""
        return (steps_of(path, self.warmup).total[step_P - 1],)

    def terms(self, bends_U: Floats, reading: Any) -> Floats:
        """Return 1 and S1^-alpha."""
        sum_P = reading[0]
        return np.column_stack([np.ones_like(sum_P), gained(sum_P, bends_U[0])])

    def scale(self, bends_U: Floats, unit: float) -> Floats:
        """Return unit^alpha for A."""
        scale_K = np.ones(len(self.weights))
        scale_K[1] = unit ** bends_U[0]
        return scale_K


@dataclass(frozen=True, kw_only=True)
class LinearDrop(NoAnnealing):
    """L = L0 + A S1^-alpha - C (peak - eta): a fall gains at once all it ever will. A baseline (G = 1)."""

    weights: ClassVar[tuple[str, ...]] = ("L0", "A", "C")
    reads_falls: ClassVar[bool] = True

    def read(self, path: LrPath, step_P: Ints) -> Any:
        """Return S1 and the summed falls at the points."""
        steps = steps_of(path, self.warmup)
        return steps.total[step_P - 1], np.cumsum(steps.fall)[step_P - 1]

    def terms(self, bends_U: Floats, reading: Any) -> Floats:
        """Return 1, S1^-alpha and minus the summed falls."""
        sum_P, fallen_P = reading
        return np.column_stack([np.ones_like(sum_P), gained(sum_P, bends_U[0]), -fallen_P])


@dataclass(frozen=True, kw_only=True)
class Momentum(LinearDrop):
    """L = L0 + A S1^-alpha - C S2, S2 the sum of m_i = decay m_(i-1) + fall_i. Tissue et al., arXiv:2408.11029.

    Never design a schedule against it: what minimises it is the peak LR and then a drop to zero in two steps
    (arXiv:2503.12811, appendix F).

    Attributes:
        decay: of the momentum of falls, lambda; .999 in all experiments of its source (published). Choosing it by the
            training curves hurts where they hold one kind of fall.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        CurveForm.__post_init__(self)
        require("decay", self.decay, 0 <= self.decay < 1, "be at least 0 and below 1")

    def read(self, path: LrPath, step_P: Ints) -> Any:
        """Return S1 and S2 at the points."""
        steps = steps_of(path, self.warmup)
        return steps.total[step_P - 1], momentum_sum(steps.fall, self.decay)[step_P - 1]


@dataclass(frozen=True, kw_only=True)
class MultiPower(NoAnnealing):
    """L = L0 + A S1^-alpha - B sum_k fall_k (1 - (1 + C eta_k^-gamma S_k)^-beta). Luo et al., arXiv:2503.12811.

    S_k is the LR summed since fall k, its own step included. beta and C (with B) are not told apart by one or two
    curves, so a prior on (ln B, ln C, beta, gamma) is part of the form; None leaves it out.

    Attributes:
        warmup: "ramp" as in the source's repository, or "area" as in its paper.
        prior: of the same convention as `warmup`; centred on the mean of the published parameters of three sizes.
    """

    weights: ClassVar[tuple[str, ...]] = ("L0", "A", "B")
    bends: ClassVar[tuple[Bend, ...]] = (
        ALPHA,
        Bend("ln C", -5.0, 12.0, (0.7, 3.0)),
        Bend("beta", 0.02, 3.0, (0.3, 0.6)),
        Bend("gamma", 0.0, 1.5, (0.3, 0.6)),
    )
    reads_falls: ClassVar[bool] = True
    designs: ClassVar[bool] = True

    warmup: str = "ramp"
    prior: Prior | None = REPOSITORY

    def __post_init__(self) -> None:
        CurveForm.__post_init__(self)
        _fitting_prior(self.prior, "multi-power", self.warmup)

    def read(self, path: LrPath, step_P: Ints) -> Any:
        """Return the falls as the points see them."""
        falls = falls_of(path, step_P, warmup=self.warmup)
        return falls, falls.since, np.log(np.maximum(falls.lr, TINY_LR))

    def terms(self, bends_U: Floats, reading: Any) -> Floats:
        """Return 1, S1^-alpha and minus the falls' gain."""
        falls: Falls
        falls, since_PK, log_lr_K = reading
        alpha, log_c, beta, gamma = bends_U
        gain_PK = -np.expm1(-beta * np.log1p(np.exp(log_c - gamma * log_lr_K) * since_PK))
        return np.column_stack([np.ones_like(falls.total), gained(falls.total, alpha), -(gain_PK @ falls.fall)])

    def penalty(self, weights_K: Floats, bends_U: Floats) -> Floats:
        """Return the prior's residuals."""
        if self.prior is None:
            return np.empty(0)
        found = np.array([np.log(max(weights_K[2], 1e-300)), *bends_U[1:]])
        return self.prior.residuals(found)


@dataclass(frozen=True, kw_only=True)
class Fsl(NoAnnealing):
    """L = L0 + c1 T^-s - c2 sum_i fall_i (c3 + T_i^-s) (1 - (1 + c4 (T - T_i))^-gamma). arXiv:2509.19189.

    T is the LR summed; T_i up to fall i. Falls at one place do not tell c2 from c2 c3, nor one curve c4 from gamma, so
    a prior on (ln c2 c3, ln c2, ln c4, gamma) is part of the form; None leaves it out.

    Attributes:
        prior: centred on what FSL is for the published multi-power laws of three sizes.
    """

    weights: ClassVar[tuple[str, ...]] = ("L0", "c1", "c2 c3", "c2")
    bends: ClassVar[tuple[Bend, ...]] = (
        Bend("s", 0.02, 3.0, (0.25, 0.4, 0.55, 0.8)),
        Bend("ln c4", -8.0, 14.0, (1.0, 3.0, 5.0)),
        Bend("gamma", 0.02, 3.0, (0.3, 0.8)),
    )
    reads_falls: ClassVar[bool] = True
    designs: ClassVar[bool] = True

    prior: Prior | None = DRAWN

    def __post_init__(self) -> None:
        CurveForm.__post_init__(self)
        _fitting_prior(self.prior, "fsl", self.warmup)

    def read(self, path: LrPath, step_P: Ints) -> Any:
        """Return the falls as the points see them."""
        falls = falls_of(path, step_P, warmup=self.warmup)
        return falls, falls.after

    def terms(self, bends_U: Floats, reading: Any) -> Floats:
        """Return 1, T^-s and minus the two parts of the falls' gain."""
        falls: Falls
        falls, after_PK = reading
        s, log_c4, gamma = bends_U
        gain_PK = -np.expm1(-gamma * np.log1p(np.exp(log_c4) * after_PK))
        late_K = falls.fall * gained(falls.upto, s)
        one_P = np.ones_like(falls.total)
        return np.column_stack([one_P, gained(falls.total, s), -(gain_PK @ falls.fall), -(gain_PK @ late_K)])

    def scale(self, bends_U: Floats, unit: float) -> Floats:
        """Return unit^s for c1 and c2."""
        power = unit ** bends_U[0]
        return np.array([1.0, power, 1.0, power])

    def penalty(self, weights_K: Floats, bends_U: Floats) -> Floats:
        """Return the prior's residuals."""
        if self.prior is None:
            return np.empty(0)
        found = np.array([*np.log(np.maximum(weights_K[2:], 1e-300)), *bends_U[1:]])
        return self.prior.residuals(found)


def _fitting_prior(prior: Prior | None, law: str, warmup: str) -> None:
    """Raise ConfigError for a prior of another law or another convention."""
    if prior is None or (prior.law, prior.warmup) == (law, warmup):
        return
    raise ConfigError(
        f"prior: must be of {law} under the convention {warmup!r}, got {prior.name!r}, of {prior.law} under "
        f"{prior.warmup!r}: their parameters are not interchangeable"
    )


def curve_form(name: str, *, warmup: str | None = None, prior: str | None = None) -> CurveForm:
    """Return the curve law of this name, with its usual convention for the warm-up and its usual prior.

    `prior` is a name of PRIORS, or "none"; by default the one on all sizes of its law and convention.

    Raises:
        ConfigError: a name that is not there, a prior for a law that has none, or one of another law or convention.
    """
    if name not in CURVE_LAWS:
        raise unknown_name("--law", name, CURVE_LAWS, "curve law")
    if warmup is not None and warmup not in WARMUPS:
        raise unknown_name("--warmup", warmup, WARMUPS, "convention")
    law = CURVE_LAWS[name]
    chosen: dict[str, Any] = {} if warmup is None else {"warmup": warmup}
    if not issubclass(law, MultiPower | Fsl):
        if prior is not None:
            raise ConfigError(f"--prior: only multi-power and fsl have one, got {prior!r} with {name}")
        return law(**chosen)
    if prior == "none":
        return law(prior=None, **chosen)
    convention = warmup or law.__dataclass_fields__["warmup"].default
    usual = next((one for one in PRIORS.values() if (one.law, one.warmup) == (name, convention)), None)
    if prior is None and usual is None:
        raise ConfigError(f"--prior: no published parameters of {name} under the convention {convention!r}; name none")
    if prior is not None and prior not in PRIORS:
        raise unknown_name("--prior", prior, [*PRIORS, "none"], "prior")
    return law(prior=usual if prior is None else PRIORS[prior], **chosen)


CURVE_LAWS: dict[str, type[CurveForm]] = {
    "momentum": Momentum,
    "multi-power": MultiPower,
    "fsl": Fsl,
    "no-annealing": NoAnnealing,
    "linear-drop": LinearDrop,
}
