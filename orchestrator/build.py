"""From a trial's record to a run that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from orchestrator.config.build import object_of
from orchestrator.store import SCRIPT_FOLDER
from sweeps.agenda import Target
from sweeps.curves import Curve
from sweeps.schedules import SCHEDULES, learning_rate
from sweeps.spec import Part, Trial
from workloads import WORKLOADS
from workloads.base import JsonDict, Point, stable_seed
from workloads.optim import OPTIMIZERS
from workloads.run import Run, RunSpec
from workloads.script import Script, ScriptRun


class AnyRun(Protocol):
    """A run as a row sees it, whoever wrote its training loop."""

    @property
    def status(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def exceeded(self) -> float | None: ...

    @property
    def points(self) -> list[Point]: ...

    @property
    def tokens(self) -> int: ...

    def advance(self, *, deadline: float | None, clock: Callable[[], float]) -> Point | None: ...

    def state(self) -> tuple[dict[str, Tensor], JsonDict]: ...

    def load(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None: ...

    def close(self) -> None: ...


def build_run(trial: Trial, *, resources: Mapping[str, Any], folder: Path, cwd: Path) -> AnyRun:
    """Return the run of a trial, on the device its row has.

    All LRs and token counts of a (seed, batch) share initialisation and data order; batches do not, so that cells at
    different batches are independent measurements of the law.

    Args:
        trial: what to train.
        resources: the fields of spec.Resources.
        folder: of the trial in the store; a user's own script keeps its checkpoints there.
        cwd: where the sweep was started: a class named by its path is found from there.
    """
    spec = spec_of(trial, resources=resources, cwd=cwd)
    if isinstance(spec.workload, Script):
        schedule_fields = {"name": trial.schedule.name, **trial.schedule.fields}
        return ScriptRun(spec, folder=folder / SCRIPT_FOLDER, schedule=schedule_fields)
    return Run(spec)


def spec_of(trial: Trial, *, resources: Mapping[str, Any], cwd: Path) -> RunSpec:
    """Return what the run of a trial is, on the device its row has."""
    schedule = object_of(SCHEDULES, trial.schedule, "schedule")
    return RunSpec(
        workload=object_of(WORKLOADS, trial.workload, "workload", cwd=cwd),
        optimizer=object_of(OPTIMIZERS, trial.optimizer, "optimizer"),
        lr_at=learning_rate(schedule, peak=trial.lr, batch_tokens=trial.batch_tokens, total=trial.tokens),
        peak_lr=trial.lr,
        batch_tokens=trial.batch_tokens,
        tokens=trial.tokens,
        marks=trial.marks,
        seed=stable_seed("run", trial.seed, trial.batch_tokens),
        precision=trial.precision,
        asides=frozenset(trial.asides),
        trunk=trial.trunk,
        absurd_factor=trial.absurd_factor,
        micro_batch_tokens=resources["micro_batch_tokens"],
        device="cuda" if resources["gpus"] else "cpu",
        compile=resources["compile"],
        cuda_graph=bool(resources["gpus"]) and resources["cuda_graph"],
    )


def target_of(workload: Part, curve: Curve, *, cwd: Path) -> Target | None:
    """Return the target of a workload and the tokens at which a curve first reached it; None where it has no target.

    It is told from the curve, as a target may change and trains nothing anew.
    """
    made = object_of(WORKLOADS, workload, "workload", cwd=cwd)
    value = None if isinstance(made, Script) else made.validation_target_value
    if value is None:
        return None
    metric = f"validation/{made.target_metric_name}"
    reached = None
    for i, tokens in enumerate(curve.tokens.tolist()):
        seen = {name: float(column[i]) for name, column in curve.metrics.items() if column[i] == column[i]}
        if metric in seen and made.has_reached_validation_target(seen):
            reached = int(tokens)
            break
    return Target(metric, float(value), reached)
