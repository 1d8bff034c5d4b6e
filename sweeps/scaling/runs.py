"""The runs that scaling laws are fitted to, and the first step: what may be used of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError, FitError

Floats = NDArray[np.float64]

LEAST_POINTS = 8  # of a curve after its warm-up; a choice
LEAST_SIZES = 3  # of models; a choice


@dataclass(frozen=True)
class TrainingRun:
    """The held-out loss of one run, on data not repeated, at an LR tuned for its size.

    Attributes:
        parameters: N without embeddings.
        batch_tokens: of each step.
        steps: ascending, shape [points].
        loss: in nats, held out, shape [points].
        warmup_steps: the points up to there are not used.
    """

    key: str
    parameters: float
    batch_tokens: float
    steps: Floats
    loss: Floats
    warmup_steps: float = 0.0


def usable(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Return the runs without their warm-up, by size, batch and key: step one.

    Raises:
        ConfigError: a run whose steps do not ascend or whose numbers are not positive.
        FitError: a run of too few points; `estimate` is the runs that may be used.
    """
    kept: list[TrainingRun] = []
    short: list[TrainingRun] = []
    for run in sorted(runs, key=lambda r: (r.parameters, r.batch_tokens, r.key)):
        steps, loss = np.asarray(run.steps, dtype=np.float64), np.asarray(run.loss, dtype=np.float64)
        if steps.shape != loss.shape or steps.ndim != 1:
            raise ConfigError(f"run {run.key}: steps and loss must be of one length, got {steps.shape}, {loss.shape}")
        good = np.isfinite(loss).all() and (loss > 0.0).all() and (steps > 0.0).all() and (np.diff(steps) > 0.0).all()
        if not (good and 0.0 < run.parameters < math.inf and 0.0 < run.batch_tokens < math.inf):
            raise ConfigError(f"run {run.key}: steps must ascend, and all numbers be above 0 and finite")
        after = steps > run.warmup_steps
        trimmed = replace(run, steps=steps[after], loss=loss[after])
        (kept if len(trimmed.steps) >= LEAST_POINTS else short).append(trimmed)
    if short:
        names = ", ".join(run.key for run in short[:3])
        raise FitError(f"scaling: under {LEAST_POINTS} points after warm-up in {names}", estimate=kept)
    return kept


def largest_batches(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Return of each size the run of the largest batch, the longest of them."""
    best: dict[float, TrainingRun] = {}
    for run in runs:
        here = best.get(run.parameters)
        if here is None or (run.batch_tokens, run.steps[-1]) > (here.batch_tokens, here.steps[-1]):
            best[run.parameters] = run
    return [best[size] for size in sorted(best)]


def batch_study(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Return the runs of the size that was trained at the most batches, the smallest of those."""
    sizes = sorted({run.parameters for run in runs})
    size = max(sizes, key=lambda n: len({r.batch_tokens for r in runs if r.parameters == n}))
    return [run for run in runs if run.parameters == size]
