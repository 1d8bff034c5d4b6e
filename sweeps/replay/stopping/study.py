"""Study policies on recorded trials: what it costs until the first of them is at a target, and when that is.

The trials of a study start together on one clock and aim at one loss; the first to get there is the study's time. A
policy that only drops what comes after it changes no time; a rule that stops trials before it may. Times are in the
unit that the record's `tokens` count (of AlgoPerf's logs, seconds of submission time).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError
from sweeps.replay.stopping.lockstep import LOOKS, by_size, cut, mark_of, play
from sweeps.spec import Json
from sweeps.stopping import CellSoFar, Known, RunSoFar, Stopper

# T trials of a study

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Times:
    """When the trials of a study are over, and when they reach its target.

    Attributes:
        end: by itself, shape [T].
        reached: first at the target, shape [T]; infinite where never.

    Raises:
        ValueError: no trial, arrays that differ in shape, a target reached after the end.
    """

    end: Floats
    reached: Floats

    def __post_init__(self) -> None:
        if self.end.shape != self.reached.shape or self.end.ndim != 1 or not len(self.end):
            raise ValueError(f"must have two times a trial, got shapes {self.end.shape} and {self.reached.shape}")
        late_T = np.isfinite(self.reached) & (self.reached > self.end)
        if late_T.any():
            t = int(np.argmax(late_T))
            raise ValueError(f"trial {t}: reaches the target at {self.reached[t]:g}, after its end {self.end[t]:g}")

    @property
    def first(self) -> float:
        """The study's time to target; infinite where no trial gets there."""
        return float(self.reached.min())

    def stopped(self, stop_T: Floats) -> Times:
        """Return the same with trials stopped at these times, shape [T], infinite where not stopped."""
        reached_T = np.where(self.reached <= stop_T, self.reached, math.inf)
        return Times(np.minimum(self.end, stop_T), reached_T)


@dataclass(frozen=True, eq=False)
class Study:
    """Recorded trials that aim at one target.

    Attributes:
        cell: their curves; all have ended.
        target: a trial has reached it at its first report whose loss is no higher.
    """

    cell: CellSoFar
    target: float

    @property
    def times(self) -> Times:
        """When its trials are over, and when they reach the target."""
        runs = self.cell.runs
        end_T = np.array([run.done_tokens for run in runs], dtype=np.float64)
        return Times(end_T, np.array([_reached(run, self.target) for run in runs], dtype=np.float64))


def full(times: Times) -> float:
    """Return what a study costs whose trials all go to their end."""
    return float(times.end.sum())


def own_target(times: Times) -> float:
    """Return what a study costs where a trial is over once it has reached the target itself."""
    return float(np.minimum(times.end, times.reached).sum())


def first_success(times: Times) -> float:
    """Return what a study costs in lock-step: the first trial at the target ends it for all."""
    return float(np.minimum(times.end, times.first).sum())


def in_sequence(times: Times) -> float:
    """Return what a study costs one trial after another, each capped at the best time so far; the mean over orders.

    Of the others let the k-th be the k-th soonest at the target. It is the cap where it comes before the trial and all
    sooner ones come after: in (k - 1)! of the (k + 1)! orders of these, 1 / (k (k + 1)). In 1 / T there is no cap.
    """
    own_T = np.minimum(times.end, times.reached)
    k_K = np.arange(1, len(own_T))
    spent = own_T.sum() / len(own_T)
    for t, own in enumerate(own_T):
        cap_K = np.sort(np.delete(times.reached, t))
        spent += float((np.minimum(own, cap_K) / (k_K * (k_K + 1))).sum())
    return float(spent)


def oracle(times: Times) -> float:
    """Return what a study costs that runs its first success alone, and nothing where there is none."""
    return times.first if math.isfinite(times.first) else 0.0


