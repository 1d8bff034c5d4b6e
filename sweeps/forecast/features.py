"""What a curve law reads from an LR path: the LR's sum, and its falls.

Warm-up conventions, by name; a law's parameters belong to one and mean nothing in another (science of arXiv:2503.12811:
parameters fitted with the ramp give R2 .04 to .42 without it):

    area       S1 holds the true LR of the warm-up; falls count after it only. Paper of the multi-power law, where a
               linear warm-up of W steps adds peak * W / 2.
    constant   warm-up counts as if the LR were already at its peak. Paper of the momentum law, arXiv:2408.11029.
    ramp       the rise of the warm-up is a fall of the opposite sign. Repository of the multi-power law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from sweeps.forecast.records import Floats, Ints, LrPath

# T steps, P points, K groups of falls

WARMUPS = ("area", "constant", "ramp")
MOST_GROUPS = 1500  # in a run; up to so many steps, falls are summed one by one
GROUP_STEPS = 16  # neighbouring steps, at most, whose falls are summed at their mean place


@dataclass(frozen=True, eq=False)
class Steps:
    """LR and fall of every step under a warm-up convention.

    Attributes:
        lr: [T], LR that counts at each step.
        fall: [T], LR of the step before less that of the step; 0 where the convention counts none.
        total: [T], LR summed up to and with each step (S1).
    """

    lr: Floats
    fall: Floats
    total: Floats


@dataclass(frozen=True, eq=False)
class Falls:
    """Falls of the LR in groups, and the points they are seen from.

    Attributes:
        total: [P], LR summed up to each point.
        lr: [K], LR after the fall.
        fall: [K], summed fall of the group.
        before: [K], LR summed up to the step before the fall.
        upto: [K], LR summed up to and with the fall's own step.
    """

    total: Floats
    lr: Floats
    fall: Floats
    before: Floats
    upto: Floats

    @property
    def since(self) -> Floats:
        """LR summed since each fall, its own step included (S_k), [P, K]; 0 for falls still to come."""
        return np.maximum(self.total[:, None] - self.before[None, :], 0.0)

    @property
    def after(self) -> Floats:
        """LR summed since each fall, its own step left out, [P, K]; 0 for falls still to come."""
        return np.maximum(self.total[:, None] - self.upto[None, :], 0.0)


def steps_of(path: LrPath, warmup: str) -> Steps:
    """Return LR, falls and sum of every step under a warm-up convention."""
    lr_T, warm = path.lr, path.warmup_steps
    if warmup == "constant" and warm:
        lr_T = np.concatenate([np.full(warm, lr_T[: warm + 1].max()), lr_T[warm:]])
    fall_T = -np.diff(lr_T, prepend=0.0 if warmup == "ramp" else lr_T[0])
    if warmup == "area" and warm:
        fall_T[:warm] = 0.0
        fall_T[warm] = max(fall_T[warm], 0.0)  # the last rise may end within the step after it
    return Steps(lr_T, fall_T, np.cumsum(lr_T))


def momentum_sum(fall_T: Floats, decay: float) -> Floats:
    """Return S2 at every step: the sum of m_i = decay * m_(i-1) + fall_i."""
    return np.cumsum(np.asarray(lfilter([1.0], [1.0, -decay], fall_T), dtype=np.float64))


def falls_of(path: LrPath, step_P: Ints, *, warmup: str, group_steps: int | None = None) -> Falls:
    """Return the falls of a path in groups, as seen from points.

    A group never crosses a point or a change of sign, and has one step in 1,500 at most, so that grouping loses less
    than 3e-5 nats on schedules of 24,000 steps (tested against the plain sum) and nothing on short ones.
    """
    steps = steps_of(path, warmup)
    where = np.flatnonzero(steps.fall)
    if len(where) and len(step_P):
        where = where[where < step_P[-1]]
    fall, sign = steps.fall[where], np.sign(steps.fall[where])
    bin_of = where // (group_steps or min(max(len(path) // MOST_GROUPS, 1), GROUP_STEPS))
    seen_from = np.searchsorted(step_P, where + 1)
    edge = (np.diff(bin_of) != 0) | (np.diff(sign) != 0) | (np.diff(seen_from) != 0)
    start_K = np.flatnonzero(np.concatenate([[True], edge])) if len(where) else np.empty(0, np.int64)

    def mean(values: Floats) -> Floats:
        if len(start_K) == 0:
            return np.empty(0)
        return np.asarray(np.add.reduceat(values * fall, start_K) / np.add.reduceat(fall, start_K), dtype=np.float64)

    upto, lr = steps.total[where], steps.lr[where]
    total = np.add.reduceat(fall, start_K) if len(start_K) else np.empty(0)
    return Falls(steps.total[step_P - 1], mean(lr), total, mean(upto - lr), mean(upto))
