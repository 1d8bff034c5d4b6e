"""LR schedules as functions of tokens. To add one: a frozen dataclass, and its name in SCHEDULES below."""

from __future__ import annotations

from sweeps.schedules.base import LearningRate, Schedule, learning_rate
from sweeps.schedules.fixed_horizon import Cosine, Linear, OneCycle, Rex, Step
from sweeps.schedules.horizon_free import Constant, InverseSqrt, Power, Wsd, power_knee
from sweeps.schedules.table import Table

__all__ = ["SCHEDULES", "LearningRate", "Schedule", "learning_rate", "power_knee"]

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
