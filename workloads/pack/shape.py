"""Which runs can be one pack: whether a run packs at all, and what must be equal."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from typing import Any

from workloads.base import Workload
from workloads.run import RunSpec

EXECUTION = ("batch_tokens", "micro_batch_tokens", "precision", "device", "compile", "cuda_graph")


def why_not(spec: RunSpec) -> str | None:
    """Return why a run cannot be a member of a pack, in words; None where it can."""
    workload: object = spec.workload  # where a row is planned it may be a Script
    if not isinstance(workload, Workload):
        return f"{type(workload).__name__} runs in a process of its own: there is no model here to stack"
    if spec.world > 1:
        return f"a run on several ranks fills its devices by itself, got world={spec.world}"
    return None


def shape_key(spec: RunSpec) -> Hashable:
    """Return what is equal in all runs of a pack: the shapes, and every step but for the numbers in it.

    LR, schedule, seed, horizon, marks, weight decay, betas, epsilons, momentum and clipping norm may differ; of the
    workload only what its first model alone depends on (INITIAL) and what no curve depends on (OUTSIDE).
    """
    return (_workload(spec.workload), _optimizer(spec.optimizer), *(getattr(spec, name) for name in EXECUTION))


def _workload(workload: Any) -> Hashable:
    free = {*getattr(type(workload), "INITIAL", ()), *getattr(type(workload), "OUTSIDE", ())}
    if not is_dataclass(workload):
        return repr(workload)
    values = tuple((f.name, repr(getattr(workload, f.name))) for f in fields(workload) if f.name not in free)
    return type(workload), values


def _optimizer(optimizer: Any) -> Hashable:
    """Return an optimizer's kind: its class, whether it clips and has momentum, and Nesterov's form."""
    return (
        type(optimizer),
        getattr(optimizer, "clip_norm", None) is None,
        getattr(optimizer, "momentum", 0.0) == 0.0,
        getattr(optimizer, "nesterov", False),
    )


def differences(first: RunSpec, other: RunSpec) -> str:
    """Return the names of what keeps two runs from being one pack, with both values."""
    mine, theirs = shape_key(first), shape_key(other)
    assert isinstance(mine, tuple)
    assert isinstance(theirs, tuple)
    named = zip(("workload", "optimizer", *EXECUTION), mine, theirs, strict=True)
    return ", ".join(f"{name} ({_told(first, name)} and {_told(other, name)})" for name, a, b in named if a != b)


def _told(spec: RunSpec, name: str) -> str:
    return repr(getattr(spec, name))
