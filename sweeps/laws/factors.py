"""A law as an LR schedule: plain callables step -> factor, for `torch.optim.lr_scheduler.LambdaLR` or any loop.

Step k consumes tokens [k b, (k + 1) b) and uses the value at its middle, as all schedules here do. The records have no
slots: LambdaLR keeps the `__dict__` of a callable in its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class HorizonFactor:
    """`peak` times the schedule at the middle of the step; past the end, the schedule's last value."""

    peak: float
    batch_tokens: float
    tokens: float
    schedule: Callable[[float, float], float] | None = None

    def __call__(self, step: int) -> float:
        if self.schedule is None:
            return self.peak
        return self.peak * self.schedule(min((step + 0.5) * self.batch_tokens, self.tokens), self.tokens)


@dataclass(frozen=True)
class PowerFactor:
    """min(cap, start (n / first_tokens)^exponent) at n tokens; constant past last_tokens; linear warm-up before."""

    start: float
    first_tokens: float
    exponent: float
    cap: float
    batch_tokens: float
    warmup_tokens: float
    last_tokens: float

    def __call__(self, step: int) -> float:
        seen = (step + 0.5) * self.batch_tokens
        if seen < self.warmup_tokens:
            return self._power(self.warmup_tokens) * seen / self.warmup_tokens
        return self._power(seen)

    def _power(self, seen: float) -> float:
        share = min(seen, self.last_tokens) / self.first_tokens
        return min(self.cap, self.start * math.pow(share, self.exponent))
