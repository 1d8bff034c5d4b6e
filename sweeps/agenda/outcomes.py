"""How trials ended, and what their cells learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from sweeps.curves import Curve
from sweeps.spec import Json, Result, Trial
from sweeps.stopping import FinalLoss

LOSS = "validation/loss"


@dataclass(frozen=True, slots=True)
class Target:
    """The value a workload wants of a metric, and the tokens at which a trial first had it; None: never."""

    metric: str
    value: float
    reached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """A decision to stop a trial.

    Attributes:
        by: the identity of the stopper.
        why: in words.
        report_tokens: of the last report it acted on.
        horizon_tokens: of the trial then.
        forecast: what the trial would have ended with, from a rule that predicts.
    """

    by: Json
    why: str
    report_tokens: int
    horizon_tokens: int
    forecast: FinalLoss | None = None

    def holds_for(self, trial: Trial) -> bool:
        """Return whether a trial of this key stays stopped: its sweep follows the stopper, to the same horizon."""
        return self.by in trial.stopping and self.horizon_tokens == trial.tokens

    def to_json(self) -> dict[str, Json]:
        """Return it as plain JSON; `from_json` is its inverse."""
        return {
            "stopped_by": self.by,
            "reason": self.why,
            "report_tokens": self.report_tokens,
            "horizon_tokens": self.horizon_tokens,
            "forecast": None if self.forecast is None else asdict(self.forecast),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Stopped:
        """Return the decision of a record made by `to_json`."""
        forecast = None if record["forecast"] is None else FinalLoss(**record["forecast"])
        return cls(record["stopped_by"], record["reason"], record["report_tokens"], record["horizon_tokens"], forecast)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one trial ended: one of spec.OUTCOMES, the tokens it reached, and its whole curve.

    `exceeded` is, for a trial that diverged on a finite loss, the factor of its first loss which that was above.
    `target` is None where the workload has none. `forked_from` is the key of its trunk and the tokens it left it at.
    `stop` is the decision that a stopped trial followed.
    """

    key: str
    outcome: str
    tokens: int
    curve: Curve
    reason: str = ""
    exceeded: float | None = None
    seconds: float = 0.0
    trial: Mapping[str, Json] = field(default_factory=dict)
    target: Target | None = None
    forked_from: tuple[str, int] | None = None
    stop: Stopped | None = None

    @property
    def is_trunk(self) -> bool:
        """Whether it is of a trunk, and so of no trial."""
        return bool(self.trial.get("trunk"))

    @property
    def own_tokens(self) -> int:
        """The tokens it trained itself."""
        return self.tokens - (0 if self.forked_from is None else self.forked_from[1])


def result_of(trial: Trial, tokens: int, outcome: Outcome) -> Result:
    """Return what the cell at `tokens` learns from a trial that ended."""
    loss = outcome.curve.at(tokens, LOSS)
    kind = "finished" if loss is not None else outcome.outcome
    return Result(key=trial.key, lr=trial.lr, seed=trial.seed, loss=loss, outcome=kind)


def is_done(trial: Trial, outcome: Outcome | None) -> bool:
    """Return whether a trial needs no more training: it reached its horizon, or diverged or was stopped on the way.

    It needs more where it has passed a mark that is wanted now and was not then, where it diverged by a lower factor
    than today's, and where its sweep no longer follows what stopped it.
    """
    if outcome is None or outcome.outcome == "failed":
        return False
    if trial.passed_unseen(outcome.tokens, [*outcome.curve.tokens.tolist(), *outcome.trial.get("marks", ())]):
        return False
    if outcome.outcome == "diverged":
        return outcome.exceeded is None or outcome.exceeded >= trial.absurd_factor
    if outcome.outcome == "stopped":
        return outcome.stop is None or outcome.stop.holds_for(trial)
    return outcome.tokens >= trial.tokens
