"""What a law says of one place, and what a held-out check says of the law, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.optima.records import Optimum

STATUSES = ("fitted", "validated", "rejected", "cannot tell")


@dataclass(frozen=True, slots=True)
class Prediction:
    """An LR with its interval; `place` is "box" (among the cells fitted) or "reach" (widened, extrapolated)."""

    lr: float
    low: float
    high: float
    place: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a held-out check says of a law.

    Attributes:
        status: "validated", "rejected" or "cannot tell".
        reason: one sentence for people.
        target: {"batch_tokens", "tokens", "parameters"}.
        predicted: the law's prediction there.
        observed: the held-out optimum.
        regret: held-out loss at the predicted LR above the best of those tried, by the basin (nats); None if unknown.
        regret_tokens: tokens beyond the target's that the predicted LR would need for the loss of the best one; None
            if unknown (`heldout.tokens_worth`).
    """

    status: str
    reason: str
    target: Mapping[str, float]
    predicted: Prediction
    observed: Optimum
    regret: float | None = None
    regret_tokens: float | None = None
