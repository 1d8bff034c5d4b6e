"""The sections of a sweep, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sweeps.spec.canonical import Json, six_digits


@dataclass(frozen=True, slots=True)
class Range:
    """A continuous axis: [low, high], log or linear, with the number of grid points on it."""

    low: float
    high: float
    scale: str  # "log" or "linear"
    points: int | None = None

    def grid(self) -> tuple[float, ...]:
        """Return `points` values from low to high, both included."""
        if self.points is None:
            raise ValueError("points: a grid needs the number of points of its range")
        space = np.geomspace if self.scale == "log" else np.linspace
        return tuple(six_digits(x) for x in space(self.low, self.high, self.points))


@dataclass(frozen=True, slots=True)
class Seeds:
    """Named repeats: every cell runs the first; the others only where tokens <= up_to_tokens (None: everywhere)."""

    values: tuple[int, ...] = (0,)
    up_to_tokens: int | None = None

    def of(self, tokens: int) -> tuple[int, ...]:
        """Return the seeds of a cell."""
        if self.up_to_tokens is None or tokens <= self.up_to_tokens:
            return self.values
        return self.values[:1]


@dataclass(frozen=True, slots=True)
class Axes:
    """What varies. Exactly one of `tokens` and `steps` is given; `steps` means tokens = steps x batch."""

    lr: tuple[float, ...] | Range
    batch_tokens: tuple[int, ...]
    tokens: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    seeds: Seeds = field(default_factory=Seeds)
    extra: Mapping[str, tuple[Json, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Search:
    """How the LRs of a cell are chosen.

    Attributes:
        name: "grid"; an Optuna sampler asked per cell: "random", "qmc", "tpe", "gp"; or "law": of all cells together,
            the trials that tell most of the law.
        grow: grid only: at most this many points are added beyond each edge where the best LR sits on it.
        trials: LRs asked per cell (not for grid); of "law", trials of one law in all.
        wave: LRs asked at once per cell (not for grid); of "law", trials at once in all.
        until: of "law": it ends once lr* at the target is known within this factor either way.
        from_law: of "law": a published law whose answers are among the first trials.
        seed: of the sampler.
    """

    name: str = "grid"
    grow: int = 2
    trials: int = 12
    wave: int = 4
    seed: int = 0
    until: float | None = None
    from_law: str | None = None


JOINT = "joint"  # the estimator that fits all cells at once: the joint surrogate


@dataclass(frozen=True, slots=True)
class LawSpec:
    """What law to fit: `variables` among batch_tokens, tokens, parameters; factors by which reach exceeds the box.

    `estimator` is one of `sweeps.optima.optimum.ESTIMATORS`, each cell by itself, or JOINT.
    """

    variables: tuple[str, ...] = ("batch_tokens", "tokens")
    estimator: str = "asymmetric"
    convention: str = "batch fixed"
    reach: Mapping[str, float] = field(default_factory=dict)
    profile_over: tuple[str, ...] = ()
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Validation:
    """The held-out check: lr* and its neighbours (x factor, / factor) at one target, on paired seeds."""

    tokens: int
    batch_tokens: int
    seeds: int = 3
    factor: float = 2.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Ceilings; None is none. Growth and validation stay within them. `seconds` are of one command, not of all."""

    trials: int | None = None
    tokens: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What one row takes, and where.

    Attributes:
        cpus, gpus: of one row.
        concurrent: rows at once; None: as many as fit.
        micro_batch_tokens: tokens of one forward pass; None: the whole batch. Never part of a trial's identity.
        checkpoint_seconds: time between checkpoints of a run.
        report_seconds: time between two reports of a row to the driver; checkpoints fall on them.
        retries: times a crashed row is run again.
        address: of a Ray cluster ("auto"); None: a cluster of this machine alone.
        forks: whether trials that begin alike share a trunk (`sweeps.forks`); each curve is the same either way.
        lockstep: runs of one shape that a row trains as one program; None: 16 where that pays, on a CPU, else 1.
        compile: whether the training step is compiled (torch.compile); values within float noise.
        cuda_graph: whether each whole step is replayed as one CUDA graph: several times faster for small models.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    concurrent: int | None = None
    micro_batch_tokens: int | None = None
    checkpoint_seconds: float = 20.0
    report_seconds: float = 1.0
    retries: int = 2
    address: str | None = None
    forks: bool = True
    lockstep: int | None = None
    compile: bool = False
    cuda_graph: bool = False


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where curves go: an MLflow URI and experiment name; None: the default store, the sweep's name."""

    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class Reports:
    """When a run reports: `per_octave` marks for each doubling of tokens, from `first_fraction` of the horizon on."""

    per_octave: int = 2
    first_fraction: float = 1 / 64
