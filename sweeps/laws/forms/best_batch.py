"""The best batch of a run, B*(T): of each (T, N) the minimum over batches of the loss at the best LR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sweeps.laws.forms.line import Drawing, Kind, Point, fit_line, number, place_of, variance_of
from sweeps.laws.forms.power import groups
from sweeps.laws.forms.record import FormLaw
from sweeps.optima.basin import Curvature, Shape
from sweeps.optima.optimum import find_optimum
from sweeps.optima.pooled import pooled_curvature
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import Result

SHAPE = Shape(0.0, 0.6)  # asymmetry of a basin in ln batch: either way, as much as a basin in ln lr; assumed


class BestBatchForm:
    """B* = c T^q [N^r], in tokens; batch free: the LR is at its best for every batch."""

    kind = Kind("best-batch", "B* = c T^q N^r", "Step Law's form, arXiv:2503.04715", "batch free", "batch_tokens")

    def fit(
        self,
        cells: Sequence[CellOptimum],
        variables: Sequence[str] | None = None,
        *,
        seed: str | int,
        confidence: float = 0.95,
        n_bootstrap: int = 1000,
    ) -> FormLaw:
        """Return the law of tokens, or of the variables named, through the (T, N) whose best batch lies between others.

        Raises:
            FitError: too few such (T, N), or a variable that does not vary.
        """
        points: list[Point] = []
        rest: list[tuple[str, str, str]] = []
        for group, found in best_batches(cells, confidence=confidence):
            first = group[0]
            label = f"tokens {first.tokens:,}, parameters {first.parameters:,}"
            if found.censored is not None:
                rest.append((first.key, label, f"best batch: {found.censored}"))
                continue
            trials = frozenset(r.key for c in group for r in c.results)
            log_batch = math.log(number(found.lr))
            points.append(Point(first.key, label, place_of(first), log_batch, variance_of(found), trials))
        asked = ("tokens",) if variables is None else variables
        return fit_line(self.kind, points, asked, left_out=rest, drawing=Drawing(seed, confidence, n_bootstrap))


def best_batches(cells: Sequence[CellOptimum], *, confidence: float = 0.95) -> list[tuple[list[CellOptimum], Optimum]]:
    """Return the cells of each (T, N) with their best batch: an Optimum whose `lr` is a batch in tokens.

    Losses are those of the basins at their minima. A cell without an optimum is not fitted; where the best loss tried
    in one is below all others, the best batch is not known. Basins tell each other how curved they are.
    """
    noise = [c.optimum.noise_sd for c in cells if c.optimum.noise_sd is not None]
    sd = float(np.median(noise)) if noise else None
    found = [(group, _best(group, sd, None, confidence)) for group in groups(cells)]
    curvature = pooled_curvature([optimum.basin for _, optimum in found])
    if curvature is None:
        return found
    return [(group, _best(group, sd, curvature, confidence)) for group, _ in found]


def _best(
    group: Sequence[CellOptimum], noise_sd: float | None, curvature: Curvature | None, confidence: float
) -> Optimum:
    fitted = [c for c in group if c.optimum.censored is None and c.optimum.loss is not None]
    lowest = min((number(c.optimum.loss) for c in fitted), default=math.inf)
    hidden = [c for c in group if c.optimum.censored is not None and c.optimum.loss is not None]
    results = [Result(c.key, float(c.batch_tokens), 0, c.optimum.loss, "finished") for c in fitted]
    found = find_optimum(results, confidence=confidence, noise_sd=noise_sd, curvature=curvature, shape=SHAPE)
    if any(number(c.optimum.loss) <= lowest for c in hidden):
        batch = min(hidden, key=lambda c: (number(c.optimum.loss), c.key)).batch_tokens
        return replace(Optimum(float(batch), None, None, None, None, "no minimum"), loss=lowest)
    return found
