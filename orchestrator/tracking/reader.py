"""What MLflow holds: the runs of an experiment, and their whole curves, whoever logged them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.tracking.card import PARTS
from orchestrator.tracking.client import Connection, speaking
from sweeps.curves import Curve
from sweeps.spec import Trial

KEY_TAG = "trial_key"
OUTCOME_TAG = "outcome"
PARENT_TAG = "powersweep.sweep"  # on the one parent run of a sweep: its name
PAGE = 5000
BEYOND_FLOAT = 1.7e308  # MLflow keeps an infinite value as 1.797e308


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as MLflow has it.

    Attributes:
        key: the trial's key; None where something else logged the run.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        metrics: the latest value of each.
        started, ended: seconds since the epoch.
    """

    run_id: str
    name: str
    key: str | None
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    started: float | None
    ended: float | None

    @property
    def outcome(self) -> str | None:
        """One of `spec.OUTCOMES`, or "paused" or "interrupted"; None while it runs."""
        if self.status == "RUNNING":
            return None
        return self.tags.get(OUTCOME_TAG) or ("finished" if self.status == "FINISHED" else "failed")


@dataclass(frozen=True, slots=True)
class RunCurves:
    """A run with its metric histories as columns, tokens (MLflow's step) ascending.

    `curve` is {"tokens", "step", "timestamp", "metrics": {name: values}}, as `Curve.from_json` reads it: None where a
    metric has no value at a mark. `step` is worked out from the parameter `batch_tokens`, and 0 without it.
    """

    run: RunRecord
    curve: Mapping[str, Any]


def list_runs(at: Connection) -> list[RunRecord]:
    """Return all runs of the experiment that are not deleted, oldest first."""
    with speaking(at.uri):
        return [_record(run) for run in _pages(at)]


def read_curves(
    at: Connection, *, metrics: Collection[str] | None = None, only_finished: bool = False
) -> list[RunCurves]:
    """Return every run of the experiment that holds metrics, with its curves, oldest first.

    Args:
        at: where to read.
        metrics: names to read, None for all: each history is one request.
        only_finished: leave out runs that have not ended well.
    """
    runs = [run for run in list_runs(at) if PARENT_TAG not in run.tags]
    if only_finished:
        runs = [run for run in runs if run.status == "FINISHED"]
    with speaking(at.uri):
        return [RunCurves(run, _curve(at, run, metrics)) for run in runs if run.metrics]


def logged_points(at: Connection, run_id: str, names: Collection[str]) -> set[tuple[str, int]]:
    """Return the (metric, step) that a run holds already, of these metrics."""
    return {(name, m.step) for name in names for m in at.client.get_metric_history(run_id, name)}


def _pages(at: Connection) -> Iterator[Any]:
    token = None
    while True:
        page = at.client.search_runs(
            [at.experiment_id], max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def outcome_record(at: Connection, run: RunRecord, trial: Trial) -> dict[str, Any] | None:
    """Return how a trial ended, as its outcome file has it; None if its run did not end well, or lacks a report.

    The file is plain JSON, see `orchestrator.store.index`. A report's step is not kept in MLflow: it is worked out.
    """
    with speaking(at.uri):
        curve = Curve.from_json(_curve(at, run, None))
    if run.outcome not in ("finished", "diverged"):
        return None
    if run.outcome == "finished" and not set(trial.marks) <= set(curve.tokens.tolist()):
        return None
    record = trial.to_json()
    for name in PARTS:  # the source it ran with
        record[name]["source"] = run.tags.get(f"source.{name}", "")
    return {
        "key": trial.key,
        "outcome": run.outcome,
        "reason": run.tags.get("reason", ""),
        "exceeded": float(run.tags["exceeded"]) if "exceeded" in run.tags else None,
        "tokens": int(run.tags.get("ended_at_tokens", curve.tokens[-1] if len(curve) else 0)),
        "curve": curve.to_json(),
        "trial": record,
        "seconds": max(0.0, (run.ended or 0.0) - (run.started or run.ended or 0.0)),
    }


def _record(run: Any) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        key=run.data.tags.get(KEY_TAG),
        status=run.info.status,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        started=_seconds(run.info.start_time),
        ended=_seconds(run.info.end_time),
    )


def _curve(at: Connection, run: RunRecord, metrics: Collection[str] | None) -> dict[str, Any]:
    names = sorted(name for name in run.metrics if metrics is None or name in metrics)
    values: dict[str, dict[int, float]] = {}
    times: dict[int, int] = {}
    for name in names:
        history = sorted(at.client.get_metric_history(run.run_id, name), key=lambda m: (m.step, m.timestamp))
        values[name] = {m.step: _finite(m.value) for m in history}  # of two at one step the later counts
        times.update({m.step: m.timestamp for m in history})
    tokens = sorted(times)
    batch = int(run.params["batch_tokens"]) if run.params.get("batch_tokens", "").isdigit() else 0
    return {
        "tokens": tokens,
        "step": [t // batch if batch else 0 for t in tokens],
        "timestamp": [times[t] / 1000 for t in tokens],
        "metrics": {name: [column.get(t) for t in tokens] for name, column in values.items()},
    }


def _finite(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) > BEYOND_FLOAT else value


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
