"""What was trained, as the surrogate sees it: one row a place (lr, B, T, N), seeds averaged."""

# P places, S seeds

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import FitError
from sweeps.optima.records import CellOptimum
from sweeps.spec import six_digits

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Places and their losses, each place once. All of shape [P].

    Attributes:
        lr, batch_tokens, tokens, parameters: positive.
        loss: mean over the seeds that ended; positive; NaN where all diverged.
        count: seeds behind it.
        diverged: whether a seed diverged.
        scatter: sum of squares of ln loss about its mean over seeds, and `scatter_dof`, over all places.
    """

    lr: Floats
    batch_tokens: Floats
    tokens: Floats
    parameters: Floats
    loss: Floats
    count: Floats
    diverged: NDArray[np.bool_]
    scatter: float = 0.0
    scatter_dof: int = 0

    def __len__(self) -> int:
        return len(self.lr)

    @cached_property
    def places(self) -> Floats:
        """Return (lr, batch_tokens, tokens, parameters), shape [P, 4]."""
        return np.column_stack([self.lr, self.batch_tokens, self.tokens, self.parameters])


def rows_of(
    points: Sequence[tuple[float, float, float, float, float | None]] | Floats,
) -> Rows:
    """Return the rows of single runs (lr, batch_tokens, tokens, parameters, loss); loss None or not finite: diverged.

    Runs of one place are its seeds. Their order does not matter.

    Raises:
        FitError: no run, or a number that is not positive; parameters may be 0 in all: not known, one size.
    """
    table = np.array([[np.nan if x is None else float(x) for x in point] for point in points], dtype=np.float64)
    if len(table) == 0:
        raise FitError("surrogate: no runs to fit")
    if not np.any(table[:, 3]):
        table[:, 3] = 1.0
    ended = np.isfinite(table[:, 4])
    for column, name in enumerate(("lr", "batch_tokens", "tokens", "parameters", "loss")):
        values = table[ended, column] if name == "loss" else table[:, column]
        if not np.all(np.isfinite(values) & (values > 0.0)):
            raise FitError(f"surrogate: {name} must be positive in every run, got {values[~(values > 0.0)][0]:g}")
    groups: dict[tuple[float, ...], list[float]] = {}
    for lr, batch, tokens, parameters, loss in table[np.lexsort(table.T[::-1])].tolist():
        groups.setdefault((six_digits(lr), batch, tokens, parameters), []).append(loss)
    places, seeds = np.array(list(groups)), list(groups.values())
    finite = [np.array([x for x in losses if np.isfinite(x)]) for losses in seeds]
    spread = [np.log(x) - np.log(x).mean() for x in finite if len(x) > 1]
    return Rows(
        lr=places[:, 0],
        batch_tokens=places[:, 1],
        tokens=places[:, 2],
        parameters=places[:, 3],
        loss=np.array([x.mean() if len(x) else np.nan for x in finite]),
        count=np.array([float(len(x)) for x in finite]),
        diverged=np.array([len(x) < len(losses) for x, losses in zip(finite, seeds, strict=True)]),
        scatter=float(sum(np.sum(np.square(x)) for x in spread)),
        scatter_dof=sum(len(x) - 1 for x in spread),
    )


def rows_of_cells(cells: Sequence[CellOptimum]) -> Rows:
    """Return the rows of all results of these cells. Raises FitError as `rows_of`."""
    return rows_of(
        [
            (r.lr, cell.batch_tokens, cell.tokens, cell.parameters, None if r.outcome == "diverged" else r.loss)
            for cell in cells
            for r in cell.results
            if r.outcome == "diverged" or r.loss is not None
        ]
    )
