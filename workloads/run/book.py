"""The curve of one run, and the judgement of it: pure, so that any way of training gives the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from workloads.base import JsonDict, Point
from workloads.run.spec import RunSpec

CHECK_STEPS = 64  # steps between two looks at the running training loss for divergence
LOSS = "validation/loss"
TRAIN_LOSS = "train/loss"
NORM = "grad_norm"


@dataclass(frozen=True, slots=True)
class Record:
    """What a run saw at a mark, as a point without its training loss; `total` is the sum of all steps' losses so far.

    Training losses are differences of totals, so that what a run saw at one mark depends on no other mark.
    """

    point: Point
    total: float


class Book:
    """What a run has seen so far.

    Attributes:
        points: the curve, all of it finite.
        records: what the points were made of; of a trunk also what was not finite.
        diverged, reason, exceeded: as of `workloads.run.Run`.
        initial_loss: the validation loss before the first step, None before `open`.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._rungs = frozenset(spec.marks) - spec.asides
        self.points: list[Point] = []
        self.records: list[Record] = []
        self.diverged = False
        self.reason = ""
        self.exceeded: float | None = None
        self.initial_loss: float | None = None
        self._checked = (0, 0.0)  # step and total at the last look
        self._since = (0, 0.0)  # at the last mark that is no aside

    def open(self, initial_loss: float) -> None:
        """Take the validation loss before the first step."""
        self.initial_loss = initial_loss
        if not math.isfinite(initial_loss):
            self._diverge("the loss is not finite before the first step")

    def check(self, tokens: int, step: int, total: float) -> None:
        """Judge the mean training loss since the last look; to be called every CHECK_STEPS steps, marks or not."""
        self._judge(TRAIN_LOSS, _mean(self._checked, step, total), tokens)
        self._checked = (step, total)

    def add(self, record: Record) -> Point | None:
        """Judge what was seen at a mark and return its point, or None if it shows divergence.

        An aside is not judged but for a loss that is not finite, which ends the run soon anyway. A trunk judges
        nothing at its marks: they are its branches', each of which judges its own.
        """
        before = len(self.points)
        self._enter(record, judged=True)
        return self.points[-1] if len(self.points) > before else None

    def _enter(self, record: Record, *, judged: bool) -> None:
        seen, metrics = record.point, dict(record.point.metrics)
        rung = seen.tokens in self._rungs
        metrics[TRAIN_LOSS] = _mean(self._since, seen.step, record.total)
        if judged and not self._spec.trunk:
            for name in (TRAIN_LOSS, LOSS, NORM):
                self._judge(name, metrics[name], seen.tokens, absurd=rung and name != NORM)
                if self.diverged:
                    return
        self.records.append(record)
        if all(math.isfinite(value) for value in metrics.values()):
            self.points.append(replace(seen, metrics=metrics))
        if rung:
            self._since = (seen.step, record.total)

    def _judge(self, name: str, value: float, tokens: int, *, absurd: bool = True) -> None:
        assert self.initial_loss is not None
        limit = self._spec.absurd_factor * self.initial_loss
        if not math.isfinite(value):
            self._diverge(f"{name} is not finite at {tokens} tokens")
        elif absurd and self.initial_loss > 0 and value > limit:
            self._diverge(f"{name} is {value:.6g} at {tokens} tokens, above {limit:.6g}")
            self.exceeded = self._spec.absurd_factor

    def _diverge(self, reason: str) -> None:
        self.diverged, self.reason = True, reason

    def state(self) -> JsonDict:
        """Return all of it as plain JSON."""
        initial = self.initial_loss
        return {
            "initial_loss": initial if initial is not None and math.isfinite(initial) else None,
            "diverged": self.diverged,
            "reason": self.reason,
            "exceeded": self.exceeded,
            "checked": list(self._checked),
            "points": [
                [p.tokens, p.step, p.timestamp, dict(p.metrics), r.total] for r in self.records for p in [r.point]
            ],
        }

    def load(self, state: JsonDict) -> None:
        """Put back what `state` returned, with no new judgement."""
        self._restart(state)
        for record in _records(state["points"]):
            self._enter(record, judged=False)
        self.diverged, self.reason, self.exceeded = state["diverged"], state["reason"], state["exceeded"]

    def fork(self, state: JsonDict) -> int | None:
        """Take over the book of a trunk: what it saw at this run's marks, judged as if this run had been there.

        Returns:
            The tokens at which this run had then diverged, None if it goes on from where the trunk stands.

        Raises:
            ValueError: the trunk has passed a mark of this run unseen.
        """
        seen = {record.point.tokens: record for record in _records(state["points"])}
        passed = state["tokens"] - state["diverged"]  # it diverges before it looks
        unseen = [mark for mark in self._spec.marks if mark <= passed and mark not in seen]
        if unseen:
            raise ValueError(f"marks: the trunk has passed {unseen[0]} tokens without a look")
        self._restart(state)
        for mark in self._spec.marks:
            if mark in seen and self.add(seen[mark]) is None:
                return mark
        self.diverged, self.reason, self.exceeded = state["diverged"], state["reason"], state["exceeded"]
        return None

    def _restart(self, state: JsonDict) -> None:
        self.points, self.records, self._since = [], [], (0, 0.0)
        self.initial_loss = state["initial_loss"]
        self._checked = (int(state["checked"][0]), float(state["checked"][1]))


def _mean(before: tuple[int, float], step: int, total: float) -> float:
    """Return the mean loss of the steps since an earlier step and total."""
    return (total - before[1]) / max(1, step - before[0])


def _records(points: Sequence[Sequence[object]]) -> list[Record]:
    return [Record(Point(*seen), total) for *seen, total in points]  # type: ignore[arg-type]
