"""The one thread that writes trials to MLflow: in batches, nothing twice, nothing lost while the process lives.

What is asked of it is merged by trial and waits in memory until MLflow has it; a store that is away for a while is
asked again. A killed process loses what waits, and `Tracker.settle` writes it again from the outcome files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.tracking.card import LONGEST_TAG, LONGEST_VALUE, Card, fit_name, fit_names
from orchestrator.tracking.client import Connection, redact
from orchestrator.tracking.reader import KEY_TAG, OUTCOME_TAG, logged_points
from sweeps.errors import StoreError

METRICS_A_BATCH = 900  # MLflow takes 1,000 entries a request, of which 100 parameters and 100 tags
PARAMS_A_BATCH = 90
LINGER_SECONDS = 0.2  # reports that arrive within it share a request
BACKOFF_SECONDS = (0.2, 1.0, 3.0, 10.0, 30.0)
FLUSH_ATTEMPTS = 3
HOPELESS = {  # MLflow's error codes that trying again does not cure
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}
STATUS = {"finished": "FINISHED", "diverged": "FINISHED", "failed": "FAILED"}  # the others: KILLED

log = logging.getLogger(__name__)

Point = Mapping[str, Any]  # {"tokens", "timestamp", "metrics"}


@dataclass
class RunState:
    """What is known of a run in MLflow; `logged` is None until its histories have been read."""

    run_id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    logged: set[tuple[str, int]] | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends, and when, in seconds since the epoch."""

    outcome: str
    tags: Mapping[str, str]
    ended: float


@dataclass
class _Waiting:
    """What waits to be written of one trial, in the order begin, points, end."""

    card: Card | None = None
    started: float = 0.0
    points: list[Point] = field(default_factory=list)
    end: Ending | None = None
    failed_before: bool = False

    def before(self, later: _Waiting) -> _Waiting:
        """Return the two as one: a later begin opens the run again."""
        opened = later.card is not None
        return _Waiting(
            card=later.card or self.card,
            started=self.started if self.card is not None else later.started,
            points=self.points + later.points,
            end=later.end if opened else later.end or self.end,
            failed_before=self.failed_before,
        )