@dataclass(frozen=True, slots=True)
class StudyScore:
    """What a policy did to one study.

    Attributes:
        study, recipe: of its cell.
        total, spent: time of all its trials, in full and under the policy.
        best, reached: its time to target, in full and under the policy; infinite where none.
    """

    study: str
    recipe: str
    total: float
    spent: float
    best: float
    reached: float

    @property
    def lost(self) -> bool:
        """Whether it had a time to target and has none."""
        return math.isfinite(self.best) and not math.isfinite(self.reached)

    @property
    def worse(self) -> bool:
        """Whether it has a time to target, and a later one."""
        return self.best < self.reached < math.inf


@dataclass(frozen=True, eq=False)
class StudyReplay:
    """A policy and what it did to each study."""

    policy: str
    scores: tuple[StudyScore, ...]

    @property
    def total(self) -> float:
        """Time of all trials in full."""
        return math.fsum(score.total for score in self.scores)

    @property
    def spent(self) -> float:
        """Time of all trials under the policy."""
        return math.fsum(score.spent for score in self.scores)

    @property
    def saved(self) -> float:
        """The share of the time that was not spent."""
        return 1.0 - self.spent / self.total

    def to_json(self) -> Json:
        """Return plain JSON: time spent and saved, and how many studies have, lose, or are later at, their target."""
        return {
            "policy": self.policy,
            "total": self.total,
            "spent": self.spent,
            "saved": self.saved,
            "studies": len(self.scores),
            "finite": sum(math.isfinite(score.best) for score in self.scores),
            "lost": sum(score.lost for score in self.scores),
            "worse": sum(score.worse for score in self.scores),
        }


def replay_policy(studies: Sequence[Study], policy: str) -> StudyReplay:
    """Return what a policy of POLICIES does to recorded studies.

    Raises:
        ConfigError: no study in which time was spent.
    """
    return StudyReplay(policy, tuple(_score(study, study.times, POLICIES[policy]) for study in _checked(studies)))


def replay_rule(studies: Sequence[Study], stopper: Stopper, *, name: str, looks: int = LOOKS) -> StudyReplay:
    """Return what first success in lock-step does, with a rule that may stop trials before it.

    The rule is asked as in `replay_stopping`. A study teaches later ones no more than it showed before it was over.

    Args:
        studies: all trials ended.
        stopper: the rule.
        name: of the two together.
        looks: at how many evenly spaced shares of the horizon the rule is asked, the horizon itself included.

    Raises:
        ConfigError: no study in which time was spent.
    """
    shown: list[CellSoFar] = []
    scores = []
    for study in sorted(_checked(studies), key=lambda s: by_size(s.cell)):
        left, stopped = play(study.cell, stopper, Known(tuple(shown)), looks=looks)
        marks = {stop.key: mark_of(study.cell, stop.share) for stop in stopped}
        times = study.times.stopped(np.array([marks.get(run.key, math.inf) for run in study.cell.runs]))
        scores.append(_score(study, times, first_success))
        over = [cut(run, times.first, "stopped") if run.done_tokens > times.first else run for run in left.runs]
        shown.append(replace(left, runs=tuple(over)))
    return StudyReplay(name, tuple(scores))


def _reached(run: RunSoFar, target: float) -> float:
    there_P = run.loss <= target
    return float(run.tokens[np.argmax(there_P)]) if there_P.any() else math.inf


def _checked(studies: Sequence[Study]) -> Sequence[Study]:
    if not any(run.done_tokens > 0 for study in studies for run in study.cell.runs):
        raise ConfigError("replay studies: no trial has run, so there is nothing to save")
    return studies


def _score(study: Study, times: Times, policy: Policy) -> StudyScore:
    whole = study.times
    return StudyScore(study.cell.name, study.cell.recipe, full(whole), policy(times), whole.first, times.first)


Policy = Callable[[Times], float]  # what a study costs; none of these changes its time to target

POLICIES: dict[str, Policy] = {
    "full": full,
    "own target": own_target,
    "first success": first_success,
    "in sequence": in_sequence,
    "oracle": oracle,
}
