"""Which runs of a row train together: those of one shape that stand at one place are a pack."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.build import spec_of
from sweeps.spec import SCRIPT, Trial
from workloads.pack import Pack, shape_key, stacking_pays
from workloads.run import Run

MOST = 16  # runs of a pack where nothing else is asked for; on one core K = 8 and 12 gain about alike, measured


def most_of(trial: Trial, *, resources: Mapping[str, Any], cwd: Path) -> int:
    """Return how many runs of a trial's shape should train in lockstep: 1 where that gains nothing.

    On a GPU it must be asked for: what pays there has not been measured.
    """
    if trial.workload.name == SCRIPT:
        return 1
    if resources["lockstep"] is not None:
        return int(resources["lockstep"])
    if resources["gpus"]:
        return 1
    return MOST if stacking_pays(spec_of(trial, resources=resources, cwd=cwd)) else 1


class Lockstep:
    """The packs of a row. A run's bits depend neither on whom it is packed with nor on when (`workloads.pack`).

    Args:
        most: runs of one pack.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._packs: list[Pack] = []

    def group(self, due: Sequence[Run]) -> list[Run]:
        """Return runs that train together next: a pack whose members are all due.

        Args:
            due: the runs that may train now. Only trunks are ever not due, and they are in packs of their own: some
                pack can always go.
        """
        for pack in self._packs:
            for run in [run for run in pack.members if run.live is None and run not in due]:  # it was closed
                pack.leave(run)
        self._packs = [pack for pack in self._packs if pack.members]
        packed = {run for pack in self._packs for run in pack.members}
        for runs in _alike([run for run in due if run not in packed]):
            self._packs += [Pack(runs[i : i + self._most]) for i in range(0, len(runs), self._most)]
        return next(list(pack.members) for pack in self._packs if all(run in due for run in pack.members))

    def advance(self, group: Sequence[Run], until: int | None, deadline: float, *, over: Callable[[], bool]) -> None:
        """Train a group until it loses a member or something is over, or to the tokens or the deadline given."""
        (pack,) = [pack for pack in self._packs if pack.members == list(group)]
        while pack.members == list(group) and pack.tokens != until and time.monotonic() < deadline and not over():
            pack.advance(deadline=deadline, until=until, clock=time.monotonic)


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs by shape and place."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault((shape_key(run.spec), run.tokens, run.spec.trunk), []).append(run)
    return list(groups.values())
