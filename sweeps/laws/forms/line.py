"""A straight line in logs through points with an uncertainty of their own: the part that all forms share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweeps.errors import ConfigError, FitError, unknown_name
from sweeps.laws.forms.record import REACH, FormLaw
from sweeps.laws.regression import SD_FLOOR, Floats, Regression, clusters_of, regress
from sweeps.optima.records import CellOptimum, Optimum

AXES = ("batch_tokens", "tokens", "parameters")
NAMES = {"batch_tokens": "p", "tokens": "q", "parameters": "r"}  # of the exponents


@dataclass(frozen=True)
class Point:
    """What a form is fitted to: a place, ln of the value there, its variance, and the trials it rests on.

    `form_sd` is the error that comes from the basin's form, which points share.
    """

    key: str
    label: str
    place: Mapping[str, float]
    log_value: float
    variance: float
    trials: frozenset[str] = frozenset()
    form_sd: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """ln value = log_a + sum of exponent * ln axis + sum of fixed exponent * ln axis."""

    variables: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)

    def log_value(self, unknowns: Mapping[str, float], place: Mapping[str, float]) -> float:
        """Return ln of the value there."""
        slope = self.gradient(unknowns, place)
        held = math.fsum(power * math.log(place[axis]) for axis, power in self.fixed.items())
        return held + math.fsum(unknowns[name] * by for name, by in slope.items())

    def gradient(self, unknowns: Mapping[str, float], place: Mapping[str, float]) -> dict[str, float]:
        """Return 1 for log_a and ln axis for its exponent."""
        return {"log_a": 1.0, **{NAMES[axis]: math.log(place[axis]) for axis in self.variables}}


def of_cells(cells: Sequence[CellOptimum]) -> tuple[list[Point], list[tuple[str, str, str]]]:
    """Return the cells with an optimum as points of ln lr*, and (key, label, reason) of the others; sorted by key."""
    points, rest = [], []
    for cell in sorted(cells, key=lambda c: c.key):
        if cell.optimum.censored is not None:
            rest.append((cell.key, cell.label, cell.optimum.censored))
            continue
        points.append(point_of(cell, place_of(cell), math.log(number(cell.optimum.lr))))
    return points, rest


def point_of(cell: CellOptimum, place: Mapping[str, float], log_value: float) -> Point:
    """Return a cell's optimum as a point."""
    trials = frozenset(result.key for result in cell.results)
    found = cell.optimum
    return Point(cell.key, cell.label, place, log_value, variance_of(found), trials, found.form_sd or 0.0)


def place_of(cell: CellOptimum) -> dict[str, float]:
    """Return where a cell stands."""
    return {axis: float(getattr(cell, axis)) for axis in AXES}


def variance_of(found: Optimum) -> float:
    """Return the variance of ln of an optimum: of t with dof degrees of freedom, bounded where that has none."""
    dof = max(number(found.dof), 3.0)
    return float(max(number(found.log_sd), SD_FLOOR) ** 2 * dof / (dof - 2.0))


def number(value: float | None) -> float:
    """Return a number that an uncensored optimum has."""
    assert value is not None, "an uncensored optimum has all its numbers"
    return value


def varying(points: Sequence[Point], among: Sequence[str]) -> tuple[str, ...]:
    """Return the axes that take two values or more."""
    return tuple(axis for axis in among if len({p.place[axis] for p in points}) > 1)


def check(name: str, points: Sequence[Point], variables: Sequence[str], *, extra: int = 0) -> None:
    """Raise FitError where the points cannot tell the exponents and `extra` more unknowns; ConfigError for a name."""
    for axis in variables:
        if axis not in AXES:
            raise unknown_name(f"{name}: variables", axis, AXES, "variable")
    if len(set(variables)) < len(variables):
        raise ConfigError(f"{name}: variables: must name each once, got {', '.join(variables)}")
    unknowns = 1 + len(variables) + extra
    if len(points) <= unknowns:
        raise FitError(f"{name}: {unknowns} unknowns need at least {unknowns + 1} points, got {len(points)}")
    for axis in variables:
        if len({p.place[axis] for p in points}) < 2:
            value = points[0].place[axis]
            raise FitError(f"{name}: {axis} is {value:,.0f} at every point, so it has no exponent")
    x_CU = design(points, variables)
    if np.linalg.matrix_rank(x_CU - x_CU.mean(axis=0) * (np.arange(x_CU.shape[1]) > 0), tol=1e-6) < x_CU.shape[1]:
        raise FitError(f"{name}: {' and '.join(variables)} vary only together: too few exponents")


def design(points: Sequence[Point], variables: Sequence[str]) -> Floats:
    """Return 1 and the ln of each variable, shape [points, 1 + variables]."""
    return np.array([[1.0, *(math.log(p.place[v]) for v in variables)] for p in points])


def regress_points(points: Sequence[Point], x_CU: Floats, y_C: Floats, *, drawing: Drawing) -> Regression:
    """Return the regression on the points' own variances and shared trials."""
    return regress(
        x_CU,
        y_C,
        np.array([p.variance for p in points]),
        cluster_C=clusters_of([sorted(p.trials) for p in points]),
        seed=drawing.seed,
        common_sd=float(np.median([p.form_sd for p in points])),
        draws=drawing.draws,
    )


def spans(points: Sequence[Point], axes: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return (lowest, highest) of each axis."""
    return {a: (min(p.place[a] for p in points), max(p.place[a] for p in points)) for a in axes}


def stretched(box: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the box stretched to the reach."""
    return {axis: (low / REACH[axis], high * REACH[axis]) for axis, (low, high) in box.items()}


@dataclass(frozen=True, slots=True)
class Drawing:
    """How intervals are drawn: the bootstrap's seed and draws, and the confidence of the intervals."""

    seed: str | int
    confidence: float
    draws: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What a form is, for those who ask the table."""

    name: str
    formula: str
    source: str
    convention: str
    predicts: str


def fit_line(
    kind: Kind,
    points: Sequence[Point],
    variables: Sequence[str],
    *,
    left_out: Sequence[tuple[str, str, str]] = (),
    fixed: Mapping[str, float] | None = None,
    box: Mapping[str, tuple[float, float]] | None = None,
    drawing: Drawing,
) -> FormLaw:
    """Return the law through the points; `box` is of the axes asked for, where those are more than the variables.

    Raises:
        FitError: too few points, or a variable that does not vary; `estimate` is the law of those that do, or None.
    """
    try:
        check(kind.name, points, variables)
    except FitError as error:
        fewer = varying(points, variables)
        if len(fewer) == len(variables):
            raise
        smaller = None
        with contextlib.suppress(FitError):
            smaller = fit_line(kind, points, fewer, left_out=left_out, fixed=fixed, box=box, drawing=drawing)
        raise FitError(str(error), estimate=smaller) from None
    found = regress_points(points, design(points, variables), np.array([p.log_value for p in points]), drawing=drawing)
    whole = spans(points, variables) if box is None else box
    return FormLaw(
        form=kind.name,
        convention=kind.convention,
        predicts=kind.predicts,
        curve=Line(tuple(variables), fixed or {}),
        unknowns=dict(zip(("log_a", *(NAMES[v] for v in variables)), map(float, found.estimate), strict=True)),
        covariance=tuple(tuple(map(float, row)) for row in found.covariance),
        dof=float(found.dof),
        misfit_sd=math.sqrt(found.between),
        confidence=drawing.confidence,
        box=whole,
        reach=stretched(whole),
        used=tuple(p.key for p in points),
        left_out=tuple(sorted(left_out)),
    )
