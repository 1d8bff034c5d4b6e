"""One run of a row, with its store; and the trunk that several of them begin as."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.build import AnyRun, build_run, target_of
from orchestrator.store import TrialStore
from orchestrator.store.index import outcome_of
from sweeps.agenda import is_done
from sweeps.curves import Curve
from sweeps.forks import fork_tokens, trunk_of
from sweeps.spec import Trial
from workloads.run import Run

log = logging.getLogger(__name__)


class Seat:
    """One run of a row.

    Attributes:
        trial: whose run it is.
        run: under way; None once it has ended, and while it waits for its trunk.
        ended: whether it ended, paused, or broke.
        begun: whether it has an outcome or a checkpoint of its own.
    """

    def __init__(self, trial: Trial, config: dict[str, Any]) -> None:
        self.trial = trial
        self.ended = False
        self.run: AnyRun | None = None
        self._config = config
        self._cwd = Path(config["cwd"])
        self._store = TrialStore(Path(config["folder"]) / "trials" / trial.key, fence=config["fence"])
        self._status = "running"
        self._reason = ""
        self._sent = 0
        self._told = False
        self._seconds = 0.0
        self._saved_tokens = self._first_tokens = 0
        self._forked_from: tuple[str, int] | None = None  # its trunk's key, and where
        self._outcome: dict[str, Any] | None = None
        self.begun = False
        self._open()

    def _open(self) -> None:
        outcome = self._store.read_outcome()
        if outcome is not None and is_done(self.trial, outcome_of(outcome)):
            self.begun = True
            self._end(outcome)
        else:
            self._resume()

    @property
    def fork_tokens(self) -> int:
        """Where it leaves its trunk."""
        return fork_tokens(self.trial) or 0

    def _resume(self) -> None:
        """Go on from the newest checkpoint; from nothing, if its curve lacks a point that is wanted by now."""
        saved = self._store.newest_checkpoint()
        if saved is None:
            return
        tensors, meta = saved
        seen = [point[0] for point in meta["run"]["points"]]
        if self.trial.passed_unseen(meta["tokens"], [*seen, *meta.get("marks", ())]):
            self._store.drop_checkpoints(script_too=True)
            return
        run = self._build()
        try:
            run.load(tensors, meta["run"])
        except ValueError as error:  # of another release
            log.warning(
                "the checkpoint of trial %s cannot be read (%s): from the beginning", self.trial.short_key, error
            )
            return
        self._begin(run, run.tokens)
        self.begun = True
        self._seconds = float(meta["seconds"])
        if meta.get("forked_from") is not None:
            self._forked_from = (str(meta["forked_from"][0]), int(meta["forked_from"][1]))

    def _build(self) -> AnyRun:
        return build_run(self.trial, resources=self._config["resources"], folder=self._store.folder, cwd=self._cwd)

    def _begin(self, run: AnyRun, tokens: int) -> None:
        self.run = run
        self._saved_tokens = self._first_tokens = tokens

    def begin(self) -> None:
        """Begin from nothing, unless it has begun."""
        if self.run is None:
            self._begin(self._build(), 0)

    def fork(self, trunk: Trunk) -> None:
        """Begin from where the trunk stands."""
        assert trunk.run is not None
        run = self._forkable()
        run.fork(*trunk.run.state())
        self._begin(run, run.tokens)
        self._forked_from = (trunk.trial.key, run.tokens)

    def diverges_on(self, trunk: Run) -> bool:
        """Return whether this run, had it trained where the trunk did, would have diverged by now."""
        return self._forkable().diverges_on(trunk)

    def _forkable(self) -> Run:
        run = self._build()
        assert isinstance(run, Run)  # a sweep of scripts has no forks
        return run

    def advance(self, deadline: float) -> None:
        """Train until the deadline (monotonic seconds) or the end."""
        run = self.run
        if self.ended or run is None:
            return
        with self._working(run):
            while run.status == "running" and time.monotonic() < deadline:
                run.advance(deadline=deadline, clock=time.monotonic)
        if run.status != "running":
            self._finish(run)

    @contextlib.contextmanager
    def _working(self, run: AnyRun) -> Iterator[None]:
        """Count the time and the tokens of what is trained in the block."""
        started, first = time.monotonic(), run.tokens
        try:
            yield
        except BaseException:
            self.ended = True  # broken in the middle of a step: it must not be saved
            raise
        self._seconds += time.monotonic() - started
        self._store.append_work(first, run.tokens)

    def pause(self) -> None:
        """Save a run that is under way; it goes on from here another time."""
        if self.ended:
            return
        if self.run is not None:
            self.save()
            self.run.close()
        self._status, self.ended = "paused", True

    def message(self) -> dict[str, Any] | None:
        """Return what is new since the last message, as plain JSON; None before it begins, and once its end is told."""
        if self._told or (self.run is None and not self.ended):
            return None
        self._told = self.ended
        points = self.run.points if self.run is not None else []
        new, self._sent = points[self._sent :], len(points)
        return {
            "key": self.trial.key,
            "status": self._status,
            "reason": self._reason,
            "tokens": self.run.tokens if self.run is not None else 0,
            "first_tokens": self._first_tokens,
            "points": [
                {"tokens": p.tokens, "step": p.step, "timestamp": p.timestamp, "metrics": dict(p.metrics)} for p in new
            ],
            "outcome": self._outcome,
            "trunk": self.trial.to_json() if self.trial.trunk else None,
        }

    def save(self) -> None:
        """Write a checkpoint, if there is anything new."""
        run = self.run
        if self.ended or run is None or run.tokens <= self._saved_tokens:
            return
        tensors, meta = run.state()
        about = {"seconds": self._seconds, "tokens": run.tokens, "marks": list(self.trial.marks)}
        self._store.save_checkpoint(tensors, {"run": meta, "forked_from": self._forked_from, **about})
        self._saved_tokens = run.tokens

    def _finish(self, run: AnyRun) -> None:
        """Write the outcome; an open-ended run keeps its last checkpoint, as its horizon may grow."""
        kind = "diverged" if run.status == "running" else run.status
        keep = self.trial.open_ended and kind == "finished"
        if keep:
            self.save()
        curve = Curve().append(run.points)
        target = None if self.trial.trunk else target_of(self.trial.workload, curve, cwd=self._cwd)
        outcome = {
            "key": self.trial.key,
            "outcome": kind,
            "reason": run.reason,
            "exceeded": run.exceeded,
            "tokens": run.tokens,
            "curve": curve.to_json(),
            "trial": self.trial.to_json(),
            "seconds": self._seconds,
            "target": None if target is None else asdict(target),
            "forked_from": self._forked_from,
        }
        self._store.write_outcome(outcome)
        if not keep:
            self._store.drop_checkpoints()
        run.close()
        self._end(outcome)

    def _end(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome
        self._status, self._reason, self.ended = outcome["outcome"], outcome["reason"], True


class Trunk(Seat):
    """The trunk of a row's branches: it ends at the last fork, and keeps its checkpoint for a longer horizon."""

    def __init__(self, branches: Sequence[Seat], config: dict[str, Any]) -> None:
        super().__init__(trunk_of([seat.trial for seat in branches]), config)

    def _open(self) -> None:
        self._resume()  # whatever it ended as: its branches need its state

    @property
    def tokens(self) -> int:
        """How far it is."""
        return 0 if self.run is None else self.run.tokens

    def advance_to(self, branch: Seat, deadline: float) -> bool:
        """Train to a branch's fork or the deadline; return whether it can leave here: also if it has diverged."""
        self.begin()
        run, fork = self.run, branch.fork_tokens
        assert isinstance(run, Run)
        with self._working(run):
            while not (over := run.tokens >= fork or run.status == "diverged" or branch.diverges_on(run)):
                if time.monotonic() >= deadline:
                    break
                run.advance(deadline=deadline, until=fork, clock=time.monotonic)
        return over

    def end(self) -> None:
        """Write the outcome: no branch is to come; it is before its last fork only if they have all diverged."""
        if not self.ended and self.run is not None:
            self._finish(self.run)
