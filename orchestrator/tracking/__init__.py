"""MLflow, spoken in this package alone: curves of trials under the parent run of their sweep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.store.lease import user_name
from orchestrator.tracking import reader
from orchestrator.tracking.card import LONGEST_TAG, LONGEST_VALUE, Card, card_of, fit_name, outcome_tags
from orchestrator.tracking.client import Connection, connect, redact, resolve_uri, speaking
from orchestrator.tracking.reader import OUTCOME_TAG, PARENT_TAG, RunCurves, RunRecord
from orchestrator.tracking.writer import STATUS, Ending, Point, RunState, Writer
from sweeps.agenda import Outcome
from sweeps.errors import StoreError
from sweeps.spec import Trial

__all__ = ["Card", "RunCurves", "RunRecord", "Tracker", "card_of", "redact", "resolve_uri"]

log = logging.getLogger(__name__)


class Tracker:
    """One experiment in MLflow, as the driver of a sweep writes it. Made by `open`.

    Names of metrics, parameters and tags are written as MLflow takes them (`card.fit_name`): `acc@1` as `acc_1`.

    Trials are written by one background thread: `begin`, `log` and `end` return at once, and `flush` says whether all
    of it arrived. Everything else is done when it returns, or raises StoreError.
    """

    def __init__(self, at: Connection, *, clock: Callable[[], float], user: str) -> None:
        self._at = at
        self._clock = clock
        self._user = user
        self._parent_id: str | None = None
        self._listed: list[RunRecord] | None = None
        self._writer: Writer | None = None

    @classmethod
    def open(
        cls,
        uri: str | None,
        home: Path,
        experiment: str,
        *,
        environ: Mapping[str, str],
        create: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> Tracker:
        """Return the tracker of an experiment; nothing but the experiment is written.

        Args:
            uri: of the store; None: MLFLOW_TRACKING_URI of `environ`, else SQLite in `home`.
            home: where the default store and its artifacts are (`store.home`).
            experiment: its name.
            environ: of the process.
            create: whether a missing store or experiment is made; to read only, do not.
            clock: seconds since the epoch.

        Raises:
            StoreError: within ten seconds, in one line, if the store cannot be used.
        """
        resolved = resolve_uri(uri, home=home, environ=environ)
        at = connect(resolved, experiment, home=home, create=create)
        return cls(at, clock=clock, user=user_name())

    @property
    def uri(self) -> str:
        """The store, with no user or password in it."""
        return redact(self._at.uri)

    @property
    def experiment_id(self) -> str:
        """MLflow's number of the experiment."""
        return self._at.experiment_id

    @property
    def parent_id(self) -> str | None:
        """MLflow's id of the parent run, None before `parent`."""
        return self._parent_id

    # -- the parent run -------------------------------------------------------------------------------------------

    def parent(
        self, sweep: str, *, sweep_key: str, params: Mapping[str, str], tags: Mapping[str, str] | None = None
    ) -> str:
        """Return the id of the one parent run of a sweep name, made or opened again.

        Args:
            sweep: its name.
            sweep_key: its content hash.
            params: of the sweep; MLflow cannot change one, so one that has changed is kept as the tag `now.<name>`.
            tags: further tags; these can change.
        """
        from mlflow.entities import Param, RunTag

        found = next((run for run in self._runs() if run.tags.get(PARENT_TAG) == sweep), None)
        old = dict(found.params) if found is not None else {}
        params = {fit_name(name): str(value)[:LONGEST_VALUE] for name, value in params.items()}
        changed = {f"now.{name}": text for name, text in params.items() if old.get(name, text) != text}
        wanted = {**(tags or {}), **changed, PARENT_TAG: sweep, "powersweep.key": sweep_key}
        wanted |= {"mlflow.user": self._user, "mlflow.source.name": "powersweep"}
        new = [Param(name, text) for name, text in params.items() if name not in old]
        rest = [RunTag(name, text[:LONGEST_TAG]) for name, text in wanted.items()]
        client = self._at.client
        with speaking(self._at.uri):
            if found is None:
                made = client.create_run(
                    self._at.experiment_id,
                    start_time=int(self._clock() * 1000),
                    run_name=sweep,
                    tags={tag.key: tag.value for tag in rest},
                )
                self._parent_id, rest = made.info.run_id, []
            else:
                self._parent_id = found.run_id
                client.update_run(found.run_id, status="RUNNING")
            while new or rest:
                client.log_batch(self._parent_id, params=new[:90], tags=rest[:90])
                new, rest = new[90:], rest[90:]
        if self._writer is not None:
            self._writer.parent_id = self._parent_id
        return str(self._parent_id)

    def set_parent_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add metrics of the whole sweep; one that has not changed is not written again."""
        from mlflow.entities import Metric

        with speaking(self._at.uri):
            old = self._at.client.get_run(self._parent()).data.metrics
            now = int(self._clock() * 1000)
            new = [Metric(name, float(value), now, step) for name, value in metrics.items() if old.get(name) != value]
            if new:
                self._at.client.log_batch(self._parent(), metrics=new)

    def log_report(self, files: Iterable[Path]) -> None:
        """Put files on the parent run, in place of earlier ones of the same names."""
        with speaking(self._at.uri):
            for path in files:
                self._at.client.log_artifact(self._parent(), str(path))

    def describe(self, text: str) -> None:
        """Show a text (Markdown) as the description of the parent run."""
        with speaking(self._at.uri):
            self._at.client.set_tag(self._parent(), "mlflow.note.content", text[:LONGEST_TAG])

    def end_parent(self, outcome: str) -> None:
        """End the parent run: "finished", "failed", or another word for a sweep that was stopped."""
        with speaking(self._at.uri):
            self._at.client.set_tag(self._parent(), OUTCOME_TAG, outcome)
            status = STATUS.get(outcome, "KILLED")
            self._at.client.set_terminated(self._parent(), status, int(self._clock() * 1000))

    # -- the trials: these return at once -------------------------------------------------------------------------

    def begin(self, key: str, name: str, params: Mapping[str, str], tags: Mapping[str, str] | None = None) -> None:
        """Open the run of a trial; a trial that has a run gets it again."""
        self._writing().begin(key, Card(name, params, tags or {}), started=self._clock())

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Add points, {"tokens", "timestamp", "metrics": {name: value}}; those that MLflow has are left out."""
        self._writing().log(key, points)

    def end(self, key: str, outcome: str, tags: Mapping[str, str] | None = None) -> None:
        """End the run of a trial: one of `spec.OUTCOMES`, or "paused"."""
        self._writing().end(key, Ending(outcome, tags or {}, self._clock()))

    def flush(self, *, timeout_seconds: float = 60.0) -> dict[str, str]:
        """Return once MLflow has everything, less the trials it never will take: these by key, and why.

        Raises StoreError if MLflow does not answer.
        """
        return {} if self._writer is None else self._writer.flush(timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """End the background thread; what it has not written is left to the next `settle`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- after a driver that is gone ------------------------------------------------------------------------------

    def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        """Bring MLflow to the truth of the outcome files; for a driver that holds the lease, before its first trial.

        A trial whose run is missing or not ended as its outcome says is written whole. A run that a driver left
        behind without an outcome is ended as interrupted: `begin` opens it again. Of two runs of a trial the older
        stays. Trials are written in the background: `flush`.
        """
        writer = self._writing()
        kept = {run.run_id: run for run in self._children().values()}
        for run in self._runs():
            if run.key is not None and run.run_id not in kept:
                log.warning("trial %s has two runs in MLflow: deleting %s", run.key[:12], run.run_id)
                with speaking(self._at.uri):
                    self._at.client.delete_run(run.run_id)
            elif run.key is not None and run.key not in outcomes and run.status == "RUNNING":
                writer.end(run.key, Ending("interrupted", {}, self._clock()))
            elif PARENT_TAG in run.tags and run.run_id != self._parent_id and run.status == "RUNNING":
                with speaking(self._at.uri):
                    self._at.client.set_terminated(run.run_id, "KILLED", int(self._clock() * 1000))
        runs = self._children()
        here = {self._parent_id, *(run.run_id for run in self._runs())}
        for run in runs.values():
            if self._parent_id is not None and run.tags.get("mlflow.parentRunId") not in here:
                with speaking(self._at.uri):  # its parent was deleted
                    self._at.client.set_tag(run.run_id, "mlflow.parentRunId", self._parent_id)
        for key, outcome in outcomes.items():
            if key not in runs or not _is_whole(runs[key], outcome):
                _write_whole(writer, outcome, self._clock())

    def orphans(self, keys: Collection[str]) -> list[RunRecord]:
        """Return the runs of trials that are not among these keys, for `gc`."""
        return [run for run in self._runs() if run.key is not None and run.key not in keys]

    def delete(self, runs: Iterable[RunRecord]) -> None:
        """Delete runs, as MLflow does: they can be restored."""
        with speaking(self._at.uri):
            for run in runs:
                self._at.client.delete_run(run.run_id)
        self._listed = None

    # -- reading --------------------------------------------------------------------------------------------------

    def finished(self) -> dict[str, RunRecord]:
        """Return the runs of trials that ended well (finished or diverged), by key, as MLflow has them now."""
        self._listed = None
        return {key: run for key, run in self._children().items() if run.status == "FINISHED"}

    def ended(self, trials: Iterable[Trial]) -> list[dict[str, Any]]:
        """Return the outcomes, as their files have them, of those of these trials that ended well and whole here."""
        runs = self._children()
        found = [(trial, runs[trial.key]) for trial in trials if trial.key in runs]
        records = [reader.outcome_record(self._at, run, trial) for trial, run in found if run.status == "FINISHED"]
        return [record for record in records if record is not None]

    def read_curves(self, *, metrics: Collection[str] | None = None, only_finished: bool = False) -> list[RunCurves]:
        """Return every run that holds metrics, with its curves, whoever logged it: see `reader.read_curves`."""
        return reader.read_curves(self._at, metrics=metrics, only_finished=only_finished)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _runs(self) -> list[RunRecord]:
        if self._listed is None:
            self._listed = reader.list_runs(self._at)
        return self._listed

    def _children(self) -> dict[str, RunRecord]:
        children: dict[str, RunRecord] = {}
        for run in self._runs():
            if run.key is not None:
                children.setdefault(run.key, run)
        return children

    def _parent(self) -> str:
        if self._parent_id is None:
            raise StoreError("tracking: the sweep has no parent run yet")
        return self._parent_id

    def _writing(self) -> Writer:
        if self._writer is None:
            known = {
                key: RunState(run.run_id, run.status, dict(run.tags), set(run.params), set(run.metrics))
                for key, run in self._children().items()
            }
            self._writer = Writer(self._at, known, user=self._user)
            self._writer.parent_id = self._parent_id
        return self._writer


def _is_whole(run: RunRecord, outcome: Outcome) -> bool:
    """Return whether a run ended as its trial did, and not before it: an open-ended trial can end again, later."""
    last = outcome.curve.timestamp[-1] if len(outcome.curve) else 0.0
    return run.outcome == outcome.outcome and run.ended is not None and int(last * 1000) <= round(run.ended * 1000)


def _write_whole(writer: Writer, outcome: Outcome, now: float) -> None:
    """Write a trial from its outcome; the writer leaves out what MLflow has."""
    curve = outcome.curve
    ended = float(curve.timestamp[-1]) if len(curve) else now
    points: list[dict[str, Any]] = [
        {
            "tokens": int(curve.tokens[i]),
            "timestamp": float(curve.timestamp[i]),
            "metrics": {name: float(column[i]) for name, column in curve.metrics.items() if column[i] == column[i]},
        }
        for i in range(len(curve))
    ]
    writer.begin(outcome.key, card_of(outcome.trial), started=ended - outcome.seconds)
    writer.log(outcome.key, points)
    writer.end(outcome.key, Ending(outcome.outcome, outcome_tags(outcome), ended))
