"""Stoppers: what ends a run before its horizon, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from sweeps.spec import ABSURD_FACTOR


class Stopper(Protocol):
    """A rule over the losses of one run so far. Stopping never changes a trial's identity."""

    version: ClassVar[int]


@dataclass(frozen=True, slots=True)
class Diverged:
    """Ends a run whose loss is not finite, or above `above` times its loss before training.

    It is always on: naming it in a sweep sets its threshold.
    """

    version: ClassVar[int] = 1
    above: float = ABSURD_FACTOR

    def __post_init__(self) -> None:
        if not (math.isfinite(self.above) and self.above > 1):
            raise ValueError(f"above: must be a finite factor over 1, got {self.above}")


STOPPERS: dict[str, type[Stopper]] = {"diverged": Diverged}
