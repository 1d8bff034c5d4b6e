"""What of a sweep is still to run, decided from outcomes alone: the same outcomes give the same agenda."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.curves import Curve
from sweeps.plan import Bracket, brackets_of, grid_lrs, group_label, grown_lrs, trials_of, whole_batches
from sweeps.spec import Cell, Json, Result, Sweep, Trial

LOSS = "validation/loss"


@dataclass(frozen=True, slots=True)
class Target:
    """The value a workload wants of a metric, and the tokens at which a trial first had it; None: never."""

    metric: str
    value: float
    reached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one trial ended: one of spec.OUTCOMES, the tokens it reached, and its whole curve.

    `exceeded` is, for a trial that diverged on a finite loss, the factor of its first loss which that was above.
    `target` is None where the workload has none.
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


class Chooser(Protocol):
    """Chooses the LRs of a bracket, a wave at a time."""

    def next_lrs(
        self, bracket: Bracket, tried: Sequence[float], results: Mapping[str, Sequence[Result]]
    ) -> list[float]:
        """Return the LRs to try next, or [] when the bracket is done.

        Args:
            bracket: whose LRs.
            tried: the LRs asked so far, in order.
            results: of every tried LR and seed, by cell key: all complete.
        """


@dataclass(frozen=True, slots=True)
class GridChooser:
    """The grid of the sweep, then a point beyond each edge on which a best LR sits."""

    lrs: tuple[float, ...]
    grow: int

    def next_lrs(
        self, bracket: Bracket, tried: Sequence[float], results: Mapping[str, Sequence[Result]]
    ) -> list[float]:
        """Return the grid, then growth."""
        del bracket
        if not tried:
            return list(self.lrs)
        low = sum(lr < self.lrs[0] for lr in tried)
        high = sum(lr > self.lrs[-1] for lr in tried)
        return grown_lrs(results, grow=self.grow, added_low=low, added_high=high)


def grid_chooser(sweep: Sweep) -> GridChooser:
    """Return the chooser of a grid search."""
    return GridChooser(grid_lrs(sweep), sweep.search.grow)


def result_of(trial: Trial, tokens: int, outcome: Outcome) -> Result:
    """Return what the cell at `tokens` learns from a trial that ended."""
    loss = outcome.curve.at(tokens, LOSS)
    kind = "finished" if loss is not None else outcome.outcome
    return Result(key=trial.key, lr=trial.lr, seed=trial.seed, loss=loss, outcome=kind)


def is_done(trial: Trial, outcome: Outcome | None) -> bool:
    """Return whether a trial needs no more training: it reached its horizon, or diverged on the way.

    It needs more where it has passed a mark that is wanted now and was not then, and where it diverged by a lower
    factor than today's.
    """
    if outcome is None or outcome.outcome == "failed":
        return False
    if trial.passed_unseen(outcome.tokens, [*outcome.curve.tokens.tolist(), *outcome.trial.get("marks", ())]):
        return False
    if outcome.outcome == "diverged":
        return outcome.exceeded is None or outcome.exceeded >= trial.absurd_factor
    return outcome.outcome == "stopped" or outcome.tokens >= trial.tokens


class Agenda:
    """The open trials of a sweep; grows as outcomes come in.

    Trials come in the order of their cost, dearest first, so that the last ones to run are short. What the budget
    leaves beyond the first trials is shared equally between brackets, so that growth does not depend on which of
    them ends first. With `brackets` false only what is added is on it.
    """

    def __init__(
        self, sweep: Sweep, chooser: Chooser, outcomes: Mapping[str, Outcome], *, brackets: bool = True
    ) -> None:
        self.sweep = sweep
        self.outcomes: dict[str, Outcome] = dict(outcomes)
        self.trials: dict[str, Trial] = {}
        self.refused: list[str] = []
        self._chooser = chooser
        self._boards = {bracket.key: _Board(bracket) for bracket in brackets_of(sweep) if brackets}
        self._home: dict[str, _Board] = {}
        self._cells = {cell.key: board for board in self._boards.values() for cell in board.bracket.cells}
        self._ready: list[tuple[float, str]] = []
        self._running: set[str] = set()
        self._spare_trials = _share(sweep.budget.trials, first_trials(sweep), len(self._boards))
        self._spare_tokens = _share(sweep.budget.tokens, first_tokens(sweep), len(self._boards))
        for board in self._boards.values():
            self._advance(board)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, in the order of the axes."""
        return [cell for board in self._boards.values() for cell in board.bracket.cells]

    @property
    def complete(self) -> bool:
        """Whether nothing waits, nothing runs and nothing more will be chosen."""
        return not (self._ready or self._running or any(board.open for board in self._boards.values()))

    def waiting(self) -> list[Trial]:
        """Return the trials to be taken, dearest first."""
        return [self.trials[key] for _, key in sorted(self._ready)]

    def take(self) -> Trial | None:
        """Return the next trial to run, or None if none is waiting now."""
        if not self._ready:
            return None
        _, key = heapq.heappop(self._ready)
        self._running.add(key)
        return self.trials[key]

    def add(self, trials: Sequence[Trial]) -> None:
        """Add trials that belong to no bracket: the held-out check."""
        for trial in trials:
            self.trials[trial.key] = trial
            if not is_done(trial, self.outcomes.get(trial.key)):
                heapq.heappush(self._ready, (-trial.tokens * max(trial.flops_per_token, 1.0), trial.key))

    def end(self, outcome: Outcome) -> None:
        """Record how a trial ended; may add trials."""
        self.outcomes[outcome.key] = outcome
        self._running.discard(outcome.key)
        board = self._home.get(outcome.key)
        if board is not None:
            board.unfinished.discard(outcome.key)
            if not board.unfinished:
                self._advance(board)

    def holds(self, trials: Sequence[Trial]) -> bool:
        """Return whether the budget holds these trials besides all there are; a remark says where it does not."""
        budget, every = self.sweep.budget, [*self.trials.values(), *trials]
        if budget.trials is not None and len(every) > budget.trials:
            self.refused.append("held-out check: budget.trials leaves no more trials")
        elif budget.tokens is not None and sum(t.tokens for t in every) > budget.tokens:
            self.refused.append("held-out check: budget.tokens leaves no more tokens")
        else:
            return True
        return False

    def is_complete(self, cell: Cell) -> bool:
        """Return whether no LR of a cell is under way and no more will be chosen."""
        board = self._cells[cell.key]
        return not (board.open or board.unfinished)

    def results(self, cell: Cell) -> list[Result]:
        """Return what a cell has learnt so far, sorted by (lr, seed)."""
        found = []
        for trial in self._cells[cell.key].members:
            outcome = self.outcomes.get(trial.key)
            if trial.seed in cell.seeds and outcome is not None and outcome.outcome != "failed":
                result = result_of(trial, cell.tokens, outcome)
                if result.loss is not None or result.outcome != "finished":  # else it did not come so far, or missed it
                    found.append(result)
        return sorted(found, key=lambda r: (r.lr, r.seed))

    def _advance(self, board: _Board) -> None:
        """Ask for the bracket's next LRs until some must be trained or there are no more."""
        while board.open and not board.unfinished:
            if any(not is_done(t, self.outcomes.get(t.key)) for t in board.members):
                board.open = False  # a trial failed: nothing is decided on half a bracket
                return
            results = {cell.key: self.results(cell) for cell in board.bracket.cells}
            lrs = [lr for lr in self._chooser.next_lrs(board.bracket, board.tried, results) if lr not in board.tried]
            trials = trials_of(self.sweep, board.bracket, lrs)
            if not trials or not self._affordable(board, trials):
                board.open = False
                return
            board.tried.extend(lrs)
            board.members.extend(trials)
            self.add(trials)
            for trial in trials:
                self._home[trial.key] = board
                if not is_done(trial, self.outcomes.get(trial.key)):
                    board.unfinished.add(trial.key)

    def _affordable(self, board: _Board, trials: Sequence[Trial]) -> bool:
        """Return whether the bracket's shares of the budget hold these trials too."""
        if len(board.tried) < first_lrs(self.sweep):
            return True  # the first LRs are what the budget was checked against
        if all(is_done(trial, self.outcomes.get(trial.key)) for trial in trials):
            return True  # paid for when its axes were shorter and its share larger: they cost nothing, and count
        members = [*board.members, *trials]
        more_trials = len(members) - first_lrs(self.sweep) * len(board.bracket.seeds)
        more_tokens = sum(t.tokens for t in members) - first_lrs(self.sweep) * _row_tokens(board.bracket)
        label = board.bracket.cells[0].label
        if more_trials > self._spare_trials:
            self.refused.append(f"{label}: budget.trials leaves no more trials")
        elif more_tokens > self._spare_tokens:
            self.refused.append(f"{label}: budget.tokens leaves no more tokens")
        else:
            return True
        return False


