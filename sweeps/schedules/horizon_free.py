"""Schedules that do not know the horizon before their cooldown: constant, WSD, power, inverse square root.

Runs to several horizons share their beginning: the run to the longest passes through the others, and each horizon needs
only its own cooldown.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sweeps.schedules.base import COOLDOWNS, Floor, descend, require, require_choice, require_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The peak LR throughout, after a linear warm-up over `warmup_tokens`."""

    version: ClassVar[int] = 1
    horizon_free: ClassVar[bool] = True

    warmup_tokens: int = 0

    def __post_init__(self) -> None:
        require("warmup_tokens", self.warmup_tokens, self.warmup_tokens >= 0, "be at least 0")

    @property
    def open_ended(self) -> bool:
        """True: the curve is the same to every horizon."""
        return True

    def __call__(self, seen: float, total: float, floor: float = 0.0) -> float:
        del total, floor
        return seen / self.warmup_tokens if seen < self.warmup_tokens else 1.0

    def floor(self, peak: float) -> float:
        """Return zero: the LR never descends."""
        del peak
        return 0.0

    def check(self, total: int) -> None:
        """Raise ValueError unless the warm-up is shorter than the run."""
        check_warmup(self.warmup_tokens, total, cooldown_fraction=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizonFree(Floor, ABC):
    """Warm-up, a trunk that depends on the tokens seen alone, and a cooldown over the last part of the horizon.

    The warm-up is linear from 0 to the trunk's value at its end (Power Scheduler, arXiv:2408.13359v2, Eq. 8), and the
    cooldown descends from the trunk's value at its beginning, so that the phases join.

    Attributes:
        warmup_tokens: length of the warm-up.
        cooldown_fraction: of the horizon; 0 makes the schedule open-ended. 10 to 20 % is enough (MiniCPM,
            arXiv:2404.06395; Haegele et al., arXiv:2405.18392; published).
        cooldown: one of COOLDOWNS. "exponential" is geometric and needs `end_lr` or `end_fraction`.
    """

    version: ClassVar[int] = 1
    horizon_free: ClassVar[bool] = True

    warmup_tokens: int = 0
    cooldown_fraction: float = 0.0
    cooldown: str = "linear"

    def __post_init__(self) -> None:
        Floor.__post_init__(self)
        require("warmup_tokens", self.warmup_tokens, self.warmup_tokens >= 0, "be at least 0")
        require_fraction("cooldown_fraction", self.cooldown_fraction, one=True)
        require_choice("cooldown", self.cooldown, COOLDOWNS)
        if self.cooldown == "exponential" and self.cooldown_fraction and not (self.end_lr or self.end_fraction):
            raise ValueError("end_lr: must be above 0 (or give end_fraction) for an exponential cooldown, got 0.0")

    @abstractmethod
    def trunk(self, seen: float) -> float:
        """Return the factor between warm-up and cooldown, in [0, 1]; never rising."""

    @property
    def open_ended(self) -> bool:
        """Whether there is no cooldown."""
        return self.cooldown_fraction == 0

    def cooldown_start(self, total: float) -> float:
        """Return the tokens at which the cooldown of a run to `total` begins."""
        return total - self.cooldown_fraction * total

    def __call__(self, seen: float, total: float, floor: float = 0.0) -> float:
        if seen < self.warmup_tokens:
            return seen / self.warmup_tokens * self.trunk(self.warmup_tokens)
        start = self.cooldown_start(total)
        if self.open_ended or seen <= start:
            return self.trunk(seen)
        t = min((seen - start) / (total - start), 1.0)
        return descend(self.cooldown, t, start=self.trunk(start), floor=floor or self.end_fraction)

    def check(self, total: int) -> None:
        """Raise ValueError unless the warm-up is shorter than the run and ends before the cooldown begins."""
        check_warmup(self.warmup_tokens, total, cooldown_fraction=self.cooldown_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wsd(HorizonFree):
    """Warm-up, stable, decay: the peak LR until the cooldown. MiniCPM, arXiv:2404.06395."""

    cooldown_fraction: float = 0.2

    def trunk(self, seen: float) -> float:
        """Return 1: the peak LR."""
        del seen
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Power(HorizonFree):
    """The Power Scheduler, arXiv:2408.13359v2, Eq. 7-8: factor = min(1, (n / n0)^exponent); the peak LR is its cap.

    `power_knee` converts the paper's constants to (n0_tokens, peak LR).

    Attributes:
        n0_tokens: where the power law leaves the cap.
        exponent: b; -0.51 is published, not re-measured here.
    """

    n0_tokens: float
    exponent: float = -0.51
    cooldown_fraction: float = 0.1  # Sec. 5 of the paper: the last 100B of 1T tokens

    def __post_init__(self) -> None:
        HorizonFree.__post_init__(self)
        require("n0_tokens", self.n0_tokens, 0 < self.n0_tokens < math.inf, "be positive and finite")
        require("exponent", self.exponent, -math.inf < self.exponent < 0, "be negative and finite")

    def trunk(self, seen: float) -> float:
        """Return min(1, (n / n0)^b)."""
        return 1.0 if seen <= self.n0_tokens else float((seen / self.n0_tokens) ** self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseSqrt(HorizonFree):
    """The peak LR up to `timescale_tokens` W, then its inverse square root: sqrt(W / max(n, W)). arXiv:1706.03762.

    The transformer paper's own form has `warmup_tokens` equal to `timescale_tokens`.
    """

    timescale_tokens: float

    def __post_init__(self) -> None:
        HorizonFree.__post_init__(self)
        require("timescale_tokens", self.timescale_tokens, 0 < self.timescale_tokens < math.inf, "be positive")

    def trunk(self, seen: float) -> float:
        """Return sqrt(W / max(n, W))."""
        return math.sqrt(self.timescale_tokens / max(seen, self.timescale_tokens))


def power_knee(*, a: float, beta: float, eta_max: float, b: float = -0.51) -> tuple[float, float]:
    """Return (n0_tokens, peak LR) of eta_pow(n) = min(eta_max, beta * a * n^b).

    Args:
        a: 4 in the paper's runs, 4.6 in its fit.
        beta: batch size in *sequences*, as in the paper; for a batch in tokens divide `a` by the sequence length.
        eta_max: the cap, 0.02 in the paper.
        b: the exponent.
    """
    return (eta_max / (beta * a)) ** (1 / b), eta_max


def check_warmup(warmup_tokens: int, total: int, *, cooldown_fraction: float) -> None:
    """Raise ValueError unless the warm-up is shorter than the run and ends before its cooldown begins."""
    if warmup_tokens >= total:
        raise ValueError(f"warmup_tokens: must be below the shortest horizon ({total}), got {warmup_tokens}")
    start = total - cooldown_fraction * total
    if warmup_tokens > start:
        raise ValueError(
            f"warmup_tokens: must end before the cooldown of the shortest horizon ({total}) "
            f"begins at {start:.0f}, got {warmup_tokens}"
        )
