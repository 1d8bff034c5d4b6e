"""The batch free convention: of each token count and model size, the cell of the best batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sweeps.optima.records import CellOptimum
from sweeps.spec import Json


def best_batches(cells: Sequence[CellOptimum]) -> tuple[list[CellOptimum], list[Mapping[str, Json]]]:
    """Return of each (T, N) the cell of the batch with the lowest loss, if it lies between others; and the rest."""
    places: dict[tuple[int, int], list[CellOptimum]] = {}
    for cell in cells:
        places.setdefault((cell.tokens, cell.parameters), []).append(cell)
    kept: list[CellOptimum] = []
    rest: list[Mapping[str, Json]] = []
    for group in places.values():
        group.sort(key=lambda c: (c.batch_tokens, c.key))
        losses = [math.inf if c.optimum.loss is None else c.optimum.loss for c in group]
        best = int(np.argmin(losses))
        edge = len(group) > 1 and best in (0, len(group) - 1)
        for i, cell in enumerate(group):
            if i == best and not edge:
                kept.append(cell)
            else:
                why = "best batch on an edge" if i == best else "not the best batch"
                rest.append({"key": cell.key, "label": cell.label, "reason": why})
    return kept, rest
