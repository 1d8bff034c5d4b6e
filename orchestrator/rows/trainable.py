"""The row: what Ray Tune calls a trial. It advances its runs from report to report and keeps their checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ray import tune

from orchestrator.rows.family import Family
from orchestrator.rows.lockstep import Lockstep
from orchestrator.rows.seat import Seat, Trunk
from orchestrator.store import STOP_FILE
from sweeps.forks import families, trunk_key
from sweeps.spec import Trial
from workloads.run import Run


class Row(tune.Trainable):
    """K runs of one shape in one process; a row of one is an ordinary Tune trial.

    Its config is {"row": JSON text of {"trials": [Trial.to_json()], "later": the same of trials that go on from their
    trunk after this row, "lockstep": runs trained together (1: none), "folder", "fence", "forks", "resources", "cwd"}}:
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
        return [seat for family in self._families for seat in family.all]

    def _open(self, row: dict[str, Any]) -> None:
        """Open the families of trials; nothing begins while the sweep is asked to stop."""
        if Path(row["cwd"]).is_dir():
            os.chdir(row["cwd"])  # a user's relative paths mean the folder the sweep was started in
        self._config = row
        self._folder = Path(row["folder"])
        self._report_seconds = float(row["resources"]["report_seconds"])
        self._checkpoint_seconds = float(row["resources"]["checkpoint_seconds"])
        self._saved_at = time.monotonic()
        self._lockstep = Lockstep(row.get("fitting", row["lockstep"])) if row["lockstep"] > 1 else None
        self._families: list[Family] = []
        if (self._folder / STOP_FILE).exists():
            return
        trials, later = ([Trial.from_json(record) for record in row[name]] for name in ("trials", "later"))
        shared = [family.branches for family in families(trials)] if row["forks"] else [(trial,) for trial in trials]
        for branches in shared:
            trunk = trunk_key(branches[0])
            more = [trial for trial in later if trunk is not None and trunk_key(trial) == trunk]
            self._families.append(Family(branches, row, later=more))

    def _advance(self, deadline: float) -> None:
        """Train what is due until the deadline; save what is under way when it is time."""
        for family in self._families:
            family.heed()
        while time.monotonic() < deadline and (due := [at for f in self._families if (at := f.due()) is not None]):
            if self._lockstep is not None:
                self._advance_together(self._lockstep, due, deadline)
            else:
                seat, branch = due[0]
                if isinstance(seat, Trunk) and branch is not None:
                    seat.advance_to(branch, deadline)
                else:
                    seat.advance(deadline)
        if time.monotonic() - self._saved_at >= self._checkpoint_seconds:
            for seat in self._all:
                seat.save()
            self._saved_at = time.monotonic()

    def _advance_together(self, lockstep: Lockstep, due: Sequence[tuple[Seat, Seat | None]], deadline: float) -> None:
        """Train runs of one shape that stand at one place, until one of them is over or its branch can leave."""
        seats = {seat.run: (seat, branch) for seat, branch in due if isinstance(seat.run, Run)}
        group = lockstep.group(list(seats))
        pairs = [seats[run] for run in group]
        forks = [branch.fork_tokens for _, branch in pairs if branch is not None]

        def over() -> bool:
            return any(isinstance(trunk, Trunk) and b is not None and trunk.carries(b) for trunk, b in pairs)

        try:
            with contextlib.ExitStack() as stack:
                for seat, _ in pairs:
                    stack.enter_context(seat.working(among=len(group)))
                lockstep.advance(group, min(forks, default=None), deadline, over=over)
        except torch.OutOfMemoryError:
            if not self._use_less_memory(group):
                raise
            return
        for seat, _ in pairs:
            seat.settle()

    def _use_less_memory(self, group: Sequence[Run]) -> bool:
        """Go on from the newest checkpoints with half as many runs at a time; of one run, with half the micro-batch.

        The trials stay what they are. Returns whether there was anything to halve.
        """
        row, spec = self._config, group[0].spec
        micro = (spec.micro_batch_tokens or spec.batch_tokens) // 2
        torch.cuda.empty_cache()
        if len(group) > 1:
            row = {**row, "fitting": len(group) // 2}
        elif micro and micro % spec.workload.facts().tokens_per_example == 0 and spec.batch_tokens % micro == 0:
            row = {**row, "resources": {**row["resources"], "micro_batch_tokens": micro}}
        else:
            return False
        self._open(row)
        return True

    def _close(self) -> None:
        for seat in self._all:
            seat.pause()
