"""Forms of lr* that are straight in logs: the plain power law, and Power Scheduler's from three best batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sweeps.errors import FitError
from sweeps.laws.forms.line import (
    AXES,
    Drawing,
    Kind,
    Point,
    fit_line,
    number,
    of_cells,
    place_of,
    variance_of,
    varying,
)
from sweeps.laws.forms.record import FormLaw
from sweeps.optima.records import CellOptimum

BEST_BATCHES = 3  # Power Scheduler, arXiv:2408.13359, section 3; published


class PowerForm:
    """lr* = a B^p T^q N^r at the batch given."""

    kind = Kind("power", "lr* = a B^p T^q N^r", "least squares in logs (docs/laws.md)", "batch fixed", "lr")

    def fit(
        self,
        cells: Sequence[CellOptimum],
        variables: Sequence[str] | None = None,
        *,
        seed: str | int,
        confidence: float = 0.95,
        n_bootstrap: int = 1000,
    ) -> FormLaw:
        """Return the law through the uncensored cells; `variables`: those that vary. Raises FitError."""
        points, rest = of_cells(cells)
        asked = varying(points, AXES) if variables is None else variables
        return fit_line(self.kind, points, asked, left_out=rest, drawing=Drawing(seed, confidence, n_bootstrap))


class PowerSchedulerForm:
    """lr* = B a T^b: of each (T, N) the mean of lr* / B over its three best batches, pooled over sizes."""

    kind = Kind(
        "power-scheduler",
        "lr* = B a T^b",
        "Power Scheduler, arXiv:2408.13359, eq. 3 to 6 and section 3",
        "batch fixed",
        "lr",
    )

    def fit(
        self,
        cells: Sequence[CellOptimum],
        variables: Sequence[str] | None = None,
        *,
        seed: str | int,
        confidence: float = 0.95,
        n_bootstrap: int = 1000,
    ) -> FormLaw:
        """Return the law of tokens; a (T, N) with under three batches, or a censored one among its best, is left out.

        `log_a` is of LR per token of the batch (`per_sequence` converts it). Raises FitError.
        """
        points: list[Point] = []
        rest: list[tuple[str, str, str]] = []
        near: list[CellOptimum] = []
        for group in groups(cells):
            ranked = sorted((c for c in group if c.optimum.loss is not None), key=lambda c: (c.optimum.loss, c.key))
            best = ranked[:BEST_BATCHES]
            reason = _unfit(best)
            if reason is not None:
                rest += [(c.key, c.label, reason) for c in group]
                continue
            rest += [(c.key, c.label, "not among the three best batches") for c in group if c not in best]
            points.append(_mean_point(best))
            near += best
        box = {
            a: (min(getattr(c, a) for c in near), max(getattr(c, a) for c in near))
            for a in ("batch_tokens", "tokens")
            if near
        }
        asked = ("tokens",) if variables is None else variables
        return fit_line(
            self.kind,
            points,
            asked,
            left_out=rest,
            fixed={"batch_tokens": 1.0},
            box=box,
            drawing=Drawing(seed, confidence, n_bootstrap),
        )


def groups(cells: Sequence[CellOptimum]) -> list[list[CellOptimum]]:
    """Return the cells of each (T, N), sorted by batch."""
    places: dict[tuple[int, int], list[CellOptimum]] = {}
    for cell in sorted(cells, key=lambda c: (c.tokens, c.parameters, c.batch_tokens, c.key)):
        places.setdefault((cell.tokens, cell.parameters), []).append(cell)
    return list(places.values())


def per_sequence(law: FormLaw, sequence_tokens: float) -> tuple[float, float]:
    """Return (a, b) of Power Scheduler, whose batch counts sequences: lr* = B a T^b. Raises FitError for other laws.

    `sweeps.schedules.power_knee` makes of them the `power` schedule of a batch and a cap.
    """
    if law.form != PowerSchedulerForm.kind.name or "q" not in law.unknowns:
        raise FitError(f"power-scheduler: only its own law of tokens has an a and a b, got {law.form}", estimate=law)
    return math.exp(law.unknowns["log_a"]) * sequence_tokens, law.unknowns["q"]


def _unfit(best: Sequence[CellOptimum]) -> str | None:
    if len({c.batch_tokens for c in best}) < BEST_BATCHES:
        return "under three batches"
    censored = [c for c in best if c.optimum.censored is not None]
    return f"{censored[0].optimum.censored} among the three best batches" if censored else None


def _mean_point(best: Sequence[CellOptimum]) -> Point:
    """Return ln of the mean of lr* / B, with its variance by the delta method."""
    gamma = np.array([number(c.optimum.lr) / c.batch_tokens for c in best])
    share = gamma / gamma.sum()
    variance = float(np.sum(share**2 * np.array([variance_of(c.optimum) for c in best])))
    return Point(
        key=best[0].key,
        label=best[0].label,
        place=place_of(best[0]),
        log_value=math.log(float(gamma.mean())),
        variance=variance,
        trials=frozenset(r.key for c in best for r in c.results),
        form_sd=float(np.median([c.optimum.form_sd or 0.0 for c in best])),
    )
