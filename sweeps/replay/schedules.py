"""The LR of every step of recorded curves: from a file of schedules, or from the LR recorded beside the losses.

A file of schedules (YAML; a step is that of the curve's own `step` column):

    warmup: {steps: 2160, lr: 3.0e-4}      # linear from 0, reached at that step; for every curve without its own
    curves:
      constant: [{until: 24000}]           # from the warm-up's end on the LR is held
      stepped: [{until: 8000}, {until: 16000, lr: 9.0e-5}]                              # jumps at step 8000
      cooled: [{until: 20000}, {until: 24000, to: 3.0e-5, shape: linear}]               # descends to 3e-5 at 24000
      other: {warmup: {steps: 100, lr: 1.0e-3}, phases: [{until: 5000, to: 1.0e-4, shape: cosine}]}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from sweeps.errors import ConfigError, unknown_name
from sweeps.forecast.records import MOST_STEPS, Floats, Ints, LrPath
from sweeps.schedules.base import COOLDOWNS, descend
from sweeps.spec import Json

# T steps, P points


def scheduled_paths(tree: Json, *, place: str) -> dict[str, LrPath]:
    """Return the path of every curve that a file of schedules names. Raises ConfigError."""
    top = _mapping(tree, place, {"warmup", "curves"})
    curves = top.get("curves")
    if not isinstance(curves, Mapping) or not curves:
        raise ConfigError(f"{place}: curves: must be a mapping of names to phases, got {curves!r}")
    paths = {}
    for name, value in curves.items():
        where = f"{place}: curves.{name}"
        own = {"phases": value} if isinstance(value, list) else _mapping(value, where, {"warmup", "phases"})
        paths[str(name)] = _path(own.get("warmup", top.get("warmup")), own.get("phases"), where)
    return paths


def _path(warmup: Json, phases: Json, where: str) -> LrPath:
    warm = _mapping(warmup, f"{where}.warmup", {"steps", "lr"})
    steps = _count(warm.get("steps"), f"{where}.warmup.steps", above=-1)
    lr = _positive(warm.get("lr"), f"{where}.warmup.lr")
    if not isinstance(phases, list) or not phases:
        raise ConfigError(f"{where}: must be a list of phases, got {phases!r}")
    done = max(steps - 1, 0)
    parts = [lr * np.arange(1, done + 1) / max(steps, 1)]
    for number, phase in enumerate(phases):
        at = f"{where}[{number}]"
        node = _mapping(phase, at, {"until", "lr", "to", "shape"})
        last = number == len(phases) - 1
        # a phase has the steps before `until`; the last one that step too
        end = _count(node.get("until"), f"{at}.until", above=done) - (0 if last else 1)
        if "lr" in node:
            lr = _positive(node["lr"], f"{at}.lr")
        step_T = np.arange(done + 1, end + 1)
        begin = done + 1 if number else steps
        parts.append(_phase(node, step_T, start=lr, begin=begin, at=at))
        if "to" in node:
            lr = _positive(node["to"], f"{at}.to")
        done = end
    return LrPath(np.concatenate(parts), min(steps, done - 1))


def _phase(node: Mapping[str, Json], step_T: Ints, *, start: float, begin: int, at: str) -> Floats:
    if "to" not in node:
        if "shape" in node:
            raise ConfigError(f"{at}.shape: needs `to`, the LR it descends to")
        return np.full(len(step_T), start)
    low, shape = _positive(node["to"], f"{at}.to"), str(node.get("shape", "linear"))
    if shape not in COOLDOWNS:
        raise unknown_name(f"{at}.shape", shape, COOLDOWNS)
    if low > start:
        raise ConfigError(f"{at}.to: must be at most the LR before it ({start:g}), got {low:g}")
    length = max(int(node["until"]) - begin, 1)
    shares = np.clip((step_T - begin) / length, 0.0, 1.0)
    return np.array([start * descend(shape, float(t), start=1.0, floor=low / start) for t in shares])


def recorded_path(step_P: Ints, lr_P: Floats, *, warmup_steps: int | None) -> LrPath:
    """Return a path drawn through the LRs recorded at some steps: straight between them.

    Before the first of them it rises from 0 over `warmup_steps` and is then held. With None the warm-up is read off
    the rows (`warmup_of`).
    """
    warm = warmup_of(step_P, lr_P) if warmup_steps is None else warmup_steps
    steps = np.arange(1, int(step_P[-1]) + 1)
    corner = min(warm, int(step_P[0]))
    if corner:
        step_P, lr_P = np.concatenate([[0, corner], step_P]), np.concatenate([[0.0, lr_P[0]], lr_P])
    return LrPath(np.interp(steps, step_P, lr_P), min(warm, len(steps) - 1))


def warmup_of(step_P: Ints, lr_P: Floats) -> int:
    """Return the steps of warm-up that rows of a log show.

    Up to where the LR stops rising, if it rises from the first row on; else up to the first row, if rows are missing
    before it (it comes later than two of their usual distances); else none.
    """
    rising = np.diff(lr_P) > 0
    first = int(np.argmin(rising)) if not rising.all() else len(rising)
    if first > 0:
        return int(step_P[first])
    usual = float(np.median(np.diff(step_P))) if len(step_P) > 1 else np.inf
    return int(step_P[0]) if step_P[0] > 2 * usual else 0


def disagreement(path: LrPath, step_P: Ints, lr_P: Floats) -> tuple[int, float] | None:
    """Return the step at which a recorded LR is furthest from the path's, and by what share; None without points."""
    if len(step_P) == 0:
        return None
    share_P = np.abs(path.lr[step_P - 1] / lr_P - 1)
    worst = int(np.argmax(share_P))
    return int(step_P[worst]), float(share_P[worst])


def _mapping(node: Json, where: str, known: set[str]) -> Mapping[str, Json]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: must be a mapping with {', '.join(sorted(known))}, got {node!r}")
    for name in node:
        if name not in known:
            raise unknown_name(where, name, known, "field")
    return node


def _count(value: Json, where: str, *, above: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= above:
        raise ConfigError(f"{where}: must be a whole number above {above}, got {value!r}")
    if value > MOST_STEPS:
        raise ConfigError(f"{where}: must be at most {MOST_STEPS:,} steps, got {value:.4g}")
    return value


def _positive(value: Json, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{where}: must be above 0 and finite, got {value!r}")
    return float(value)