class _Board:
    """One bracket's progress."""

    def __init__(self, bracket: Bracket) -> None:
        self.bracket = bracket
        self.open = True
        self.tried: list[float] = []
        self.members: list[Trial] = []
        self.unfinished: set[str] = set()


def first_lrs(sweep: Sweep) -> int:
    """Return the LRs every bracket tries before any growth."""
    return len(grid_lrs(sweep)) if sweep.search.name == "grid" else sweep.search.trials


def first_trials(sweep: Sweep) -> int:
    """Return the trials a sweep needs at least: its first LRs in every bracket, and its held-out checks."""
    brackets = sum(first_lrs(sweep) * len(bracket.seeds) for bracket in brackets_of(sweep))
    return brackets + _check_trials(sweep)


def first_tokens(sweep: Sweep) -> int:
    """Return the tokens a sweep needs at least: its first LRs in every bracket, and its held-out checks."""
    brackets = sum(first_lrs(sweep) * _row_tokens(bracket) for bracket in brackets_of(sweep))
    check = sweep.validate
    return brackets + (_check_trials(sweep) * whole_batches(check.tokens, check.batch_tokens) if check else 0)


def _check_trials(sweep: Sweep) -> int:
    """Return the trials of the held-out checks, one check a law."""
    laws = {group_label(sweep, variant) for variant in sweep.variants}
    return 3 * sweep.validate.seeds * len(laws) if sweep.validate is not None else 0


def _row_tokens(bracket: Bracket) -> int:
    """Return the tokens of one LR of a bracket, all its seeds."""
    return sum(bracket.horizon(seed) or 0 for seed in bracket.seeds)


def _share(limit: float | None, needed: float, brackets: int) -> float:
    """Return what of a budget each bracket may spend beyond its first LRs: equal shares of what is left."""
    return math.inf if limit is None else max(0, limit - needed) // max(1, brackets)