class Writer:
    """Writes trials of one experiment as children of one parent run.

    Args:
        at: the experiment.
        runs: what MLflow holds already, by trial key; the writer's own from here on.
        user: whom MLflow shows as the author.
    """

    def __init__(self, at: Connection, runs: dict[str, RunState], *, user: str) -> None:
        self.parent_id: str | None = None
        self._at = at
        self._runs = runs
        self._user = user
        self._waiting: dict[str, _Waiting] = {}
        self._lost: dict[str, str] = {}  # key -> why it cannot be written
        self._trouble: str | None = None  # why the last attempt failed
        self._failures = 0  # in a row
        self._written = 0  # trials, in all
        self._busy = False
        self._urgent = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="powersweep-tracking", daemon=True)
        self._thread.start()

    # -- asked by the driver, never waits -------------------------------------------------------------------------

    def begin(self, key: str, card: Card, *, started: float) -> None:
        """Open the run of a trial, or open it again."""
        card = Card(card.name, fit_names(card.params), fit_names(card.tags))
        self._add(key, _Waiting(card=card, started=started))

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Add points; those that MLflow has are left out."""
        self._add(key, _Waiting(points=list(points)))

    def end(self, key: str, ending: Ending) -> None:
        """End the run."""
        self._add(key, _Waiting(end=ending))

    # -- asked by the driver, waits -------------------------------------------------------------------------------

    def flush(self, *, timeout_seconds: float = 60.0) -> dict[str, str]:
        """Return once MLflow has everything, less the trials it never will take: these by key, and why.

        Raises:
            StoreError: it does not answer, after a few attempts or with nothing written for this time. What is
                missing goes on waiting.
        """
        written, deadline = self._written, time.monotonic() + timeout_seconds
        with self._changed:
            self._urgent, self._failures = True, 0
            self._changed.notify_all()
            while (self._waiting or self._busy) and self._failures < FLUSH_ATTEMPTS:
                if self._written != written:
                    written, deadline = self._written, time.monotonic() + timeout_seconds
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    break
                self._changed.wait(min(left, 1.0))
            self._urgent = False
            missing = len(self._waiting)
            reason = self._trouble or f"not done in {timeout_seconds:.0f} s"
            lost, self._lost = self._lost, {}
        if missing:
            raise StoreError(
                f"tracking: {redact(self._at.uri)} lacks {missing} trials ({reason}); "
                f"their outcomes are safe on disk, and the same command writes them again"
            )
        return lost

    def close(self) -> None:
        """End the thread after what it is writing now; call `flush` first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _add(self, key: str, later: _Waiting) -> None:
        with self._changed:
            earlier = self._waiting.get(key)
            self._waiting[key] = later if earlier is None else earlier.before(later)
            if earlier is None:
                self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._urgent and not self._closed:
                    self._changed.wait_for(lambda: self._urgent or self._closed, self._pause())
                if self._closed:
                    return
                batch, self._waiting, self._busy = self._waiting, {}, True
            self._write_all(batch)
            with self._changed:
                for key, left in batch.items():  # what failed goes back, before what came since
                    later = self._waiting.pop(key, None)
                    self._waiting[key] = left if later is None else left.before(later)
                self._busy = False
                self._changed.notify_all()
                if self._failures and self._urgent:
                    self._changed.wait(BACKOFF_SECONDS[0])

    def _pause(self) -> float:
        if not self._failures:
            return LINGER_SECONDS
        return BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS)) - 1]

    def _write_all(self, batch: dict[str, _Waiting]) -> None:
        """Write trial by trial, taking each out of the batch; stop at the first that fails for a passing reason."""
        for key in list(batch):
            try:
                self._write(key, batch[key])
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises is the driver's to hear, at `flush`
                reason = redact(error)[:300]
                if getattr(error, "error_code", None) in HOPELESS:
                    log.info("trial %s cannot be written to MLflow: %s", key[:12], reason)  # `flush` tells of it
                    self._lost[key] = reason
                    del batch[key]
                    continue
                if not self._failures:
                    log.warning("MLflow does not take what is logged (%s); trying again", reason)
                batch[key].failed_before = True
                batch[key] = batch.pop(key)  # to the end: one bad trial does not hold up the others
                self._trouble, self._failures = reason, self._failures + 1
                return
            del batch[key]
            self._written += 1
            self._failures = 0

    def _write(self, key: str, waiting: _Waiting) -> None:
        run = self._runs.get(key)
        if run is None and waiting.failed_before:
            run = self._find(key)  # the failed attempt may have made it
        if run is None:
            run = self._create(key, waiting)
        elif waiting.card is not None and waiting.end is None and run.status != "RUNNING":
            self._at.client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"
        self._runs[key] = run
        self._log_batch(run, waiting)
        if waiting.end is not None:
            status = STATUS.get(waiting.end.outcome, "KILLED")
            self._at.client.set_terminated(run.run_id, status, int(waiting.end.ended * 1000))
            run.status = status
            run.logged = None  # an ended run rarely comes back: read again if it does

    def _create(self, key: str, waiting: _Waiting) -> RunState:
        card = waiting.card or Card(name=key[:12])
        tags = {**card.tags, KEY_TAG: key, "mlflow.user": self._user, "mlflow.source.name": "powersweep"}
        if self.parent_id is not None:
            tags["mlflow.parentRunId"] = self.parent_id
        if waiting.end is not None:
            tags.update(_end_tags(waiting.end, {}))
        tags = {name: value[:LONGEST_TAG] for name, value in tags.items()}
        made = self._at.client.create_run(
            self._at.experiment_id, start_time=int(waiting.started * 1000), tags=tags, run_name=card.name
        )
        return RunState(made.info.run_id, "RUNNING", tags=tags, logged=set())

    def _find(self, key: str) -> RunState | None:
        found = self._at.client.search_runs([self._at.experiment_id], filter_string=f"tags.{KEY_TAG} = '{key}'")
        return state_of(found[0].info, found[0].data) if found else None

    def _log_batch(self, run: RunState, waiting: _Waiting) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if run.logged is None and waiting.points:
            run.logged = logged_points(self._at, run.run_id, run.metrics)
        fresh = _fresh(waiting.points, run.logged or set())
        metrics = [Metric(name, value, milliseconds, step) for (name, step), (value, milliseconds) in fresh.items()]
        card = waiting.card or Card(name="")
        params = [Param(name, text[:LONGEST_VALUE]) for name, text in card.params.items() if name not in run.params]
        wanted = {**card.tags, **(_end_tags(waiting.end, run.tags) if waiting.end is not None else {})}
        tags = {name: text[:LONGEST_TAG] for name, text in wanted.items() if run.tags.get(name) != text[:LONGEST_TAG]}
        known, run.logged = run.logged, None  # unknown while a request is under way
        run.metrics.update(name for name, _ in fresh)
        rest = [RunTag(name, text) for name, text in tags.items()]
        while metrics or params or rest:
            part = (metrics[:METRICS_A_BATCH], params[:PARAMS_A_BATCH], rest)
            self._at.client.log_batch(run.run_id, *part)
            metrics, params, rest = metrics[METRICS_A_BATCH:], params[PARAMS_A_BATCH:], []
        if known is not None:
            run.logged = known | fresh.keys()
        run.params.update(card.params)
        run.tags.update(tags)


def state_of(info: Any, data: Any) -> RunState:
    """Return what is known of a run that MLflow returned."""
    return RunState(info.run_id, info.status, dict(data.tags), set(data.params), set(data.metrics))


def _end_tags(end: Ending, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of an ending; a plainly finished run has no outcome tag, unless an earlier end left one."""
    plain = end.outcome == "finished" and OUTCOME_TAG not in tags
    return dict(end.tags) if plain else {**end.tags, OUTCOME_TAG: end.outcome}


def _fresh(points: Sequence[Point], logged: set[tuple[str, int]]) -> dict[tuple[str, int], tuple[float, int]]:
    """Return (value, milliseconds) of the (metric, step) that MLflow lacks; of two the first counts."""
    fresh: dict[tuple[str, int], tuple[float, int]] = {}
    for point in points:
        for name, value in point["metrics"].items():
            place = (fit_name(name), int(point["tokens"]))
            if value is not None and place not in logged:
                fresh.setdefault(place, (float(value), int(point["timestamp"] * 1000)))
    return fresh
