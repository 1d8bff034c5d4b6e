"""What chooses the trials of a sweep, and how many it needs at least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sweeps.plan import Bracket, brackets_of, grid_lrs, group_label, grown_lrs, trials_of, whole_batches
from sweeps.spec import Result, Sweep, Trial

LAW = "law"  # the search that chooses trials for the law, of all cells at once


class Planner(ABC):
    """Chooses trials of one field, the brackets that are decided together, a wave at a time."""

    @abstractmethod
    def fields(self) -> list[tuple[Bracket, ...]]:
        """Return the fields of the sweep."""

    @abstractmethod
    def next_trials(
        self,
        field: Sequence[Bracket],
        members: Mapping[str, Sequence[Trial]],
        results: Mapping[str, Sequence[Result]],
    ) -> dict[str, list[Trial]]:
        """Return the trials to run next by the key of their bracket, none when the field is done.

        Args:
            field: one of `fields`.
            members: the trials asked so far by bracket, in order.
            results: of all of them, by cell key: all complete.
        """


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


@dataclass(frozen=True, slots=True)
class ByBracket(Planner):
    """Each bracket a field of its own, its LRs chosen by a chooser, each on all seeds."""

    sweep: Sweep
    chooser: Chooser

    def fields(self) -> list[tuple[Bracket, ...]]:
        """Return every bracket."""
        return [(bracket,) for bracket in brackets_of(self.sweep)]

    def next_trials(
        self,
        field: Sequence[Bracket],
        members: Mapping[str, Sequence[Trial]],
        results: Mapping[str, Sequence[Result]],
    ) -> dict[str, list[Trial]]:
        """Return all seeds of the chooser's LRs."""
        (bracket,) = field
        tried = list(dict.fromkeys(trial.lr for trial in members[bracket.key]))
        lrs = [lr for lr in self.chooser.next_lrs(bracket, tried, results) if lr not in tried]
        return {bracket.key: trials_of(self.sweep, bracket, lrs)}


def first_lrs(sweep: Sweep) -> int:
    """Return the LRs every bracket tries before any growth; of a search for the law, about as many as it will."""
    if sweep.search.name == "grid":
        return len(grid_lrs(sweep))
    if sweep.search.name == LAW:
        seeds = sum(len(bracket.seeds) for bracket in brackets_of(sweep)) / _laws(sweep)
        return max(1, round(sweep.search.trials / seeds))
    return sweep.search.trials


def first_trials(sweep: Sweep) -> int:
    """Return the trials a sweep needs at least: its first LRs in every bracket, and its held-out checks."""
    if sweep.search.name == LAW:
        return sweep.search.trials * _laws(sweep) + _check_trials(sweep)
    brackets = sum(first_lrs(sweep) * len(bracket.seeds) for bracket in brackets_of(sweep))
    return brackets + _check_trials(sweep)


def first_tokens(sweep: Sweep) -> int:
    """Return the tokens a sweep needs at least: its first LRs in every bracket, and its held-out checks.

    A search for the law needs those of its shortest trials: it spends what the budget leaves.
    """
    if sweep.search.name == LAW:
        shortest = min(cell.tokens for bracket in brackets_of(sweep) for cell in bracket.cells)
        needed = sweep.search.trials * _laws(sweep) * shortest
    else:
        needed = sum(first_lrs(sweep) * _row_tokens(bracket) for bracket in brackets_of(sweep))
    check = sweep.validate
    return needed + (_check_trials(sweep) * whole_batches(check.tokens, check.batch_tokens) if check else 0)


def beyond_first(sweep: Sweep, field: Sequence[Bracket], members: Sequence[Trial]) -> tuple[float, float]:
    """Return by how many trials and tokens these members of a field exceed its first ones."""
    tokens = sum(trial.tokens for trial in members)
    if sweep.search.name == LAW:
        shortest = min(cell.tokens for bracket in field for cell in bracket.cells)
        return len(members) - sweep.search.trials, tokens - sweep.search.trials * shortest
    (bracket,) = field
    return (
        len(members) - first_lrs(sweep) * len(bracket.seeds),
        tokens - first_lrs(sweep) * _row_tokens(bracket),
    )


def _laws(sweep: Sweep) -> int:
    return len({group_label(sweep, variant) for variant in sweep.variants})


def _check_trials(sweep: Sweep) -> int:
    """Return the trials of the held-out checks, one check a law."""
    return 3 * sweep.validate.seeds * _laws(sweep) if sweep.validate is not None else 0


def _row_tokens(bracket: Bracket) -> int:
    """Return the tokens of one LR of a bracket, all its seeds."""
    return sum(bracket.horizon(seed) or 0 for seed in bracket.seeds)
