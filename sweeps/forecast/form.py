"""The shape of a curve law: losses as a sum of terms, each a weight at least 0 times a function of the LR path.

All the laws here are linear in some parameters (the weights: a floor, what training gains, what falls of the LR gain)
once the others (the bends: exponents and the like) are given. A form says which terms there are; fitting and
predicting are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sweeps.forecast.features import WARMUPS
from sweeps.forecast.records import Floats, Ints, LossCurve, LrPath
from sweeps.schedules.base import require_choice

# P points, K terms, U bends


@dataclass(frozen=True, slots=True)
class Bend:
    """A parameter that is not a weight: its bounds, and the values a fit starts from."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CurveForm(ABC):
    """A curve law without its numbers: a frozen dataclass whose fields are its configuration.

    Attributes:
        warmup: convention for the warm-up, one of WARMUPS (sweeps/forecast/features.py). Parameters of one convention
            mean nothing in another.
    """

    version: ClassVar[int] = 1
    weights: ClassVar[tuple[str, ...]]  # names of the weights, the floor first
    bends: ClassVar[tuple[Bend, ...]]
    reads_falls: ClassVar[bool] = True
    designs: ClassVar[bool] = False  # whether a schedule may be optimised against it

    warmup: str = "area"

    def __post_init__(self) -> None:
        require_choice("warmup", self.warmup, WARMUPS)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters, weights first."""
        return (*self.weights, *(bend.name for bend in self.bends))

    @abstractmethod
    def read(self, path: LrPath, step_P: Ints) -> Any:
        """Return what `terms` needs of a path, independent of the parameters."""

    @abstractmethod
    def terms(self, bends_U: Floats, reading: Any) -> Floats:
        """Return the functions that the weights multiply, [P, K], the first of them 1."""

    def scale(self, bends_U: Floats, unit: float) -> Floats:
        """Return the factor of each weight, [K], when the sum of LRs is counted in `unit` instead of 1."""
        del bends_U, unit
        return np.ones(len(self.weights))

    def penalty(self, weights_K: Floats, bends_U: Floats) -> Floats:
        """Return the residuals of a prior on the parameters; none unless the form has one."""
        del weights_K, bends_U
        return np.empty(0)

    def reading_of(self, curve: LossCurve) -> Any:
        """Return what `terms` needs at the points of a curve."""
        return self.read(curve.path, curve.step)
