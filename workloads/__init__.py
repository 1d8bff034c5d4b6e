"""One training run: models, data, optimizers (torch only)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads.base import Workload
    from workloads.script import Script

    WORKLOADS: dict[str, type[Workload] | type[Script]]  # Script is a workload to a planner alone


def __getattr__(name: str) -> object:
    """Return the table of workloads, made when it is asked for: a user's script imports `workloads.script` alone."""
    if name != "WORKLOADS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workloads.gpt import Gpt
    from workloads.image import Image
    from workloads.quadratic import Quadratic
    from workloads.script import Script
    from workloads.teacher import Teacher

    globals()["WORKLOADS"] = {
        "gpt": Gpt,
        "image": Image,
        "quadratic": Quadratic,
        "script": Script,
        "teacher": Teacher,
    }
    return globals()["WORKLOADS"]
