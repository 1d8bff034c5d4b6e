"""The row: what Ray Tune calls a trial. It advances its runs from report to report and keeps their checkpoints."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune

from orchestrator.build import AnyRun, build_run, target_of
from orchestrator.store import STOP_FILE, TrialStore
from orchestrator.store.index import outcome_of
from sweeps.agenda import is_done
from sweeps.curves import Curve
from sweeps.spec import Trial

log = logging.getLogger(__name__)


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
        deadline = time.monotonic() + self._report_seconds
        paused = (self._folder / STOP_FILE).exists()
        for seat in self._seats:
            if paused:
                seat.pause()
            else:
                seat.advance(deadline)
        return {"runs": [seat.message() for seat in self._seats], "done": all(seat.ended for seat in self._seats)}

    def cleanup(self) -> None:
        """Save what is under way."""
        self._close()

    def _open(self, row: dict[str, Any]) -> None:
        if Path(row["cwd"]).is_dir():
            os.chdir(row["cwd"])  # a user's relative paths mean the folder the sweep was started in
        self._folder = Path(row["folder"])
        self._report_seconds = float(row["resources"]["report_seconds"])
        stopped = (self._folder / STOP_FILE).exists()  # then nothing new begins: the row ends with nothing to report
        self._seats = [] if stopped else [_Seat(Trial.from_json(record), row) for record in row["trials"]]

    def _close(self) -> None:
        for seat in self._seats:
            seat.pause()


class _Seat:
    """One run of a row, with its store."""

    def __init__(self, trial: Trial, config: dict[str, Any]) -> None:
        self.trial = trial
        self.ended = False
        self._status = "running"
        self._reason = ""
        self._sent = 0
        self._seconds = 0.0
        self._outcome: dict[str, Any] | None = None
        self._period = float(config["resources"]["checkpoint_seconds"])
        self._cwd = Path(config["cwd"])
        self._store = TrialStore(Path(config["folder"]) / "trials" / trial.key, fence=config["fence"])
        self._run: AnyRun | None = None
        outcome = self._store.read_outcome()
        if outcome is not None and is_done(trial, outcome_of(outcome)):
            self._end(outcome)
            return
        self._run = build_run(trial, resources=config["resources"], folder=self._store.folder, cwd=Path(config["cwd"]))
        self._resume(self._run)
        self._saved_at = time.monotonic()
        self._saved_tokens = self._run.tokens

    def _resume(self, run: AnyRun) -> None:
        """Go on from the newest checkpoint; from nothing, if its curve lacks a point that is wanted by now."""
        saved = self._store.newest_checkpoint()
        if saved is None:
            return
        tensors, meta = saved
        seen = [point[0] for point in meta["run"]["points"]]
        if self.trial.passed_unseen(meta["tokens"], [*seen, *meta.get("marks", ())]):
            self._store.drop_checkpoints(script_too=True)
            return
        run.load(tensors, meta["run"])
        self._seconds = float(meta["seconds"])

    def advance(self, deadline: float) -> None:
        """Train until the deadline (monotonic seconds) or the end; save when it is time."""
        run = self._run
        if self.ended or run is None:
            return
        started, first = time.monotonic(), run.tokens
        try:
            while run.status == "running" and time.monotonic() < deadline:
                run.advance(deadline=deadline, clock=time.monotonic)
        except BaseException:
            self.ended = True  # broken in the middle of a step: it must not be saved
            raise
        self._seconds += time.monotonic() - started
        self._store.append_work(first, run.tokens)
        if run.status != "running":
            self._finish(run)
        elif time.monotonic() - self._saved_at >= self._period:
            self._save(run)

    def pause(self) -> None:
        """Save a run that is under way; it goes on from here another time."""
        if self.ended or self._run is None:
            return
        self._save(self._run)
        self._run.close()
        self._status, self.ended = "paused", True

    def message(self) -> dict[str, Any]:
        """Return what is new since the last message, as plain JSON."""
        points = self._run.points if self._run is not None else []
        new, self._sent = points[self._sent :], len(points)
        return {
            "key": self.trial.key,
            "status": self._status,
            "reason": self._reason,
            "tokens": self._run.tokens if self._run is not None else 0,
            "points": [
                {"tokens": p.tokens, "step": p.step, "timestamp": p.timestamp, "metrics": dict(p.metrics)} for p in new
            ],
            "outcome": self._outcome,
        }

    def _save(self, run: AnyRun) -> None:
        if run.tokens > self._saved_tokens:
            tensors, meta = run.state()
            about = {"seconds": self._seconds, "tokens": run.tokens, "marks": list(self.trial.marks)}
            self._store.save_checkpoint(tensors, {"run": meta, **about})
            self._saved_tokens = run.tokens
        self._saved_at = time.monotonic()

    def _finish(self, run: AnyRun) -> None:
        """Write the outcome; an open-ended run keeps its last checkpoint, as its horizon may grow."""
        if self.trial.open_ended and run.status == "finished":
            self._save(run)
        curve = Curve().append(run.points)
        target = target_of(self.trial.workload, curve, cwd=self._cwd)
        outcome = {
            "key": self.trial.key,
            "outcome": run.status,
            "reason": run.reason,
            "exceeded": run.exceeded,
            "tokens": run.tokens,
            "curve": curve.to_json(),
            "trial": self.trial.to_json(),
            "seconds": self._seconds,
            "target": None if target is None else asdict(target),
        }
        self._store.write_outcome(outcome)
        if not self.trial.open_ended:
            self._store.drop_checkpoints()
        run.close()
        self._end(outcome)

    def _end(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome
        self._status, self._reason, self.ended = outcome["outcome"], outcome["reason"], True
