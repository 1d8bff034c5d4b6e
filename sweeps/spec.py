"""The records of a sweep, and the content hash that is a trial's identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

Json = Any  # None, bool, int, float, str, or lists and dicts of them: the edge where records meet files

OUTCOMES = ("finished", "diverged", "stopped", "failed")


def canonical_json(value: Json) -> str:
    """Return the one JSON text of a value: sorted names, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_key(value: Json) -> str:
    """Return the SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def six_digits(value: float) -> float:
    """Return the value at six significant digits: grids then hash the same on every machine."""
    return float(f"{value:.6g}")


@dataclass(frozen=True, slots=True)
class Part:
    """A named choice with all its fields resolved: a workload, an optimizer or a schedule.

    `version` is the class's own declared version: it goes up when its curves change. `source` is a hash of its
    source code, not part of the identity: a mismatch only warns.
    """

    name: str
    version: int = 1
    fields: Mapping[str, Json] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def identity(self) -> Json:
        """Return what can change a curve."""
        return {"name": self.name, "version": self.version, "fields": dict(self.fields)}

    def to_json(self) -> Json:
        """Return all of it as plain JSON."""
        return {**self.identity(), "source": self.source}


@dataclass(frozen=True, slots=True)
class Size:
    """What planning knows of a workload: numbers only (see `workloads.base.Facts`).

    `parameters` is N, without embeddings and output head.
    """

    parameters: int
    total_parameters: int
    flops_per_token: float
    tokens_per_example: int
    unit: str
    train_tokens: int | None
    data_fingerprint: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination of the further axes: a workload, an optimizer, and the values that make it."""

    workload: Part
    optimizer: Part
    size: Size
    values: Mapping[str, Json] = field(default_factory=dict)  # dotted axis name -> value


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
        name: "grid", or an Optuna sampler asked per cell: "random", "qmc", "tpe", "gp".
        grow: grid only: at most this many points are added beyond each edge where the best LR sits on it.
        trials: LRs asked per cell (not for grid).
        wave: LRs asked at once per cell (not for grid).
        seed: of the sampler.
    """

    name: str = "grid"
    grow: int = 2
    trials: int = 12
    wave: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LawSpec:
    """What law to fit: `variables` among batch_tokens, tokens, parameters; factors by which reach exceeds the box."""

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
    """Ceilings; None is none. Growth and validation stay within them."""

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
        compile: whether the training step is compiled (torch.compile); values within float noise.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    concurrent: int | None = None
    micro_batch_tokens: int | None = None
    checkpoint_seconds: float = 20.0
    report_seconds: float = 1.0
    retries: int = 2
    address: str | None = None
    compile: bool = False


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where curves go: an MLflow URI and experiment name; None: the default store, the sweep's name."""

    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True)
class Trial:
    """One training run to one horizon: everything that can change its curve, and nothing else.

    Under an open-ended schedule (no cooldown) the curve does not depend on the horizon, so `tokens` is not part of
    the identity: a longer horizon goes on from where the shorter one ended.

    Attributes:
        tokens: the horizon, whole batches.
        marks: absolute token counts at which the run reports, ascending, the last one `tokens`.
        precision: "float32" or "bfloat16" (autocast).
    """

    workload: Part
    optimizer: Part
    schedule: Part
    lr: float
    batch_tokens: int
    tokens: int
    seed: int
    marks: tuple[int, ...]
    data_fingerprint: str
    precision: str = "float32"
    open_ended: bool = False
    ladder: Json = None
    parameters: int = field(default=0, compare=False)
    flops_per_token: float = field(default=0.0, compare=False)

    def identity(self) -> Json:
        """Return what can change the curve, as plain JSON."""
        return {
            "workload": self.workload.identity(),
            "optimizer": self.optimizer.identity(),
            "schedule": self.schedule.identity(),
            "lr": self.lr,
            "batch_tokens": self.batch_tokens,
            "tokens": None if self.open_ended else self.tokens,
            "seed": self.seed,
            "reports": self.ladder,
            "data": self.data_fingerprint,
            "precision": self.precision,
        }

    def to_json(self) -> Json:
        """Return all of it as plain JSON; `from_json` is its inverse."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "workload": self.workload.to_json(),
            "optimizer": self.optimizer.to_json(),
            "schedule": self.schedule.to_json(),
            "marks": list(self.marks),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Trial:
        """Return the trial of a record made by `to_json`."""
        parts = {name: Part(**record[name]) for name in ("workload", "optimizer", "schedule")}
        return cls(**{**record, **parts, "marks": tuple(record["marks"])})

    @cached_property
    def key(self) -> str:
        """The content hash, 64 hex digits."""
        return content_key(self.identity())

    @property
    def short_key(self) -> str:
        """The first twelve digits, for people."""
        return self.key[:12]


@dataclass(frozen=True)
class Cell:
    """All trials of one (variant, batch, tokens): the LRs and seeds at which one optimum is sought."""

    variant: Variant
    batch_tokens: int
    tokens: int
    seeds: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """N of the variant, without embeddings."""
        return self.variant.size.parameters

    @cached_property
    def key(self) -> str:
        """A name that is the same in every process: the content hash of what makes the cell."""
        return content_key(
            [
                self.variant.workload.identity(),
                self.variant.optimizer.identity(),
                self.batch_tokens,
                self.tokens,
            ]
        )

    @property
    def label(self) -> str:
        """What a person reads on a figure."""
        extra = "".join(f", {k.split('.')[-1]} {v}" for k, v in self.variant.values.items())
        return f"batch {self.batch_tokens:,}, tokens {self.tokens:,}{extra}"


@dataclass(frozen=True, slots=True)
class Reports:
    """When a run reports: `per_octave` marks for each doubling of tokens, from `first_fraction` of the horizon on."""

    per_octave: int = 2
    first_fraction: float = 1 / 64


@dataclass(frozen=True)
class Sweep:
    """What a user asks for, checked and resolved."""

    name: str
    variants: tuple[Variant, ...]
    schedule: Part
    axes: Axes
    search: Search = field(default_factory=Search)
    stopping: tuple[Part, ...] = ()
    law: LawSpec = field(default_factory=LawSpec)
    validate: Validation | None = None
    budget: Budget = field(default_factory=Budget)
    resources: Resources = field(default_factory=Resources)
    tracking: Tracking = field(default_factory=Tracking)
    reports: Reports = field(default_factory=Reports)
    precision: str = "float32"

    @property
    def experiment(self) -> str:
        """The MLflow experiment, and the folder in the checkpoint store."""
        return self.tracking.experiment or self.name

    def recipe(self) -> Json:
        """Return what a law is a law of: the recipe without its axes."""
        first = self.variants[0]
        return {
            "workload": first.workload.identity(),
            "optimizer": first.optimizer.identity(),
            "schedule": self.schedule.identity(),
            "precision": self.precision,
            "data": first.size.data_fingerprint,
        }

    @cached_property
    def key(self) -> str:
        """The content hash of the recipe and the law asked for: it seeds the bootstrap."""
        return content_key(
            {
                "name": self.name,
                "recipe": self.recipe(),
                "law": [list(self.law.variables), self.law.estimator, self.law.convention],
            }
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell learns from one trial: the loss at its horizon, or that there is none.

    `loss` is None for a diverged or stopped trial; `outcome` is one of OUTCOMES.
    """

    key: str
    lr: float
    seed: int
    loss: float | None
    outcome: str

    def __post_init__(self) -> None:
        if self.loss is not None and not math.isfinite(self.loss):
            raise ValueError(f"loss: must be finite or None, got {self.loss}")
