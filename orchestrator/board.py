"""The curves so far of all trials of a sweep, cell by cell, and which of them its stoppers want to end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.agenda import LOSS, Agenda, Outcome, Stopped, is_done
from sweeps.curves import Curve
from sweeps.forks import fork_tokens
from sweeps.plan import Bracket, group_label
from sweeps.spec import Cell, Json, Trial
from sweeps.stopping import STOPPERS, CellSoFar, Known, RunSoFar, Stopper


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run saw at a mark."""

    tokens: int
    step: int
    timestamp: float
    metrics: Mapping[str, float]


class Board:
    """What a sweep's stoppers know, and what they have said: a decision once taken stays.

    It is told what every run sees; of a trunk it is told for each of its branches, whose marks these are. It does
    nothing where the sweep follows no stopper. Under an open-ended schedule, where one run serves several horizons, a
    run is judged at the longest, and not stopped before it has passed the one before that.

    Attributes:
        told: the decisions, by trial key.
    """

    def __init__(self, agenda: Agenda) -> None:
        self.told: dict[str, Stopped] = {}
        self._agenda = agenda
        self._rules: list[tuple[Json, Stopper]] = [
            (part.identity(), STOPPERS[part.name](**part.fields)) for part in agenda.sweep.stoppers
        ]
        self._seen: dict[str, dict[int, Seen]] = {}
        self._over: dict[str, CellSoFar] = {}  # by bracket, in the order in which they ended
        if self._rules:
            self._open()

    def _open(self) -> None:
        """Take what had ended before; cells in the order of their last reports."""
        outcomes = self._agenda.outcomes
        for key, outcome in outcomes.items():
            self._see(key, _seen(outcome.curve), trunk=outcome.is_trunk)
        last: dict[str, tuple[float, str]] = {}  # by bracket: when one of its trials last reported, and which
        for key in self._agenda.trials.keys() & outcomes.keys():
            found, when = self._agenda.rivals(key), outcomes[key].curve.timestamp
            if found is not None:
                at = (float(when[-1]) if len(when) else 0.0, key)
                last[found[0].key] = max(at, last.get(found[0].key, at))
        for _, key in sorted(last.values()):
            self._close(key)

    def saw(self, key: str, points: Iterable[Mapping[str, Any]], *, trunk: bool = False) -> None:
        """Take new points of a trial or a trunk, then ask about all that they may tell of."""
        if not self._rules:
            return
        for touched in self._see(key, [_point(point) for point in points], trunk=trunk):
            self.ask(touched)

    def ended(self, outcome: Outcome) -> None:
        """Take that a trial has ended, its outcome on the agenda; its cell may teach others from now on."""
        if self._rules:
            self._see(outcome.key, _seen(outcome.curve))
            self._close(outcome.key)

    def ask(self, key: str) -> Stopped | None:
        """Return the decision to stop this trial, if there is one; asks about its whole cell."""
        found = self._agenda.rivals(key) if self._rules and key not in self.told else None
        if found is not None:
            bracket, trials = found
            cell, known = self._cell(bracket, trials), Known(tuple(self._over.values()))
            passed = sorted([0, *(c.tokens for c in bracket.cells)])[-2]
            for by, rule in self._rules:
                for stop in rule.stops(cell, known):
                    at = max(self._seen[stop.key])
                    if stop.key not in self.told and at >= passed:
                        self.told[stop.key] = Stopped(by, stop.why, at, int(cell.horizon_tokens), stop.forecast)
        return self.told.get(key)

    def outcome(self, trial: Trial, *, trunk: str | None) -> dict[str, Any]:
        """Return the outcome of a trial that is stopped before it begins: what its trunk, of this key, saw for it."""
        points = sorted(self._seen.get(trial.key, {}).values(), key=lambda point: point.tokens)
        return stopped_outcome(trial, self.told[trial.key], points, trunk=trunk)

    def _see(self, key: str, points: Sequence[Seen], *, trunk: bool = False) -> list[str]:
        """Return the trials that the points are new to."""
        branches = self._agenda.branches(key) if trunk else []
        to = {trial.key: seen_by(trial, points) for trial in branches} if trunk else {key: list(points)}
        for of, mine in to.items():
            self._seen.setdefault(of, {}).update({p.tokens: p for p in mine if LOSS in p.metrics})
        return [of for of, mine in to.items() if mine]

    def _close(self, key: str) -> None:
        """Let a trial's cell teach others once all of its trials have ended."""
        found = self._agenda.rivals(key)
        if found is None:
            return
        bracket, trials = found
        self._over.pop(bracket.key, None)
        cell = self._cell(bracket, trials)
        if cell.runs and not cell.running:
            self._over[bracket.key] = cell

    def _cell(self, bracket: Bracket, trials: Sequence[Trial]) -> CellSoFar:
        furthest: Cell = max(bracket.cells, key=lambda cell: cell.tokens)
        return CellSoFar(
            name=furthest.label,
            runs=tuple(self._run(trial) for trial in trials if trial.tokens == furthest.tokens),
            horizon_tokens=float(furthest.tokens),
            recipe=group_label(self._agenda.sweep, bracket.variant),
            batch_tokens=float(bracket.batch_tokens),
            parameters=float(max(furthest.parameters, 1)),
        )

    def _run(self, trial: Trial) -> RunSoFar:
        outcome = self._agenda.outcomes.get(trial.key)
        how = None if outcome is None else outcome.outcome
        if how != "failed" and not is_done(trial, outcome):
            how = "stopped" if trial.key in self.told else None
        seen = self._seen.get(trial.key, {})
        tokens = sorted(tokens for tokens in seen if tokens <= trial.tokens)
        return RunSoFar(
            trial.key,
            trial.lr,
            trial.seed,
            np.array(tokens, dtype=np.float64),
            np.array([seen[t].metrics[LOSS] for t in tokens], dtype=np.float64),
            how,
        )


def seen_by(trial: Trial, points: Iterable[Any]) -> list[Seen]:
    """Return what a branch would have seen of its trunk's points: at its own marks, before it leaves the trunk.

    Losses on held-out data alone: the mean of the training loss runs from mark to mark.
    """
    fork = fork_tokens(trial) or 0
    return [
        Seen(p.tokens, p.step, p.timestamp, {n: x for n, x in p.metrics.items() if n.startswith("validation/")})
        for p in points
        if p.tokens in trial.marks and p.tokens <= fork
    ]


def stopped_outcome(trial: Trial, stop: Stopped, points: Sequence[Any], *, trunk: str | None) -> dict[str, Any]:
    """Return the outcome file of a trial that was stopped before it trained anything itself, as plain JSON."""
    tokens = points[-1].tokens if points else 0
    return {
        "key": trial.key,
        "outcome": "stopped",
        "reason": stop.why,
        "tokens": tokens,
        "curve": Curve().append(points).to_json(),
        "trial": trial.to_json(),
        "seconds": 0.0,
        "forked_from": None if trunk is None else (trunk, tokens),
        "stop": stop.to_json(),
    }


def _point(point: Mapping[str, Any]) -> Seen:
    return Seen(point["tokens"], point["step"], point["timestamp"], point["metrics"])


def _seen(curve: Curve) -> list[Seen]:
    tokens, losses = curve.present(LOSS)
    at = {int(t): i for i, t in enumerate(curve.tokens)}
    return [
        Seen(int(t), int(curve.step[at[int(t)]]), float(curve.timestamp[at[int(t)]]), {LOSS: float(loss)})
        for t, loss in zip(tokens, losses, strict=True)
        if math.isfinite(loss)
    ]
