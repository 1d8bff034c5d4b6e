"""The trials of a row that share a trunk, and whose turn it is to train among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.rows.seat import Seat, Trunk
from sweeps.forks import fork_tokens
from sweeps.spec import Trial


class Family:
    """A trunk and its branches, in the order of their forks; or runs that train by themselves, one after another.

    Args:
        trials: that share a trunk, or one alone.
        row: the config of their row.
        later: trials of rows to come that go on from the trunk.
    """

    def __init__(self, trials: Sequence[Trial], row: dict[str, Any], *, later: Sequence[Trial]) -> None:
        self.trunk: Trunk | None = None
        self.seats = [Seat(trial, row) for trial in sorted(trials, key=lambda trial: fork_tokens(trial) or 0)]
        fresh = [seat for seat in self.seats if not seat.begun]
        if row["forks"] and any(seat.fork_tokens for seat in fresh):
            trunk = Trunk(fresh, row, later=later)
            waiting = [seat for seat in fresh if seat.fork_tokens >= trunk.tokens]  # a trunk beyond it carries none
            if len(waiting) > 1 or (waiting and (trunk.begun or later)):
                self.trunk = trunk
                fresh = [seat for seat in fresh if seat not in waiting]
        for seat in fresh:
            seat.begin()

    @property
    def all(self) -> list[Seat]:
        """Its seats, the trunk's last."""
        return [*self.seats, *([] if self.trunk is None else [self.trunk])]

    def heed(self) -> None:
        """End the runs that are told to stop."""
        for seat in self.seats:
            seat.heed(self.trunk)
        if self.trunk is not None and not any(seat.waits for seat in self.seats):
            self.trunk.leave()

    def due(self) -> tuple[Seat, Seat | None] | None:
        """Return the run to train now, and of the trunk the branch it trains for; None if all have ended."""
        for seat in self.seats:
            if seat.waits:
                assert self.trunk is not None
                self.trunk.begin()
                if not self.trunk.carries(seat):
                    return self.trunk, seat
                seat.fork(self.trunk)
                if not any(other.waits for other in self.seats):
                    self.trunk.end()  # before its last branch trains: whatever is killed now finds the trunk done
                seat.settle()
            if not seat.ended:
                return seat, None
        return None
