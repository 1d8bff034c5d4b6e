"""What of a sweep is still to run, decided from outcomes alone: the same outcomes give the same agenda."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from sweeps.agenda.choosers import (
    LAW,
    ByBracket,
    Chooser,
    Planner,
    beyond_first,
    first_tokens,
    first_trials,
)
from sweeps.agenda.outcomes import Outcome, is_done, result_of
from sweeps.forks import trunk_key
from sweeps.plan import Bracket
from sweeps.spec import Cell, Result, Sweep, Trial
from sweeps.stopping import STOPPERS


class Agenda:
    """The open trials of a sweep; grows as outcomes come in.

    Trials come in the order of their cost, dearest first, so that the last ones to run are short, and with all that
    wait for the same trunk. Where the sweep follows a stopper that learns, the cheapest come first, cell by cell and in
    each the middle of the LRs before the outer ones, one by one and no two of one trunk at a time. What the budget
    leaves beyond the first trials is shared equally between fields, so that growth does not depend on which of them
    ends first. With `brackets` false only what is added is on it.
    """

    def __init__(
        self, sweep: Sweep, chooser: Chooser | Planner, outcomes: Mapping[str, Outcome], *, brackets: bool = True
    ) -> None:
        self.sweep = sweep
        self.outcomes: dict[str, Outcome] = dict(outcomes)
        self.trials: dict[str, Trial] = {}
        self.refused: list[str] = []
        self._planner = chooser if isinstance(chooser, Planner) else ByBracket(sweep, chooser)
        self._boards = [_Board(field) for field in self._planner.fields() if brackets]
        self._home: dict[str, tuple[_Board, Bracket]] = {}
        self._at = {cell.key: (board, b) for board in self._boards for b in board.field for cell in b.cells}
        self._learns = any(STOPPERS[part.name].learns for part in sweep.stoppers)
        self._ready: list[tuple[float, int, float, str]] = []  # cost, batch, how far off the middle LR, key
        self._family: dict[str, str] = {}  # trial key -> what it shares a trunk with
        self._families: dict[str, set[str]] = {}  # of those that are ready
        self._alone: set[str] = set()  # trials that share a row with no other
        self._running: set[str] = set()
        self._spare_trials = _share(sweep.budget.trials, first_trials(sweep), len(self._boards))
        self._spare_tokens = _share(sweep.budget.tokens, first_tokens(sweep), len(self._boards))
        for board in self._boards:
            self._advance(board)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, in the order of the axes."""
        return [cell for board in self._boards for bracket in board.field for cell in bracket.cells]

    @property
    def complete(self) -> bool:
        """Whether nothing waits, nothing runs and nothing more will be chosen."""
        return not (self._families or self._running or any(board.open for board in self._boards))

    def waiting(self) -> list[Trial]:
        """Return the trials to be taken, in their order."""
        return [self.trials[item[-1]] for item in sorted(self._ready) if self._is_ready(item[-1])]

    def next_up(self) -> Trial | None:
        """Return a trial that `take` would return, None if none is waiting now."""
        while self._ready and not self._is_ready(self._ready[0][-1]):
            heapq.heappop(self._ready)  # taken with its family
        return self.trials[self._ready[0][-1]] if self._ready else None

    def take(self, most: int = 1) -> list[Trial]:
        """Return the next trials to run, [] if none is waiting now: of so many trunks of one shape.

        With a trial go all that wait for the same trunk; or, where a stopper learns, only others of its own cell.
        """
        taken = self._take_one(None)
        first = taken[0] if taken else None
        for _ in range(most - 1 if taken else 0):
            taken += self._take_one(first)
        return taken

    def alike(self, trial: Trial) -> int:
        """Return how many trunks wait that could share a row with a trial's."""
        return sum(self._fits(self.trials[next(iter(keys))], trial) for keys in self._families.values())

    def _fits(self, trial: Trial, first: Trial) -> bool:
        """Return whether a trial can share a row with another."""
        if trial.key in self._alone or first.key in self._alone:
            return False
        same = (trial.workload, trial.optimizer, trial.batch_tokens) == (
            first.workload,
            first.optimizer,
            first.batch_tokens,
        )
        return same and (not self._learns or trial.tokens == first.tokens)

    def _take_one(self, first: Trial | None) -> list[Trial]:
        busy = {self._family[key] for key in self._running} if self._learns else set()
        passed = []
        taken: list[str] = []
        while self._ready and not taken:
            item = heapq.heappop(self._ready)
            key = item[-1]
            if self._is_ready(key):  # else it was taken with its family
                if self._family[key] in busy or (first is not None and not self._fits(self.trials[key], first)):
                    passed.append(item)
                    continue
                taken = self._take(key)
        for item in passed:
            heapq.heappush(self._ready, item)
        self._running.update(taken)
        return [self.trials[key] for key in taken]

    def _take(self, key: str) -> list[str]:
        """Take a trial from those that are ready, or its family; return the keys, short horizons first."""
        family = self._families[self._family[key]]
        taken = {key} if self._learns else set(family)
        family -= taken
        if not family:
            del self._families[self._family[key]]
        return sorted(taken, key=lambda k: (self.trials[k].tokens, k))

    def later(self, trial: Trial) -> list[Trial]:
        """Return the trials that will go on from a taken trial's trunk once it has ended."""
        keys = self._families.get(self._family[trial.key], ())
        return sorted((self.trials[key] for key in keys), key=lambda t: (t.tokens, t.key))

    def trunk(self, trial: Trial) -> str | None:
        """Return the key of the trunk of a trial that had not ended when it came on this agenda, None without one."""
        family = self._family[trial.key]
        return None if family == trial.key else family

    def branches(self, trunk: str) -> list[Trial]:
        """Return the trials of a trunk that had not ended when this agenda was made or they were added."""
        return [self.trials[key] for key, family in self._family.items() if family == trunk]

    def rivals(self, trial: str) -> tuple[Bracket, list[Trial]] | None:
        """Return the bracket of a trial with all its trials so far; None of a held-out check's."""
        if trial not in self._home:
            return None
        board, bracket = self._home[trial]
        return bracket, board.members[bracket.key]

    def _is_ready(self, key: str) -> bool:
        return key in self._families.get(self._family[key], ())

    def add(self, trials: Sequence[Trial]) -> None:
        """Add trials that belong to no bracket: the held-out check."""
        middle = sum(math.log(trial.lr) for trial in trials) / max(len(trials), 1)
        for trial in trials:
            self.trials[trial.key] = trial
            if not is_done(trial, self.outcomes.get(trial.key)):
                family = trunk_key(trial) if self.sweep.forks else None
                self._make_ready(trial, family or trial.key, off=abs(math.log(trial.lr) - middle))

    def part(self, keys: Sequence[str]) -> None:
        """Let taken trials wait again, each for a row of its own."""
        for key in keys:
            self._running.discard(key)
            self._alone.add(key)
            self._make_ready(self.trials[key], key, off=0.0)

    def _make_ready(self, trial: Trial, family: str, *, off: float) -> None:
        cost = trial.tokens * max(trial.flops_per_token, 1.0)
        place = (cost, trial.batch_tokens, off) if self._learns else (-cost, 0, 0.0)
        heapq.heappush(self._ready, (*place, trial.key))
        self._family[trial.key] = family
        self._families.setdefault(family, set()).add(trial.key)

    def end(self, outcome: Outcome) -> None:
        """Record how a trial ended; may add trials."""
        self.outcomes[outcome.key] = outcome
        self._running.discard(outcome.key)
        if outcome.key in self._home:
            board, _ = self._home[outcome.key]
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
        """Return whether nothing of a cell is under way and no more will be chosen."""
        board, _ = self._at[cell.key]
        return not (board.open or board.unfinished)

    def results(self, cell: Cell) -> list[Result]:
        """Return what a cell has learnt so far, sorted by (lr, seed)."""
        board, bracket = self._at[cell.key]
        found = []
        for trial in board.members[bracket.key]:
            outcome = self.outcomes.get(trial.key)
            if trial.seed in cell.seeds and outcome is not None and outcome.outcome != "failed":
                if outcome.stop is not None and not outcome.stop.holds_for(trial):
                    continue  # what stopped it no longer counts: it goes on
                result = result_of(trial, cell.tokens, outcome)
                if result.loss is not None or result.outcome != "finished":  # else it did not come so far, or missed it
                    found.append(result)
        return sorted(found, key=lambda r: (r.lr, r.seed))

    def _advance(self, board: _Board) -> None:
        """Ask for the field's next trials until some must be run or there are no more."""
        while board.open and not board.unfinished:
            if any(not is_done(t, self.outcomes.get(t.key)) for t in board.all):
                board.open = False  # a trial failed: nothing is decided on half a wave
                return
            results = {cell.key: self.results(cell) for bracket in board.field for cell in bracket.cells}
            chosen = self._planner.next_trials(board.field, board.members, results)
            trials = [trial for of_bracket in chosen.values() for trial in of_bracket]
            if not trials or not self._affordable(board, trials):
                board.open = False
                return
            for key, of_bracket in chosen.items():
                board.members[key].extend(of_bracket)
            self.add(trials)
            homes = {bracket.key: bracket for bracket in board.field}
            self._home.update({t.key: (board, homes[key]) for key, of_bracket in chosen.items() for t in of_bracket})
            for trial in trials:
                if not is_done(trial, self.outcomes.get(trial.key)):
                    board.unfinished.add(trial.key)

    def _affordable(self, board: _Board, trials: Sequence[Trial]) -> bool:
        """Return whether the field's shares of the budget hold these trials too."""
        if not board.all and self.sweep.search.name != LAW:
            return True  # the first LRs are what the budget was checked against
        if all(is_done(trial, self.outcomes.get(trial.key)) for trial in trials):
            return True  # paid for when its axes were shorter and its share larger: they cost nothing, and count
        members = [*board.all, *trials]
        more_trials, more_tokens = beyond_first(self.sweep, board.field, members)
        label = board.field[0].cells[0].label if len(board.field) == 1 else "all cells"
        if more_trials > self._spare_trials:
            self.refused.append(f"{label}: budget.trials leaves no more trials")
        elif more_tokens > self._spare_tokens:
            self.refused.append(f"{label}: budget.tokens leaves no more tokens")
        else:
            return True
        return False


class _Board:
    """One field's progress."""

    def __init__(self, field: tuple[Bracket, ...]) -> None:
        self.field = field
        self.open = True
        self.members: dict[str, list[Trial]] = {bracket.key: [] for bracket in field}
        self.unfinished: set[str] = set()

    @property
    def all(self) -> list[Trial]:
        """The trials of all its brackets."""
        return [trial for members in self.members.values() for trial in members]


def _share(limit: float | None, needed: float, fields: int) -> float:
    """Return what of a budget each field may spend beyond its first trials: equal shares of what is left."""
    return math.inf if limit is None else max(0, limit - needed) // max(1, fields)
