"""Trunks and branches: what runs to several horizons share before their cooldowns.

Under a schedule that does not know its horizon before the cooldown (WSD, power, inverse square root), the runs of one
(workload, optimizer, batch, LR, seed) to T, 2T and 4T are the same run at first. One *trunk* passes through them, and
at each horizon a *branch* does the cooldown alone, from the trunk's state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sweeps.schedules import schedule_of
from sweeps.schedules.horizon_free import HorizonFree
from sweeps.spec import Trial


def fork_tokens(trial: Trial) -> int | None:
    """Return where a trial leaves its trunk: the last step boundary before the middle of any step is in the cooldown.

    None where it has no trunk: its schedule knows the horizon, has no cooldown, or nothing but warm-up before it.
    """
    schedule = schedule_of(trial.schedule)
    if not isinstance(schedule, HorizonFree) or schedule.open_ended:
        return None
    batch, start = trial.batch_tokens, schedule.cooldown_start(trial.tokens)
    steps = math.floor(start / batch + 0.5)
    while steps > 0 and (steps - 1) * batch + batch / 2 > start:
        steps -= 1
    tokens = min(steps * batch, trial.tokens - batch)
    return tokens if tokens > schedule.warmup_tokens else None


def trunk_of(branches: Sequence[Trial], *, later: Sequence[Trial] = ()) -> Trial:
    """Return the trunk of branches that share one (`trunk_key`): it looks where any of them does, and judges nothing.

    Its identity is what its branches share; how far it goes, and where it looks, is not part of it. It looks where
    `later` ones do too, which come when it has ended, and goes on for them then.
    """
    first = branches[0]
    last = max(fork for branch in branches if (fork := fork_tokens(branch)) is not None)
    marks = tuple(sorted({mark for branch in (*branches, *later) for mark in branch.marks if mark <= last}))
    fields = {**first.schedule.fields, "cooldown_fraction": 0.0}
    return replace(
        first,
        schedule=replace(first.schedule, fields=fields),
        tokens=last,
        marks=marks,
        asides=marks,
        ladder=None,
        open_ended=True,
        trunk=True,
    )


def trunk_key(trial: Trial) -> str | None:
    """Return the key of a trial's trunk, None if it has none."""
    return None if fork_tokens(trial) is None else trunk_of([trial]).key


@dataclass(frozen=True)
class Family:
    """Trials that share a trunk, in the order of their forks; or one by itself, which trains it all alone."""

    branches: tuple[Trial, ...]

    @cached_property
    def key(self) -> str:
        """The trunk's key, or that of the one trial."""
        return self.branches[0].key if len(self.branches) == 1 else trunk_of(self.branches).key

    @cached_property
    def forks(self) -> tuple[int, ...]:
        """The tokens of each branch that the trunk trains."""
        return tuple((fork_tokens(branch) or 0) if len(self.branches) > 1 else 0 for branch in self.branches)

    @property
    def tokens(self) -> int:
        """What all of them train."""
        return max(self.forks) + sum(branch.tokens for branch in self.branches) - sum(self.forks)


def families(trials: Iterable[Trial]) -> list[Family]:
    """Return the trials by their trunks."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trunk_key(trial) or trial.key, []).append(trial)
    return [Family(tuple(sorted(group, key=lambda trial: fork_tokens(trial) or 0))) for group in groups.values()]


def shared_tokens(trials: Iterable[Trial]) -> int:
    """Return the tokens that forking saves: what the trials of each trunk would train more than once."""
    return sum(sum(branch.tokens for branch in family.branches) - family.tokens for family in families(trials))
