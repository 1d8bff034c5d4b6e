"""LR schedules as functions of tokens. To add one: a frozen dataclass, and its name in SCHEDULES below."""

from __future__ import annotations

import json
from functools import lru_cache

from sweeps.schedules.base import LearningRate, Schedule, learning_rate
from sweeps.schedules.fixed_horizon import Cosine, Linear, OneCycle, Rex, Step
from sweeps.schedules.horizon_free import Constant, InverseSqrt, Power, Wsd, power_knee
from sweeps.schedules.table import Table
from sweeps.spec import Part, canonical_json

__all__ = ["SCHEDULES", "LearningRate", "Schedule", "learning_rate", "power_knee", "schedule_of"]

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "wsd": Wsd,
    "power": Power,
    "rex": Rex,
    "step": Step,
    "inverse_sqrt": InverseSqrt,
    "onecycle": OneCycle,
    "table": Table,
}


def schedule_of(part: Part) -> Schedule:
    """Return the schedule that a sweep or trial names."""
    return _made(part.name, canonical_json(part.fields))


@lru_cache(maxsize=64)
def _made(name: str, fields: str) -> Schedule:
    lists = json.loads(fields)
    return SCHEDULES[name](**{key: tuple(x) if isinstance(x, list) else x for key, x in lists.items()})
