"""A fitted law beside the published ones, at a point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.errors import SweepError
from sweeps.laws.law import Law
from sweeps.laws.published import PUBLISHED, Anchor, PublishedLaw, Question
from sweeps.optima.records import CellOptimum


@dataclass(frozen=True, slots=True)
class Beside:
    """What a published law says at a point.

    Attributes:
        law: which one.
        lr: its LR; None where it cannot say.
        ratio: over that of the fitted law.
        remarks: why it cannot say, or what to know of the answer.
    """

    law: PublishedLaw
    lr: float | None
    ratio: float | None
    remarks: tuple[str, ...]


def beside_published(law: Law, cells: Sequence[CellOptimum], target: Mapping[str, float]) -> list[Beside]:
    """Return what each published law says where a fitted one is asked.

    A law that needs the best LR of another run is given that of the cell of the same batch and the fewest tokens.

    Args:
        law: the fitted one.
        cells: of its sweep; the largest model among them is the one asked about, unless the target has `parameters`.
        target: batch_tokens, tokens, and parameters where the law has them.

    Raises:
        ReachError: the target is beyond the law's reach.
    """
    size = target.get("parameters") or max((cell.parameters for cell in cells), default=0) or None
    ours = law.predict(
        batch_tokens=target["batch_tokens"],
        tokens=target["tokens"],
        parameters=size if "parameters" in law.variables else None,
    )
    asked = Question(
        tokens=target["tokens"],
        parameters=size,
        batch_tokens=target["batch_tokens"],
        anchor=_anchor(cells, target["batch_tokens"]),
    )
    return [_answer(published, asked, ours.lr) for published in PUBLISHED.values()]


def _answer(law: PublishedLaw, asked: Question, ours: float) -> Beside:
    try:
        answer = law.ask(asked)
    except SweepError as error:
        return Beside(law, None, None, (str(error).removeprefix(f"{law.name}: "),))
    return Beside(law, answer.lr, answer.lr / ours, answer.warnings)


def _anchor(cells: Sequence[CellOptimum], batch_tokens: float) -> Anchor | None:
    found = [
        (cell.tokens, cell.parameters, cell.optimum.lr)
        for cell in cells
        if cell.optimum.censored is None
        and cell.optimum.lr is not None
        and math.isclose(cell.batch_tokens, batch_tokens)
    ]
    if not found:
        return None
    tokens, size, lr = min(found)
    return Anchor(lr, float(tokens), float(size) or None)
