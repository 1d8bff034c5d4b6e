"""The driver's decisions: what its rows report goes to the tracker and the agenda, and the agenda says what is next."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.board import Board
from orchestrator.progress import Progress
from orchestrator.store import SweepStore
from orchestrator.store.index import outcome_of
from orchestrator.store.lease import check_fence
from orchestrator.store.stops import write_stop
from orchestrator.tracking import Tracker
from orchestrator.tracking.card import card_of, outcome_tags
from sweeps.agenda import Agenda, Outcome
from sweeps.curves import Curve
from sweeps.errors import LeaseError, StoreError
from sweeps.spec import Sweep, Trial, content_key

log = logging.getLogger(__name__)

ERROR_FILE = "error.txt"  # in a trial's folder: the tracebacks of its crashes
HOPELESS_FAILURES = 3  # trials that fail before any ends well: the others would as well; a choice
OUT_OF_TIME = "budget.seconds"  # how `Driver.stopping` begins then
LOOK_SECONDS = 1.0  # between two looks at who holds the lease


@dataclass
class Tally:
    """What happened while this driver ran."""

    finished: int = 0
    diverged: int = 0
    stopped: int = 0
    paused: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # trial key -> why
    crashes: int = 0


class Driver:
    """Between Ray Tune and everything else. None of its methods raises: Tune would take that for a failed trial.

    Args:
        after: called when all brackets are complete, and again whenever what it returned has ended, until it returns
            no more: the trials of the held-out check.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        agenda: Agenda,
        store: SweepStore,
        tracker: Tracker,
        fence: int,
        progress: Progress,
        after: Callable[[], Sequence[Trial]],
    ) -> None:
        self.sweep = sweep
        self.agenda = agenda
        self.board = Board(agenda)
        self.tally = Tally()
        self.error: Exception | None = None
        self.stopping: str | None = None
        self.rows_at_once = 1
        self._store = store
        self._tracker = tracker
        self._fence = fence
        self._progress = progress
        self._after: Callable[[], Sequence[Trial]] | None = after
        self._open: set[str] = set()  # runs that the tracker has open
        self._ended: set[str] = set()  # the trials that have
        self._told: set[str] = set()  # whose decision to stop is in its file
        self._lockstep: dict[str, int] = {}  # by shape
        self._started = self._looked = time.monotonic()

    # -- asked by the searcher ------------------------------------------------------------------------------------

    def next_row(self) -> dict[str, Any] | None:
        """Return the config of the next row, or None if there is none now."""
        try:
            self._watch()
            if self.error is not None or self.stopping is not None:
                return None
            trials = self._next_trials()
        except Exception as error:  # noqa: BLE001 - recorded, and the sweep ends with it
            self._fail(error)
            return None
        return self._row(trials) if trials else None

    def _next_trials(self) -> list[Trial]:
        """Return the next trials to be trained; those that a stopper wants ended before they begin end here."""
        while True:
            self.check_if_complete()
            taken = self.agenda.take(self._most())
            stopped = [trial for trial in taken if self.board.ask(trial.key) is not None]
            self._tell_stops()
            for trial in stopped:
                trunk = self.agenda.trunk(trial)
                record = self.board.outcome(trial, trunk=trunk)
                self._store.trial(trial.key, fence=self._fence).write_outcome(record)
                self._take_outcome(trial.key, outcome_of(record))
            if len(stopped) < len(taken) or not taken:
                return [trial for trial in taken if trial not in stopped]

    def _most(self) -> int:
        """Return of how many trunks the next row is: as many as train in lockstep, but no row shall lack its share."""
        first = self.agenda.next_up()
        if first is None:
            return 1
        most = self._most_of(first)
        return most if most == 1 else min(most, -(-self.agenda.alike(first) // self.rows_at_once))

    def _most_of(self, trial: Trial) -> int:
        shape = content_key([trial.workload.identity(), trial.optimizer.identity(), trial.batch_tokens])
        if shape not in self._lockstep:
            from orchestrator.rows.lockstep import most_of

            try:
                self._lockstep[shape] = most_of(trial, resources=asdict(self.sweep.resources), cwd=Path.cwd())
            except Exception as error:  # noqa: BLE001 - a user's class: its row fails too, and says why
                log.debug("no lockstep for trial %s: %s", trial.short_key, error)
                self._lockstep[shape] = 1
        return self._lockstep[shape]

    def _tell_stops(self) -> None:
        """Write down what the stoppers have decided: a row looks for that at each step, now or when it begins."""
        for key in self.board.told.keys() - self._told:
            write_stop(self._store.trial(key, fence=self._fence), self.board.told[key])
            self._told.add(key)

    def check_if_complete(self) -> None:
        """Add the trials of the held-out check when all brackets are complete, and what these ask for when they are."""
        while self.agenda.complete and self._after is not None:
            more = self._after()
            self._after = self._after if more else None
            self.agenda.add(more)

    @property
    def exhausted(self) -> bool:
        """Whether no row will ever come any more."""
        return self.error is not None or self.stopping is not None or (self.agenda.complete and self._after is None)

    def _row(self, trials: Sequence[Trial]) -> dict[str, Any]:
        return {
            "trials": [trial.to_json() for trial in trials],
            "later": [later.to_json() for trial in trials for later in self.agenda.later(trial)],
            "lockstep": self._most_of(trials[0]),
            "folder": str(self._store.folder),
            "fence": self._fence,
            "forks": self.sweep.forks,
            "resources": asdict(self.sweep.resources),
            "cwd": str(Path.cwd()),
        }

    # -- told by the callback -------------------------------------------------------------------------------------

    def on_messages(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Take what a row reports of its runs."""
        if isinstance(self.error, LeaseError):
            return  # another driver has the sweep: what it is told is its own
        try:
            for message in messages:
                self._on_message(message)
            self._tell_stops()
            self._watch()
            self._progress.show(self.agenda)
        except Exception as error:  # noqa: BLE001 - recorded, and the sweep ends with it
            self._fail(error)

    def on_crash(self, keys: Sequence[str], why: str, *, details: str, final: bool) -> None:
        """Take that a row's process ended; `final` when its retries are used up, `details` for a file.

        Of several trials none is blamed: each is then tried in a row of its own.
        """
        if isinstance(self.error, LeaseError):
            return
        under_way = [key for key in keys if key not in self._ended]
        for key in under_way:
            with contextlib.suppress(OSError):  # a full disk hides the details, not the failure
                (self._store.trials / key).mkdir(parents=True, exist_ok=True)
                (self._store.trials / key / ERROR_FILE).write_text(details)
        if not final or len(under_way) > 1:
            self.tally.crashes += 1
            if final:
                self.agenda.part(under_way)
            return
        try:
            for key in under_way:
                self.tally.failed[key] = why
                self._begin(key)
                self._end(key, "failed", {"reason": why[:500]})
                failed = Outcome(key=key, outcome="failed", tokens=0, curve=Curve(), reason=why)
                self.agenda.end(failed)
                self.board.ended(failed)
            if len(self.tally.failed) >= HOPELESS_FAILURES and not self.tally.finished + self.tally.diverged:
                self.stop(f"the first {len(self.tally.failed)} trials all failed")
        except Exception as error:  # noqa: BLE001 - recorded, and the sweep ends with it
            self._fail(error)

    def stop(self, why: str) -> None:
        """Ask every row to save and end; nothing new starts."""
        if self.stopping is None:
            self.stopping = why
            with contextlib.suppress(StoreError):  # a store that is gone stops its rows by itself
                self._store.request_stop()

    def _fail(self, error: Exception) -> None:
        """End the sweep with an error; the rows of a driver that has lost the lease are left to its successor."""
        if self.error is None:
            self.error = error
        if not isinstance(error, LeaseError):
            self.stop(f"{type(error).__name__}: {error}")

    def _on_message(self, message: Mapping[str, Any]) -> None:
        key = message["key"]
        if message["status"] == "paused" and message["tokens"] == 0:
            return  # stopped before it began: there is nothing to show
        trunk = None if message["trunk"] is None else Trial.from_json(message["trunk"])
        if key in self._ended:
            return  # a row that crashed says so again
        self._begin(key, trunk)
        if message["points"]:
            self._tracker.log(key, message["points"])
            self.board.saw(key, message["points"], trunk=trunk is not None)
        self._progress.saw(key, message)
        if message["status"] == "paused":
            self.tally.paused += trunk is None
            self._end(key, "paused")
        elif message["outcome"] is not None:
            self._take_outcome(key, outcome_of(message["outcome"]), trunk)

    def _take_outcome(self, key: str, outcome: Outcome, trunk: Trial | None = None) -> None:
        self._begin(key, trunk)
        self._tracker.log(key, points_of(outcome))
        self._end(key, outcome.outcome, outcome_tags(outcome))
        if trunk is not None:
            self.agenda.outcomes[key] = outcome
        else:
            self._ended.add(key)
            self.tally.finished += outcome.outcome == "finished"
            self.tally.diverged += outcome.outcome == "diverged"
            self.tally.stopped += outcome.outcome == "stopped"
            self.agenda.end(outcome)
            self.board.ended(outcome)

    def _begin(self, key: str, trunk: Trial | None = None) -> None:
        if key not in self._open:
            self._open.add(key)
            card = card_of((trunk or self.agenda.trials[key]).to_json())
            self._tracker.begin(key, card.name, card.params, card.tags)

    def _end(self, key: str, outcome: str, tags: Mapping[str, str] | None = None) -> None:
        self._open.discard(key)
        self._tracker.end(key, outcome, tags or {})

    def end_begun(self) -> None:
        """Pause what has begun and has not said how it ended: a row that opened no seats, or was stopped at once."""
        if not isinstance(self.error, LeaseError):
            for key in sorted(self._open):
                self._end(key, "paused")

    def _watch(self) -> None:
        """Stop when asked to, or when the time is used up. Raises FencedError if another driver has taken over."""
        now = time.monotonic()
        seconds = self.sweep.budget.seconds
        if seconds is not None and now - self._started > seconds:
            self.stop(f"{OUT_OF_TIME}, {seconds:g}, is used up")
        if self._store.stop_requested():
            self.stop("asked to stop")
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            check_fence(self._store.folder, self._fence)


def points_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the curve of an outcome as points, as the tracker takes them."""
    curve = outcome.curve
    return [
        {
            "tokens": int(curve.tokens[i]),
            "step": int(curve.step[i]),
            "timestamp": float(curve.timestamp[i]),
            "metrics": {name: float(column[i]) for name, column in curve.metrics.items() if column[i] == column[i]},
        }
        for i in range(len(curve))
    ]
