"""What curve laws read and say: the LR of every step, a loss curve along it, a forecast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweeps.curves import Curve

# T steps of a run, P points of a curve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_STEPS = 10_000_000  # of a recorded run: the LR of each is held in memory, 80 MB of them; a choice


@dataclass(frozen=True, eq=False)
class LrPath:
    """The LR of every step of a run.

    Attributes:
        lr: [T], LR of step 1, 2, ..., T (index i holds that of step i + 1), above 0 once warm-up has begun.
        warmup_steps: how many of them are warm-up.

    Raises:
        ValueError: no steps, an LR below 0 or not finite, a warm-up as long as the run.
    """

    lr: Floats
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        lr_T = np.array(self.lr, dtype=np.float64)
        lr_T.flags.writeable = False
        object.__setattr__(self, "lr", lr_T)
        if lr_T.ndim != 1 or len(lr_T) == 0:
            raise ValueError(f"lr: must be one LR a step, got an array of shape {lr_T.shape}")
        if not (np.all(np.isfinite(lr_T)) and np.all(lr_T >= 0)):
            raise ValueError("lr: must be finite and at least 0 at every step")
        if not 0 <= self.warmup_steps < len(lr_T):
            raise ValueError(f"warmup_steps: must be at least 0 and below {len(lr_T)} steps, got {self.warmup_steps}")

    def __len__(self) -> int:
        return len(self.lr)

    @classmethod
    def of_schedule(
        cls, lr: Callable[[int], float], *, batch_tokens: int, tokens: int, warmup_tokens: int = 0
    ) -> LrPath:
        """Return the path of a run; `lr` is tokens seen at the start of a step -> LR (`schedules.learning_rate`)."""
        steps = max(tokens // batch_tokens, 1)
        values = [lr(step * batch_tokens) for step in range(steps)]
        return cls(np.array(values), min(round(warmup_tokens / batch_tokens), steps - 1))

    def shares(self, other: LrPath) -> int:
        """Return how many steps from the first have the same LR in both, to 12 digits."""
        steps = min(len(self), len(other))
        apart = ~np.isclose(self.lr[:steps], other.lr[:steps], rtol=1e-12, atol=0.0)
        return int(np.argmax(apart)) if apart.any() else steps


@dataclass(frozen=True, eq=False)
class LossCurve:
    """The losses of a run at some of its steps.

    Attributes:
        name: of the curve, for messages.
        path: LR of every step; may go on beyond the last point (the schedule of a run that is still going).
        step: [P], steps done at each point, strictly ascending, at most the path's.
        loss: [P], held-out loss, or training loss where there is none; above 0.

    Raises:
        ValueError: arrays that differ in length, steps off the path or not ascending, a loss not above 0.
    """

    name: str
    path: LrPath
    step: Ints
    loss: Floats

    def __post_init__(self) -> None:
        step_P, loss_P = np.array(self.step, np.int64), np.array(self.loss, np.float64)
        object.__setattr__(self, "step", step_P)
        object.__setattr__(self, "loss", loss_P)
        if step_P.ndim != 1 or step_P.shape != loss_P.shape:
            raise ValueError(f"{self.name}: must have one loss a step, got {len(step_P)} steps, {len(loss_P)} losses")
        if len(step_P) and not (step_P[0] >= 1 and step_P[-1] <= len(self.path) and np.all(np.diff(step_P) > 0)):
            raise ValueError(f"{self.name}: steps must ascend from 1 to at most {len(self.path)}")
        if not (np.all(np.isfinite(loss_P)) and np.all(loss_P > 0)):
            raise ValueError(f"{self.name}: losses must be finite and above 0")

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def of_curve(cls, name: str, curve: Curve, *, path: LrPath, metric: str) -> LossCurve:
        """Return the points of a recorded curve that hold a finite loss above 0."""
        loss = curve.metrics.get(metric, np.full(len(curve), np.nan))
        keep = np.isfinite(loss) & (loss > 0) & (curve.step >= 1) & (curve.step <= len(path))
        return cls(name, path, curve.step[keep], loss[keep])

    @property
    def settled(self) -> LossCurve:
        """The curve without the points of its warm-up, where no law of the LR holds."""
        return self.where(self.step >= self.path.warmup_steps)

    def until(self, step: int) -> LossCurve:
        """Return the points up to this step, with it; the path stays whole."""
        return self.where(self.step <= step)

    def where(self, keep_P: ArrayLike) -> LossCurve:
        """Return the points where the mask holds."""
        kept = np.asarray(keep_P, dtype=bool)
        return LossCurve(self.name, self.path, self.step[kept], self.loss[kept])


@dataclass(frozen=True, slots=True)
class Forecast:
    """The loss a run is expected to end with.

    Attributes:
        final: expected loss at the last step of its schedule.
        low, high: interval of it.
        confidence: of the interval.
        seen_points: how many points it stands on.
        offset: ln of what the run's own losses are over the law's.
    """

    final: float
    low: float
    high: float
    confidence: float
    seen_points: int
    offset: float
