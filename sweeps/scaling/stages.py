"""Steps two to four: L(N), L(N, S_min), and the critical batch from the hyperbola of steps and examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sweeps.errors import FitError
from sweeps.scaling.law import CriticalBatch, SizeLaw, StepLaw
from sweeps.scaling.runs import LEAST_SIZES, Floats, TrainingRun

FLAT = 0.02  # a run is flat where the last doubling of its steps takes off at most this share of the loss; a choice
SPAN = 4.0  # a range of sizes or steps must span this factor; a choice
LEAST_BATCHES = 5  # Part I, arXiv:2403.06563; published
RUNGS = 24  # target losses of the ladder
LEAST_RUNGS = 3
BEYOND = 3.0  # the critical batch must lie within this factor of the batches tried; a choice
SMOOTH = 4  # degree of the polynomial of ln loss in ln steps that a curve is read from


def size_law(runs: Sequence[TrainingRun]) -> SizeLaw:
    """Return L(N) by regression of ln final loss on ln N, of one converged run a size: step two.

    Raises:
        FitError: too few sizes, over too small a range, or runs not flat; `estimate` is the law all the same, or None.
    """
    sizes = {run.parameters for run in runs}
    if len(sizes) < LEAST_SIZES:
        raise FitError(f"L(N): needs {LEAST_SIZES} model sizes or more, got {len(sizes)}")
    log_n = np.log([run.parameters for run in runs])
    final = np.array([_level(run, run.steps[-1]) for run in runs])
    slope, intercept = np.polynomial.Polynomial.fit(log_n, np.log(final), 1).convert().coef[::-1]
    found = SizeLaw(-float(slope), math.exp(-float(intercept) / float(slope))) if slope < 0.0 else None
    if found is None:
        raise FitError("L(N): the final loss does not fall with model size")
    if max(sizes) < SPAN * min(sizes):
        raise FitError(f"L(N): sizes must span a factor {SPAN:g}, got {max(sizes) / min(sizes):.3g}", estimate=found)
    falling = [
        run.key for run, end in zip(runs, final, strict=True) if _level(run, run.steps[-1] / 2.0) > (1.0 + FLAT) * end
    ]
    if falling:
        names = ", ".join(falling[:3])
        raise FitError(
            f"L(N): the last doubling of steps still takes off over {100 * FLAT:g} % in {names}", estimate=found
        )
    return found


def step_law(runs: Sequence[TrainingRun], sizes: SizeLaw) -> StepLaw:
    """Return L(N, S_min) through curves at batches far above the critical one: step three.

    ln(L(S) - L(N, inf)) is regressed on ln S, pooled over sizes; a point weighs as much as it lies above its end, and
    one that lies below says nothing.

    Raises:
        FitError: curves over too few steps, or none above their ends.
    """
    log_s, log_above, weight = [], [], []
    for run in runs:
        floor = sizes.converged(run.parameters)
        above = run.loss - floor
        kept = above > 0.1 * float(above.max())
        if run.loss.min() < floor * (1.0 - FLAT) or np.count_nonzero(kept) < LEAST_RUNGS:
            continue
        log_s.append(np.log(run.steps[kept]))
        log_above.append(np.log(above[kept]))
        weight.append(above[kept] / run.loss[kept])
    if not log_s:
        raise FitError("L(N, S_min): no curve stays above the loss that L(N) says it ends at", estimate=sizes)
    x, y, w = (np.concatenate(part) for part in (log_s, log_above, weight))
    if np.ptp(x) < math.log(SPAN):
        raise FitError(f"L(N, S_min): steps must span a factor {SPAN:g}, got {math.exp(np.ptp(x)):.3g}", estimate=sizes)
    line = np.polynomial.Polynomial.fit(x, y, 1, w=w).convert().coef
    if line[1] >= 0.0:
        raise FitError("L(N, S_min): the loss does not fall with steps", estimate=sizes)
    return StepLaw(sizes, -float(line[1]), math.exp(-float(line[0]) / float(line[1])))


def critical_batch(runs: Sequence[TrainingRun]) -> CriticalBatch:
    """Return B_crit(L) from runs of one size at several batches: step four.

    On a ladder of target losses the steps S that each batch needs lie on (S/S_min - 1)(E/E_min - 1) = 1, E = B S, which
    is S = S_min + E_min / B: a straight line in 1/B, fitted with relative errors. B_crit = E_min / S_min, and
    ln B_crit is regressed on ln L.

    Raises:
        FitError: under LEAST_BATCHES batches, no common range of losses, or batches that do not reach the critical
            one; `estimate` is the law all the same, or None.
    """
    batches = {run.batch_tokens for run in runs}
    if len(batches) < LEAST_BATCHES:
        raise FitError(f"B_crit: needs {LEAST_BATCHES} batches of one size or more, got {len(batches)}")
    curves = [_Curve(run) for run in runs]
    low, high = max(c.lowest for c in curves), min(c.highest for c in curves)
    if not low < high:
        raise FitError("B_crit: the runs have no loss in common: train the small batches longer")
    log_l, log_b = [], []
    inverse = np.array([1.0 / run.batch_tokens for run in runs])
    for target in np.geomspace(low, high, RUNGS + 2)[1:-1]:
        steps = np.array([c.steps_to(float(target)) for c in curves])
        design = np.column_stack((np.ones(len(runs)), inverse)) / steps[:, None]
        s_min, e_min = np.linalg.lstsq(design, np.ones(len(runs)), rcond=None)[0]
        if s_min > 0.0 and e_min > 0.0:
            log_l.append(math.log(target))
            log_b.append(math.log(e_min / s_min))
    if len(log_l) < LEAST_RUNGS:
        raise FitError("B_crit: steps and examples to the same loss do not trade off as a hyperbola")
    slope = float(np.polynomial.Polynomial.fit(log_l, log_b, 1).convert().coef[1])
    middle = float(np.mean(log_b))
    if slope >= 0.0:
        raise FitError("B_crit: the critical batch does not grow as the loss falls", estimate=math.exp(middle))
    found = CriticalBatch(-1.0 / slope, math.exp(middle - slope * float(np.mean(log_l))))
    if not min(batches) / BEYOND < math.exp(middle) < max(batches) * BEYOND:
        raise FitError(
            f"B_crit: about {math.exp(middle):,.0f} tokens, far from the batches tried ({min(batches):,.0f} to "
            f"{max(batches):,.0f})",
            estimate=found,
        )
    return found


class _Curve:
    """A curve read through a polynomial of ln loss in ln steps."""

    def __init__(self, run: TrainingRun) -> None:
        log_s = np.log(run.steps)
        smooth = np.polynomial.Polynomial.fit(log_s, np.log(run.loss), min(SMOOTH, len(log_s) - 2))
        self._log_s = np.linspace(log_s[0], log_s[-1], 400)
        self._log_l: Floats = np.minimum.accumulate(smooth(self._log_s))

    @property
    def lowest(self) -> float:
        """The loss at the end."""
        return math.exp(float(self._log_l[-1]))

    @property
    def highest(self) -> float:
        """The loss at the start."""
        return math.exp(float(self._log_l[0]))

    def steps_to(self, loss: float) -> float:
        """Return the steps to a loss between `lowest` and `highest`."""
        return math.exp(float(np.interp(-math.log(loss), -self._log_l, self._log_s)))


def _level(run: TrainingRun, steps: float) -> float:
    """Return the loss about this many steps: the mean over a factor 1.5 below, of three points at least."""
    near = np.flatnonzero((run.steps <= steps) & (run.steps > steps / 1.5))
    if len(near) < LEAST_RUNGS:
        near = np.argsort(np.abs(np.log(run.steps / steps)))[:LEAST_RUNGS]
    return float(np.mean(run.loss[near]))
