"""Schedules stretched over a horizon that is known from the first step: linear, cosine, REX, step, OneCycle."""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sweeps.schedules.base import Floor, descend, require, require_fraction, require_rising


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedHorizon(ABC):
    """A linear warm-up from 0 over `warmup_fraction` of the horizon, then a profile over the rest of it."""

    version: ClassVar[int] = 1
    horizon_free: ClassVar[bool] = False

    warmup_fraction: float = 0.0

    def __post_init__(self) -> None:
        require_fraction("warmup_fraction", self.warmup_fraction)

    @abstractmethod
    def profile(self, t: float, floor: float) -> float:
        """Return the factor at t in [0, 1] of what follows the warm-up."""

    @property
    def open_ended(self) -> bool:
        """False: the curve depends on the horizon."""
        return False

    def __call__(self, seen: float, total: float, floor: float = 0.0) -> float:
        x = seen / total
        if x < self.warmup_fraction:
            return x / self.warmup_fraction
        return self.profile(min((x - self.warmup_fraction) / (1 - self.warmup_fraction), 1.0), floor)

    def floor(self, peak: float) -> float:
        """Return zero: this schedule has no absolute floor."""
        del peak
        return 0.0

    def check(self, total: int) -> None:
        """Accept every horizon: all of the schedule is in fractions of it."""
        del total


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent(FixedHorizon, ABC):
    """A fixed-horizon schedule whose profile descends to a floor: `end_lr` (absolute) or `end_fraction` (of the peak).

    Step Law's recipe (arXiv:2503.04715) has a cosine to an absolute 1e-5: a floor relative to the peak biases the
    optimum.
    """

    end_lr: float = 0.0
    end_fraction: float = 0.0

    def __post_init__(self) -> None:
        FixedHorizon.__post_init__(self)
        Floor(end_lr=self.end_lr, end_fraction=self.end_fraction)

    def floor(self, peak: float) -> float:
        """Return the last LR over the peak."""
        return Floor(end_lr=self.end_lr, end_fraction=self.end_fraction).floor(peak)

    def profile(self, t: float, floor: float) -> float:
        """Return floor + (1 - floor) * shape(t)."""
        low = floor or self.end_fraction
        return low + (1 - low) * self.shape(t)

    @abstractmethod
    def shape(self, t: float) -> float:
        """Return the value at t of the descent from 1 to 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Descent):
    """From the peak LR straight to the floor; to zero it is best for the worst-case last iterate (arXiv:2310.07831)."""

    def shape(self, t: float) -> float:
        """Return 1 - t."""
        return descend("linear", t, start=1.0, floor=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine(Descent):
    """Half a cosine from the peak LR to the floor. Loshchilov and Hutter, arXiv:1608.03983, without restarts."""

    def shape(self, t: float) -> float:
        """Return (1 + cos(pi t)) / 2."""
        return descend("cosine", t, start=1.0, floor=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rex(Descent):
    """REX, arXiv:2107.04197: a profile, and the rate at which it is sampled.

    The profile is z / ((1 - d) + d z) with z = 1 - t; d = 1/2 is REX, (1 - t) / (1 - t/2), and d = 0 the straight line.
    Sampled at every step unless `samples` or `sample_fractions` is given: the LR is then held between samples.

    Attributes:
        d: bend of the profile, in [0, 1).
        samples: number of equal stretches after the warm-up, each held at the value of its beginning.
        sample_fractions: where the profile is sampled again, as fractions of the time after the warm-up: the
            paper's "50-75" is [0.5, 0.75].
    """

    d: float = 0.5
    samples: int | None = None
    sample_fractions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        Descent.__post_init__(self)
        require_fraction("d", self.d)
        require("samples", self.samples, self.samples is None or self.samples > 0, "be positive")
        require_rising("sample_fractions", tuple(self.sample_fractions))
        if self.samples is not None and self.sample_fractions:
            raise ValueError(f"samples: must be absent where sample_fractions are given, got {self.samples}")

    def shape(self, t: float) -> float:
        """Return the profile at the last sample taken by t."""
        z = 1 - self.sampled(t)
        return z / ((1 - self.d) + self.d * z)

    def sampled(self, t: float) -> float:
        """Return the time, at most t, at which the profile was last sampled."""
        if self.samples is not None:
            return math.floor(t * self.samples) / self.samples
        if self.sample_fractions:
            return (0.0, *self.sample_fractions)[bisect.bisect_right(self.sample_fractions, t)]
        return t


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(FixedHorizon):
    """The peak LR, multiplied by `factors[i]` from `milestone_fractions[i]` of the horizon on.

    The default is DeepSeek's 8-1-1 (arXiv:2401.02954): the peak to 80 %, 1/sqrt(10) of it to 90 %, then a tenth.
    """

    milestone_fractions: tuple[float, ...] = (0.8, 0.9)
    factors: tuple[float, ...] = (10**-0.5, 0.1)

    def __post_init__(self) -> None:
        FixedHorizon.__post_init__(self)
        require_rising("milestone_fractions", tuple(self.milestone_fractions))
        late = all(x >= self.warmup_fraction for x in self.milestone_fractions)
        require("milestone_fractions", list(self.milestone_fractions), late, "come after the warm-up")
        require("factors", list(self.factors), all(0 <= f <= 1 for f in self.factors), "be between 0 and 1")
        same = len(self.factors) == len(self.milestone_fractions)
        require("factors", list(self.factors), same, f"be as many as the milestones ({len(self.milestone_fractions)})")

    def profile(self, t: float, floor: float) -> float:
        """Return the factor of the stretch that t lies in."""
        del floor
        x = self.warmup_fraction + t * (1 - self.warmup_fraction)
        return (1.0, *self.factors)[bisect.bisect_right(self.milestone_fractions, x)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle(FixedHorizon):
    """torch's OneCycleLR with cosine annealing in both phases, momentum left alone. Smith, arXiv:1708.07120.

    Attributes:
        warmup_fraction: torch's `pct_start`.
        div_factor: peak over first LR.
        final_div_factor: first LR over last LR.
    """

    warmup_fraction: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        FixedHorizon.__post_init__(self)
        require("div_factor", self.div_factor, 1 <= self.div_factor < math.inf, "be at least 1 and finite")
        final = self.final_div_factor
        require("final_div_factor", final, 1 <= final < math.inf, "be at least 1 and finite")

    def __call__(self, seen: float, total: float, floor: float = 0.0) -> float:
        x = seen / total
        if x < self.warmup_fraction:
            return descend("cosine", 1 - x / self.warmup_fraction, start=1.0, floor=1 / self.div_factor)
        return self.profile(min((x - self.warmup_fraction) / (1 - self.warmup_fraction), 1.0), floor)

    def profile(self, t: float, floor: float) -> float:
        """Return the cosine from the peak to the last LR."""
        del floor
        return descend("cosine", t, start=1.0, floor=1 / self.div_factor / self.final_div_factor)
