"""How long a sweep takes on this machine, and what it lacks for it."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.build import AnyRun, build_run
from orchestrator.config.build import code_of, one_line
from orchestrator.config.checks import lacking
from sweeps.agenda import Outcome
from sweeps.errors import ConfigError
from sweeps.forks import shared_tokens
from sweeps.spec import SCRIPT, Json, Sweep, Trial
from workloads.base import DataError

MEASURE_SECONDS = 1.0
MEASURED_SHAPES = 5

Shape = tuple[int, int]  # parameters, batch in tokens


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast runs of one shape train: tokens/s between reports, and the seconds of a report."""

    tokens_per_second: float
    report_seconds: float = 0.0

    def seconds(self, trial: Trial) -> float:
        """Return the time of a trial alone; there is a report before its first step too."""
        return trial.tokens / self.tokens_per_second + (len(trial.marks) + 1) * self.report_seconds


def time_of(
    sweep: Sweep,
    left: Sequence[Trial],
    listed: Sequence[Trial],
    outcomes: Mapping[str, Outcome],
    *,
    with_time: bool,
    held_out: Sequence[Trial],
) -> dict[str, Json]:
    """Return the time that what is left takes, from the speed of ended trials, else of one second of training.

    Args:
        sweep: whose trials they are.
        left: trials still to run.
        listed: all trials of the plan.
        outcomes: of the sweep so far.
        with_time: whether to measure where nothing has ended yet.
        held_out: trials of the held-out check still to run.
    """
    rows = rows_at_once(sweep)
    speeds, origin = _known_speeds(outcomes), "as measured in its ended trials"
    if not speeds:
        if not with_time or sweep.variants[0].workload.name == SCRIPT:
            return {"seconds": None, "tokens_per_second": None, "rows_at_once": rows, "speed_from": None}
        speeds, origin = measured_speeds(sweep, listed), "measured now"
    work = [*left, *held_out]
    seconds = sum(_nearest(speeds, _shape(trial)).seconds(trial) for trial in work)
    total = sum(trial.tokens for trial in work)
    if sweep.forks and total:
        saved = shared_tokens(work)
        seconds, total = seconds * (1 - saved / total), total - saved
    typical = total / seconds if seconds else max(speed.tokens_per_second for speed in speeds.values())
    return {"seconds": seconds / rows, "tokens_per_second": typical, "rows_at_once": rows, "speed_from": origin}


def rows_at_once(sweep: Sweep) -> int:
    """Return how many rows this machine runs at once; a cluster may run more."""
    resources = sweep.resources
    fitting = [max(1, int((os.cpu_count() or 1) / resources.cpus))]
    if resources.gpus:
        fitting.append(max(1, int(gpus_here() / resources.gpus)))
    if resources.concurrent is not None:
        fitting.append(resources.concurrent)
    return min(fitting)


def gpus_here() -> int:
    """Return the CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count()


def _known_speeds(outcomes: Mapping[str, Outcome]) -> dict[Shape, Speed]:
    """Return the speeds of trials that ended, their reports included."""
    tokens: dict[Shape, int] = defaultdict(int)
    seconds: dict[Shape, float] = defaultdict(float)
    for outcome in outcomes.values():
        if outcome.seconds > 0 and outcome.trial:
            shape = _shape(Trial.from_json(outcome.trial))
            tokens[shape] += outcome.own_tokens
            seconds[shape] += outcome.seconds
    return {shape: Speed(tokens[shape] / seconds[shape]) for shape in tokens if tokens[shape]}


def measured_speeds(sweep: Sweep, trials: Sequence[Trial]) -> dict[Shape, Speed]:
    """Return the speeds of a few shapes, spread out, by training a trial of each for a second."""
    import torch

    if not sweep.resources.gpus:
        torch.set_num_threads(max(1, int(sweep.resources.cpus)))
    longest = {_shape(trial): trial for trial in sorted(trials, key=lambda trial: trial.tokens)}
    shapes = sorted(longest)
    resources = {**asdict(sweep.resources), "gpus": min(sweep.resources.gpus, gpus_here())}
    speeds = {}
    for shape in {*shapes[:: -(-len(shapes) // MEASURED_SHAPES)], shapes[-1]}:
        unreported = replace(longest[shape], marks=(longest[shape].tokens,), asides=(), absurd_factor=math.inf)
        with code_of(unreported.workload.name, "plan: training"):
            try:
                speeds[shape] = _speed_of(unreported, resources)
            except DataError as error:
                raise ConfigError(f"workload: {one_line(error)}") from error
    reports = {shape: speed.report_seconds for shape, speed in speeds.items()}
    for shape, speed in speeds.items():  # the first report of a process also warms it up
        least = min(seconds for other, seconds in reports.items() if other[0] == shape[0])
        speeds[shape] = replace(speed, report_seconds=least)
    return speeds


def _speed_of(trial: Trial, resources: Mapping[str, Json]) -> Speed:
    training = build_run(trial, resources=resources, folder=Path(os.devnull), cwd=Path.cwd())
    try:
        return _speed(training)
    finally:
        training.close()


def _speed(training: AnyRun) -> Speed:
    """Return the speed of a run; the first stretch warms it up."""
    began = time.monotonic()
    training.advance(deadline=began, clock=time.monotonic)  # no step: model and data made, one look at the held-out set
    report_seconds = time.monotonic() - began
    tokens_per_second = 1.0
    for seconds in (MEASURE_SECONDS / 5, MEASURE_SECONDS):
        first, began = training.tokens, time.monotonic()
        while training.status == "running" and time.monotonic() < began + seconds:
            training.advance(deadline=began + seconds, clock=time.monotonic)
        if training.tokens > first:
            tokens_per_second = (training.tokens - first) / (time.monotonic() - began)
    return Speed(tokens_per_second, report_seconds)


def _shape(trial: Trial) -> Shape:
    return trial.parameters, trial.batch_tokens


def _nearest(speeds: Mapping[Shape, Speed], wanted: Shape) -> Speed:
    """Return the speed of the shape nearest in logs."""
    return speeds[min(speeds, key=lambda s: sum(abs(math.log(a / b)) for a, b in zip(s, wanted, strict=True)))]


def warnings_of(sweep: Sweep) -> list[str]:
    """Return what this machine lacks for the sweep."""
    missing = lacking(sweep.resources)
    return [] if missing is None else [missing]
