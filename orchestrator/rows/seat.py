"""One run of a row, with its store; and the trunk that several of them begin as."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.board import seen_by, stopped_outcome
from orchestrator.build import AnyRun, build_run, target_of
from orchestrator.store import TrialStore
from orchestrator.store.index import outcome_of
from orchestrator.store.stops import read_stop
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
    def waits(self) -> bool:
        """Whether it waits for its trunk."""
        return self.run is None and not self.ended

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
        assert run is not None
        with self.working():
            while run.status == "running" and time.monotonic() < deadline:
                run.advance(deadline=deadline, clock=time.monotonic)
        self.settle()

    def settle(self) -> None:
        """Write the outcome of a run that is over."""
        if self.run is not None and not self.ended and self.run.status != "running":
            self._finish(self.run)

    @contextlib.contextmanager
    def working(self, *, among: int = 1) -> Iterator[None]:
        """Count the time, shared with so many, and the tokens of what is trained in the block."""
        run = self.run
        assert run is not None
        started, first = time.monotonic(), run.tokens
        try:
            yield
        except BaseException:
            self.ended = True  # broken in the middle of a step: it must not be saved
            raise
        self._seconds += (time.monotonic() - started) / among
        self._store.append_work(first, run.tokens)

    def heed(self, trunk: Trunk | None) -> None:
        """End a run that is told to stop. Its state is kept: it goes on from there once no stopper wants that."""
        stop = read_stop(self._store.folder) if self.trial.stopping and not self.ended else None
        if stop is None or not stop.holds_for(self.trial):
            return
        run = self.run
        if run is None:
            assert trunk is not None
            seen = seen_by(self.trial, [] if trunk.run is None else trunk.run.points)
            outcome = stopped_outcome(self.trial, stop, seen, trunk=trunk.trial.key)
            self._first_tokens = outcome["tokens"]
            self._store.write_outcome(outcome)
            self._end(outcome)
        else:
            self._give_up(run, {"reason": stop.why, "stop": stop.to_json()})

    def _give_up(self, run: AnyRun, why: dict[str, Any]) -> None:
        """End a run that may be wanted again."""
        self.save()
        outcome = {**self._record(run, "stopped"), **why}
        self._store.write_outcome(outcome)
        run.close()
        self._end(outcome)

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
        if self._told or self.waits:
            return None
        self._told = self.ended
        points = self.run.points if self.run is not None else []
        new, self._sent = points[self._sent :], len(points)
        return {
            "key": self.trial.key,
            "status": self._status,
            "reason": self._reason,
            "tokens": self.run.tokens if self.run is not None else self._first_tokens,
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
        outcome = self._record(run, kind)
        self._store.write_outcome(outcome)
        if not keep:
            self._store.drop_checkpoints()
        run.close()
        self._end(outcome)

    def _record(self, run: AnyRun, kind: str) -> dict[str, Any]:
        """Return the outcome as it stands in its file."""
        curve = Curve().append(run.points)
        target = None if self.trial.trunk else target_of(self.trial.workload, curve, cwd=self._cwd)
        return {
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

    def _end(self, outcome: dict[str, Any]) -> None:
        self._outcome = outcome
        self._status, self._reason, self.ended = outcome["outcome"], outcome["reason"], True


class Trunk(Seat):
    """The trunk of a row's branches: it ends at the last fork, and keeps its checkpoint for a longer horizon.

    `later` are branches of rows to come, at whose marks it looks too.
    """

    def __init__(self, branches: Sequence[Seat], config: dict[str, Any], *, later: Sequence[Trial] = ()) -> None:
        super().__init__(trunk_of([seat.trial for seat in branches], later=later), config)

    def _open(self) -> None:
        self._resume()  # whatever it ended as: its branches need its state

    @property
    def tokens(self) -> int:
        """How far it is."""
        return 0 if self.run is None else self.run.tokens

    def carries(self, branch: Seat) -> bool:
        """Return whether a branch can leave here: at its fork, or where it has diverged."""
        run = self.run
        assert isinstance(run, Run)
        return run.tokens >= branch.fork_tokens or run.status == "diverged" or branch.diverges_on(run)

    def advance_to(self, branch: Seat, deadline: float) -> None:
        """Train to where a branch can leave, or to the deadline."""
        run = self.run
        assert isinstance(run, Run)
        with self.working():
            while not self.carries(branch) and time.monotonic() < deadline:
                run.advance(deadline=deadline, until=branch.fork_tokens, clock=time.monotonic)

    def settle(self) -> None:
        """Do nothing: it ends when its last branch has left."""

    def end(self) -> None:
        """Write the outcome: no branch is to come; it is before its last fork only if they have all diverged."""
        if not self.ended and self.run is not None:
            self._finish(self.run)

    def leave(self) -> None:
        """Write the outcome: its branches were told to stop before their forks, but longer ones may want it."""
        if self.run is None:
            self.pause()
        elif not self.ended:
            self._give_up(self.run, {"reason": "its branches were stopped"})
