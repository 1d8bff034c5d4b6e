"""lr* that grows with the batch up to a critical batch and no further."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sweeps.errors import ConfigError, FitError
from sweeps.laws.forms.line import (
    AXES,
    NAMES,
    Drawing,
    Kind,
    Point,
    check,
    design,
    of_cells,
    regress_points,
    spans,
    stretched,
    varying,
)
from sweeps.laws.forms.power import PowerForm
from sweeps.laws.forms.record import FormLaw
from sweeps.laws.regression import Floats
from sweeps.optima.records import CellOptimum
from sweeps.optima.student import two_sided

STEPS = 161  # of ln critical batch, from a quarter of the smallest batch to eight times the largest
TURNS = 8  # of linearising anew at what was found
STEEPEST = 1.0  # p is held there where it would be larger: SGD's, Adam's lies below (arXiv:1812.06162); published


@dataclass(frozen=True, slots=True)
class Saturation:
    """ln lr = log_a + p (ln B - ln(1 + B / Bc)) + exponents of the others; p is an unknown, or held."""

    others: tuple[str, ...]
    held: float | None = None

    def log_value(self, unknowns: Mapping[str, float], place: Mapping[str, float]) -> float:
        """Return ln of the LR there."""
        rest = unknowns["log_a"] + math.fsum(unknowns[NAMES[a]] * math.log(place[a]) for a in self.others)
        return rest + self._power(unknowns) * _grown(math.log(place["batch_tokens"]), unknowns["log_critical"])

    def gradient(self, unknowns: Mapping[str, float], place: Mapping[str, float]) -> dict[str, float]:
        """Return its derivative by each unknown."""
        log_batch, log_critical = math.log(place["batch_tokens"]), unknowns["log_critical"]
        growth = {} if self.held is not None else {"p": _grown(log_batch, log_critical)}
        return {
            "log_a": 1.0,
            **growth,
            **{NAMES[a]: math.log(place[a]) for a in self.others},
            "log_critical": self._power(unknowns) / (1.0 + math.exp(log_critical - log_batch)),
        }

    def _power(self, unknowns: Mapping[str, float]) -> float:
        return unknowns["p"] if self.held is None else self.held


class SaturatingForm:
    """lr* = a T^q N^r (B / (1 + B / Bc))^p: the power law B^p far below the critical batch Bc, constant far above.

    The optimal LR of SGD is that with p = 1 (McCandlish et al., arXiv:1812.06162, eq. 2.6); p is free here up to
    that, about 1/2 for Adam; where cells want more it is held at 1 and is no unknown.
    """

    kind = Kind(
        "saturating",
        "lr* = a T^q N^r (B / (1 + B / Bc))^p",
        "McCandlish et al., arXiv:1812.06162, eq. 2.6 where p = 1",
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
        """Return the law through the uncensored cells; `variables`: those that vary, the batch among them.

        Raises:
            FitError: too few cells, or the data do not show that the growth ends: one more unknown takes off too
                little of the squares (an F test at `confidence`), or the best Bc is beyond the batches. `estimate` is
                then the plain power law.
            ConfigError: the variables lack batch_tokens.
        """
        points, rest = of_cells(cells)
        asked = varying(points, AXES) if variables is None else tuple(variables)
        name = self.kind.name
        if "batch_tokens" not in asked:
            if variables is not None:
                raise ConfigError(f"{name}: variables: must have batch_tokens, got {', '.join(variables) or 'none'}")
            check(name, points, ("batch_tokens",), extra=1)
        plain = PowerForm().fit(cells, asked, seed=seed, confidence=confidence, n_bootstrap=n_bootstrap)
        try:
            check(name, points, asked, extra=1)
        except FitError as error:
            raise FitError(str(error), estimate=plain) from None
        others = tuple(a for a in asked if a != "batch_tokens")
        start = _profile(points, others, plain.misfit_sd**2, confidence=confidence)
        if start is None:
            raise FitError(
                f"{name}: the cells do not show that lr* stops growing with the batch: the plain power law holds",
                estimate=plain,
            )
        return self._polished(points, others, start, rest=rest, drawing=Drawing(seed, confidence, n_bootstrap))

    def _polished(
        self,
        points: Sequence[Point],
        others: tuple[str, ...],
        start: dict[str, float],
        *,
        rest: list[tuple[str, str, str]],
        drawing: Drawing,
    ) -> FormLaw:
        """Return the law by Gauss and Newton from where the profile is lowest, each turn weighing the cells anew."""
        steepest = start["p"] >= STEEPEST
        curve = Saturation(others, STEEPEST if steepest else None)
        unknowns = {name: value for name, value in start.items() if name != "p" or not steepest}
        y_C = np.array([p.log_value for p in points])
        for turn in range(TURNS):
            slopes = [curve.gradient(unknowns, p.place) for p in points]
            x_CU = np.array([[slope[name] for name in unknowns] for slope in slopes])
            fitted_C = np.array([curve.log_value(unknowns, p.place) for p in points])
            linear_C = y_C - fitted_C + x_CU @ np.array(list(unknowns.values()))
            found = regress_points(
                points, x_CU, linear_C, drawing=drawing if turn == TURNS - 1 else replace(drawing, draws=2)
            )
            unknowns = dict(zip(unknowns, map(float, found.estimate), strict=True))
        box = spans(points, ("batch_tokens", *others))
        return FormLaw(
            form=self.kind.name,
            convention=self.kind.convention,
            predicts=self.kind.predicts,
            curve=curve,
            unknowns=unknowns,
            covariance=tuple(tuple(map(float, row)) for row in found.covariance),
            dof=float(found.dof),
            misfit_sd=math.sqrt(found.between),
            confidence=drawing.confidence,
            box=box,
            reach=stretched(box),
            used=tuple(p.key for p in points),
            left_out=tuple(sorted(rest)),
        )


def _grown(log_batch: float, log_critical: float) -> float:
    """Return ln(B / (1 + B / Bc))."""
    return log_batch - float(np.logaddexp(0.0, log_batch - log_critical))


def _profile(
    points: Sequence[Point], others: tuple[str, ...], between: float, *, confidence: float
) -> dict[str, float] | None:
    """Return the unknowns where the squares are lowest over ln Bc, or None where the plain law does as well."""
    log_batch_C = np.array([math.log(p.place["batch_tokens"]) for p in points])
    rest_CU = design(points, others)
    y_C = np.array([p.log_value for p in points])
    root_C = 1.0 / np.sqrt(np.array([p.variance for p in points]) + between)

    def squares(growth_C: Floats) -> tuple[float, Floats]:
        x_CU = np.column_stack((rest_CU[:, :1], growth_C, rest_CU[:, 1:])) * root_C[:, None]
        solution = np.linalg.lstsq(x_CU, y_C * root_C, rcond=None)[0]
        if solution[1] > STEEPEST:
            flat_C = (y_C - STEEPEST * growth_C) * root_C
            left_U = np.linalg.lstsq(rest_CU * root_C[:, None], flat_C, rcond=None)[0]
            solution = np.concatenate((left_U[:1], [STEEPEST], left_U[1:]))
        return float(np.sum(np.square(y_C * root_C - x_CU @ solution))), np.asarray(solution, dtype=np.float64)

    plain = float(np.sum(np.square(y_C * root_C - _plain(rest_CU, log_batch_C, y_C, root_C))))
    grid = np.linspace(log_batch_C.min() - math.log(4.0), log_batch_C.max() + math.log(8.0), STEPS)
    tried = [squares(log_batch_C - np.logaddexp(0.0, log_batch_C - at)) for at in grid]
    best = int(np.argmin([found for found, _ in tried]))
    left, solution = tried[best]
    dof = len(points) - 3 - len(others)
    gained = (plain - left) * dof > two_sided(confidence, dof=dof) ** 2 * left
    if not (gained and 0 < best < STEPS - 1 and solution[1] > 0.0):
        return None
    names = ("log_a", "p", *(NAMES[a] for a in others))
    return {**dict(zip(names, map(float, solution), strict=True)), "log_critical": float(grid[best])}


def _plain(rest_CU: Floats, log_batch_C: Floats, y_C: Floats, root_C: Floats) -> Floats:
    """Return the weighted fit of the plain power law at each cell, shape [C]."""
    x_CU = np.column_stack((rest_CU, log_batch_C)) * root_C[:, None]
    return np.asarray(x_CU @ np.linalg.lstsq(x_CU, y_C * root_C, rcond=None)[0])
