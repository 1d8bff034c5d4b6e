"""What a law says of one place, and what a held-out check says of the law, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.optima.records import Optimum

STATUSES = ("fitted", "validated", "rejected", "cannot tell")
CONVENTIONS = ("batch fixed", "batch free")
SYMBOLS = {"batch_tokens": "B", "tokens": "T", "parameters": "N"}
EXPONENTS = {"batch_tokens": "p", "tokens": "q", "parameters": "r"}
FARTHEST = 700.0  # of ln lr from 0: e^700 is a float, e^710 is none


def formula(variables: Sequence[str]) -> str:
    """Return the form of a law of these variables, as law.json has it: lr* = a * B^p * T^q."""
    return "lr* = a" + "".join(f" * {SYMBOLS[v]}^{EXPONENTS[v]}" for v in variables)


def size_text(value: float) -> str:
    """Return a size in a few characters: in full, or as a power of ten where it is tiny or huge."""
    return f"{value:,.0f}" if 1.0 <= value < 1e15 else f"{value:.4g}"


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
