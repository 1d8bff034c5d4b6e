"""Formulas of published laws: functions of named axes, and of an anchor where the law is a ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from sweeps.errors import ConfigError, FitError


@dataclass(frozen=True, slots=True)
class Anchor:
    """An LR known to be best somewhere else: at `tokens`, and of a model of `parameters` where that is another one."""

    lr: float
    tokens: float
    parameters: float | None = None


class Term(Protocol):
    """A formula of some axes."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The axes without which it has no value."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """The axes it counts where they are known."""
        ...

    def value(self, point: Mapping[str, float], anchor: Anchor | None) -> float:
        """Return the value at a point that holds all it needs."""
        ...


@dataclass(frozen=True, slots=True)
class Power:
    """coefficient * product of axis^exponent."""

    coefficient: float
    exponents: Mapping[str, float]
    optional: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The axes it is a product of."""
        return tuple(self.exponents)

    def value(self, point: Mapping[str, float], anchor: Anchor | None) -> float:
        """Return the product."""
        return self.coefficient * math.prod(math.pow(point[axis], power) for axis, power in self.exponents.items())


@dataclass(frozen=True, slots=True)
class Logarithm:
    """intercept + slope * ln(axis)."""

    intercept: float
    slope: float
    axis: str
    optional: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """Its axis."""
        return (self.axis,)

    def value(self, point: Mapping[str, float], anchor: Anchor | None) -> float:
        """Return the sum. Raises FitError where it is not above 0."""
        found = self.intercept + self.slope * math.log(point[self.axis])
        if found <= 0.0:
            raise FitError(
                f"{self.axis} {point[self.axis]:,.0f}: the formula gives no positive LR there", estimate=found
            )
        return found


@dataclass(frozen=True, slots=True)
class Ratio:
    """The anchor's LR * product of (axis / the anchor's)^exponent; `optional` axes count where both sides know them."""

    exponents: Mapping[str, float]
    optional: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The axes without which there is no ratio, and the anchor."""
        return ("anchor", *(axis for axis in self.exponents if axis not in self.optional))

    def value(self, point: Mapping[str, float], anchor: Anchor | None) -> float:
        """Return the anchor's LR carried over. Raises ConfigError where one side alone knows an axis."""
        assert anchor is not None, "it is among what this term needs"
        found = anchor.lr
        for axis, power in self.exponents.items():
            here, there = point.get(axis), getattr(anchor, axis)
            if (here is None) != (there is None):
                known, missing = ("the run's", "the anchor's") if there is None else ("the anchor's", "the run's")
                raise ConfigError(
                    f"{axis}: {known} is given and {missing} is not: give both, or none if they are equal"
                )
            if here is not None:
                found *= (here / there) ** power
        return found
