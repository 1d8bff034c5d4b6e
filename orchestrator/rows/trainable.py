"""The row: what Ray Tune calls a trial. It advances its runs from report to report and keeps their checkpoints."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune

from orchestrator.rows.seat import Seat, Trunk
from orchestrator.store import STOP_FILE
from sweeps.forks import fork_tokens
from sweeps.spec import Trial


class Row(tune.Trainable):
    """K runs of one shape in one process; a row of one is an ordinary Tune trial.

    Its config is {"row": JSON text of {"trials": [Trial.to_json()], "folder", "fence", "resources", "cwd"}}:
    one text, as Tune walks and writes every field of a config many times. A restarted actor comes back through
    `setup`, a reused one through `reset_config`: both recover from the newest checkpoint.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Open the runs; one CPU thread, as two change the bits."""
        row = json.loads(config["row"])
        if not row["resources"]["gpus"]:
            torch.set_num_threads(1)
        self._open(row)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Open other runs in this process."""
        self._close()
        self._open(json.loads(new_config["row"]))
        return True

    def step(self) -> dict[str, Any]:
        """Advance every run until the next report is due, and return what is new."""
        if (self._folder / STOP_FILE).exists():
            self._close()
        else:
            self._advance(time.monotonic() + self._report_seconds)
        seats = self._all
        messages = [message for seat in seats if (message := seat.message()) is not None]
        return {"runs": messages, "done": all(seat.ended for seat in seats)}

    def cleanup(self) -> None:
        """Save what is under way."""
        self._close()

    @property
    def _all(self) -> list[Seat]:
        return [*self._seats, *([] if self._trunk is None else [self._trunk])]

    def _open(self, row: dict[str, Any]) -> None:
        """Open a seat for each trial, those that share a trunk in the order of their forks."""
        if Path(row["cwd"]).is_dir():
            os.chdir(row["cwd"])  # a user's relative paths mean the folder the sweep was started in
        self._folder = Path(row["folder"])
        self._report_seconds = float(row["resources"]["report_seconds"])
        self._checkpoint_seconds = float(row["resources"]["checkpoint_seconds"])
        self._saved_at = time.monotonic()
        self._trunk: Trunk | None = None
        self._seats: list[Seat] = []
        if (self._folder / STOP_FILE).exists():
            return  # nothing new begins: the row ends with nothing to report
        trials = [Trial.from_json(record) for record in row["trials"]]
        self._seats = [Seat(trial, row) for trial in sorted(trials, key=lambda trial: fork_tokens(trial) or 0)]
        fresh = [seat for seat in self._seats if not seat.begun]
        if row["forks"] and any(seat.fork_tokens for seat in fresh):
            trunk = Trunk(fresh, row)
            waiting = [seat for seat in fresh if seat.fork_tokens >= trunk.tokens]  # a trunk beyond it carries none
            if len(waiting) > 1 or (waiting and trunk.begun):
                self._trunk = trunk
                fresh = [seat for seat in fresh if seat not in waiting]
        for seat in fresh:
            seat.begin()

    def _advance(self, deadline: float) -> None:
        """Train one run after another until the deadline; save what is under way when it is time."""
        for seat in self._seats:
            if seat.run is None and not seat.ended:
                assert self._trunk is not None
                if not self._trunk.advance_to(seat, deadline):
                    break
                seat.fork(self._trunk)
                if all(other.run is not None or other.ended for other in self._seats):
                    self._trunk.end()  # before its last branch trains: whatever is killed now finds the trunk done
            seat.advance(deadline)
            if not seat.ended:
                break
        if time.monotonic() - self._saved_at >= self._checkpoint_seconds:
            for seat in self._all:
                seat.save()
            self._saved_at = time.monotonic()

    def _close(self) -> None:
        for seat in self._all:
            seat.pause()
