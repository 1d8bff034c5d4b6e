"""The records of a sweep, and what makes a trial's identity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property

from sweeps.spec.canonical import Json, canonical_json, content_key, six_digits
from sweeps.spec.part import Part
from sweeps.spec.sections import (
    JOINT,
    Axes,
    Budget,
    LawSpec,
    Range,
    Reports,
    Resources,
    Search,
    Seeds,
    Tracking,
    Validation,
)

__all__ = [
    "ABSURD_FACTOR",
    "JOINT",
    "OUTCOMES",
    "SCRIPT",
    "Axes",
    "Budget",
    "Cell",
    "Json",
    "LawSpec",
    "Part",
    "Range",
    "Reports",
    "Resources",
    "Result",
    "Search",
    "Seeds",
    "Size",
    "Sweep",
    "Tracking",
    "Trial",
    "Validation",
    "Variant",
    "canonical_json",
    "content_key",
    "six_digits",
]

OUTCOMES = ("finished", "diverged", "stopped", "failed")
SCRIPT = "script"  # the workload whose training loop is the user's own
ABSURD_FACTOR = 3.0  # a loss above this many times the first is divergence; a choice


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


@dataclass(frozen=True)
class Trial:
    """One training run to one horizon: everything that can change its curve, and what its worker must know besides.

    Under an open-ended schedule (no cooldown) the curve does not depend on the horizon, so `tokens` is not part of
    the identity: a longer horizon goes on from where the shorter one ended.

    Attributes:
        tokens: the horizon, whole batches.
        marks: absolute token counts at which the run reports, ascending, the last one `tokens`.
        precision: "float32" or "bfloat16" (autocast).
        ladder: what of the marks is part of the identity.
        asides: the marks that are not on the ladder: horizons of an open-ended run, which only evaluates there.
        trunk: whether it is no trial but the trunk of trials (`sweeps.forks`), whose marks are theirs.
        absurd_factor: a loss above this many times the first ends the run as diverged; not part of the identity.
        stopping: the identities of the stoppers its sweep follows; not part of the identity.
        label: the values of the further axes that make its variant, in words; not part of the identity.
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
    asides: tuple[int, ...] = ()
    trunk: bool = False
    absurd_factor: float = field(default=ABSURD_FACTOR, compare=False)
    stopping: tuple[Json, ...] = field(default=(), compare=False)
    parameters: int = field(default=0, compare=False)
    flops_per_token: float = field(default=0.0, compare=False)
    label: str = field(default="", compare=False)

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
            **({"trunk": True} if self.trunk else {}),
        }

    def to_json(self) -> Json:
        """Return all of it as plain JSON; `from_json` is its inverse."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "workload": self.workload.to_json(),
            "optimizer": self.optimizer.to_json(),
            "schedule": self.schedule.to_json(),
            "marks": list(self.marks),
            "asides": list(self.asides),
            "stopping": list(self.stopping),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Trial:
        """Return the trial of a record made by `to_json`."""
        parts = {name: Part.from_json(record[name]) for name in ("workload", "optimizer", "schedule")}
        lists = {name: tuple(record.get(name, ())) for name in ("marks", "asides", "stopping")}
        return cls(**{**record, **parts, **lists})

    def passed_unseen(self, tokens: int, seen: Iterable[int]) -> bool:
        """Return whether a run of this key that stands at `tokens` has passed an aside that is not among `seen`."""
        return any(aside <= tokens for aside in set(self.asides).difference(seen))

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

    @property
    def absurd_factor(self) -> float:
        """How many times its first loss ends a run as diverged."""
        return next((part.fields["above"] for part in self.stopping if part.name == "diverged"), ABSURD_FACTOR)

    @cached_property
    def stoppers(self) -> tuple[Part, ...]:
        """The rules it follows across runs; that a run has diverged is told by the run itself."""
        return tuple(part for part in self.stopping if part.name != "diverged")

    @property
    def forks(self) -> bool:
        """Whether trials that begin alike share a trunk; a user's own script has a loop of its own."""
        return self.resources.forks and all(variant.workload.name != SCRIPT for variant in self.variants)

    @cached_property
    def size_axes(self) -> frozenset[str]:
        """The further axes of the workload of which every value makes another N, all else equal."""
        found = {axis for axis in self.variants[0].values if axis.startswith("workload.")}
        for axis in list(found):
            sizes: dict[str, list[int]] = {}
            for variant in self.variants:
                others = canonical_json({name: x for name, x in variant.values.items() if name != axis})
                sizes.setdefault(others, []).append(variant.size.parameters)
            if any(len(set(of_axis)) < len(of_axis) for of_axis in sizes.values()):
                found.remove(axis)
        return frozenset(found)

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
