"""A fitted form: what it gives at a place, with an interval, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sweeps.errors import ConfigError, ReachError
from sweeps.optima.student import two_sided

EDGE = 1e-9  # in logs: a point on the border is inside
REACH = {"batch_tokens": 2.0, "tokens": 4.0, "parameters": 2.0}  # how far beyond the box a form is asked; a choice


class Curve(Protocol):
    """The formula of a form: ln of what it gives, of named unknowns and a place."""

    def log_value(self, unknowns: Mapping[str, float], place: Mapping[str, float]) -> float:
        """Return ln of the value there."""
        ...

    def gradient(self, unknowns: Mapping[str, float], place: Mapping[str, float]) -> dict[str, float]:
        """Return its derivative by each unknown."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """A value with its interval; `place` is "box" (the range fitted), "reach" (extrapolated) or "beyond" (refused)."""

    value: float
    low: float
    high: float
    place: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class FormLaw:
    """A form with its unknowns found.

    Attributes:
        form: its name in FORMS.
        convention: "batch fixed" or "batch free".
        predicts: "lr" or "batch_tokens".
        unknowns: estimate of each, in the order of the covariance; logs are natural, of LR per step and tokens.
        covariance: of the unknowns.
        dof: of the t intervals.
        misfit_sd: sd of ln of what is predicted, between points, beyond what their own uncertainty explains.
        box: (lowest, highest) of each axis the form depends on.
        reach: the box stretched; beyond it the law refuses.
        used: keys of the points fitted.
        left_out: (key, label, reason) of the others.
    """

    form: str
    convention: str
    predicts: str
    curve: Curve
    unknowns: Mapping[str, float]
    covariance: tuple[tuple[float, ...], ...]
    dof: float
    misfit_sd: float
    confidence: float
    box: Mapping[str, tuple[float, float]]
    reach: Mapping[str, tuple[float, float]]
    used: tuple[str, ...]
    left_out: tuple[tuple[str, str, str], ...]

    def interval(self, name: str) -> tuple[float, float]:
        """Return the t interval of an unknown."""
        i = list(self.unknowns).index(name)
        half = two_sided(self.confidence, dof=self.dof) * math.sqrt(self.covariance[i][i])
        return self.unknowns[name] - half, self.unknowns[name] + half

    def predict(self, *, confidence: float | None = None, **place: float) -> Given:
        """Return the value at a place: batch_tokens, tokens, parameters, as far as the form depends on them.

        In reach the interval also holds the scatter of points about the law.

        Raises:
            ReachError: beyond the reach; `estimate` is the value refused.
            ConfigError: an axis missing, or no positive number.
        """
        level = self.confidence if confidence is None else confidence
        for axis in self.box:
            value = place.get(axis)
            if value is None or not 0.0 < value < math.inf:
                raise ConfigError(f"{axis}: this law depends on it: must be above 0 and finite, got {value}")
        shares = {axis: self._outside(axis, place[axis]) for axis in self.box}
        slope = self.curve.gradient(self.unknowns, place)
        row = np.array([slope[name] for name in self.unknowns])
        far = max(shares.values(), default=0.0)
        variance = float(row @ np.array(self.covariance) @ row) + (self.misfit_sd**2 if far > 0.0 else 0.0)
        centre = self.curve.log_value(self.unknowns, place)
        half = min(two_sided(level, dof=self.dof) * math.sqrt(variance), 600.0)
        kind = "box" if far == 0.0 else "reach" if far <= 1.0 else "beyond"
        given = Given(math.exp(centre), math.exp(centre - half), math.exp(centre + half), kind, level)
        if kind == "beyond":
            beyond = " and ".join(
                f"{axis} {place[axis]:,.0f} is beyond the law's reach ({self.reach[axis][0]:,.0f} to "
                f"{self.reach[axis][1]:,.0f})"
                for axis, share in shares.items()
                if share > 1.0
            )
            raise ReachError(f"{beyond}; the formula alone would say {given.value:.3g}", estimate=given)
        return given

    def _outside(self, axis: str, value: float) -> float:
        """Return how far outside the box a value is, as a share of the way to the reach's end."""
        (low, high), (nearest, furthest) = self.box[axis], self.reach[axis]
        distance = max(math.log(low / value), math.log(value / high))
        if distance <= EDGE:
            return 0.0
        end = math.log(low / nearest) if value < low else math.log(furthest / high)
        return 1.0 if abs(distance - end) <= EDGE else distance / end
