"""A published law as a record: asked of a run to come, it answers, warns or refuses.

Points are of these axes: tokens (of the whole run), parameters (without embeddings; of a mixture of experts, all of
them), batch_tokens, sequence_tokens, batch_sequences, compute_flops, tokens_per_parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from sweeps.errors import ConfigError, FitError
from sweeps.laws.published.terms import Anchor, Term

NEAR = 1.1  # a value within this factor of a range is not outside it; a choice
FLOPS = (
    6.0  # a parameter and token, forward and backward, without attention (Kaplan et al., arXiv:2001.08361); published
)
_ASKED_AS = {
    "tokens": "tokens",
    "parameters": "parameters",
    "batch_tokens": "batch_tokens",
    "batch_sequences": "batch_tokens and sequence_tokens",
    "compute_flops": "parameters or compute_flops",
    "anchor": "an anchor: a best LR and its tokens (anchor_lr, anchor_tokens)",
}
_MADE_OF = {
    "batch_sequences": ("batch_tokens", "sequence_tokens"),
    "compute_flops": ("compute_flops", "parameters", "tokens"),
    "tokens_per_parameter": ("parameters", "tokens"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is known of the run to come; None where it is not. `compute_flops` is of the whole training."""

    tokens: float
    parameters: float | None = None
    batch_tokens: float | None = None
    sequence_tokens: float | None = None
    compute_flops: float | None = None
    anchor: Anchor | None = None

    def point(self) -> dict[str, float]:
        """Return the value of each axis that is known. Raises ConfigError where one is no positive number."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "anchor"}
        point = {name: float(value) for name, value in known.items() if value is not None}
        for name, value in point.items():
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name}: must be above 0 and finite, got {value:g}")
        if self.parameters is not None:
            point["tokens_per_parameter"] = self.tokens / self.parameters
            point.setdefault("compute_flops", FLOPS * self.parameters * self.tokens)
        if self.batch_tokens is not None and self.sequence_tokens is not None:
            point["batch_sequences"] = self.batch_tokens / self.sequence_tokens
        return point


@dataclass(frozen=True, slots=True)
class Answer:
    """What a published law says.

    Attributes:
        lr: the best LR; per step.
        batch_tokens: the best batch, where the law has one.
        warnings: where the question is outside what the law was fitted on, and what had to be assumed.
    """

    lr: float
    batch_tokens: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedLaw:
    """A law from the literature.

    Attributes:
        formula: as in the source, in symbols N (parameters), D or T (tokens), B (batch), C (FLOPs).
        source: where it stands.
        convention: "batch fixed" (the best LR at the batch given) or "batch free" (at the best batch).
        trust: "published" (read in the paper's text or its repository) or "secondary" (as others quote it).
        setting: what was trained.
        fitted: (lowest, highest) of the axes it was fitted on, as far as the source says.
        lr, batch: the formulas; of a law without a best batch, None.
    """

    name: str
    formula: str
    source: str
    convention: str
    trust: str
    setting: str
    lr: Term
    batch: Term | None = None
    fitted: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def reads(self) -> frozenset[str]:
        """The fields of a Question that its answer, or a warning of it, can depend on."""
        terms = (self.lr,) if self.batch is None else (self.lr, self.batch)
        axes = {"tokens", *self.fitted, *(axis for term in terms for axis in (*term.needs, *term.optional))}
        if self.batch is not None:
            axes.add("batch_tokens")  # compared with its own
        return frozenset(name for axis in axes for name in _MADE_OF.get(axis, (axis,)))

    def ask(self, question: Question) -> Answer:
        """Return the LR, and the batch where the law has one.

        Raises:
            ConfigError: what the law needs is not in the question, or is no positive number.
            FitError: its formula has no value there that is above 0 and finite.
        """
        point = question.point()
        known = {*point, "anchor"} if question.anchor is not None else set(point)
        missing = [axis for axis in self.lr.needs if axis not in known]
        if missing:
            raise ConfigError(f"{self.name}: needs {' and '.join(_ASKED_AS[axis] for axis in missing)}")
        for axis in () if question.anchor is None else ("lr", "tokens", "parameters"):
            value = getattr(question.anchor, axis)
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigError(f"anchor {axis}: must be above 0 and finite, got {value:g}")
        lr = self.lr.value(point, question.anchor)
        batch = None if self.batch is None else self.batch.value(point, question.anchor)
        for axis, value in (("LR", lr), ("batch", 1.0 if batch is None else batch)):
            if not 0.0 < value < math.inf:
                raise FitError(f"{self.name}: its formula gives no {axis} above 0 and finite there, but {value:g}")
        return Answer(lr, batch, (*self._outside(point), *self._assumed(question, batch)))

    def _outside(self, point: Mapping[str, float]) -> list[str]:
        said = []
        for axis, (low, high) in self.fitted.items():
            value = point.get(axis)
            if value is not None and not low / NEAR <= value <= high * NEAR:
                span = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
                said.append(f"{axis} {value:.4g} is outside what {self.name} was fitted on ({span})")
        return said

    def _assumed(self, question: Question, batch: float | None) -> list[str]:
        said = []
        if "compute_flops" in self.lr.needs and question.compute_flops is None:
            said.append("compute_flops taken as 6 N T: without attention, so the LR is a little high")
        asked = question.batch_tokens
        if self.convention != "batch free" or asked is None or batch is None:
            return said
        if not 1.0 / NEAR <= asked / batch <= NEAR:
            said.append(f"the LR is for the law's own batch, {batch:.4g} tokens, not for {asked:.4g}")
        return said
