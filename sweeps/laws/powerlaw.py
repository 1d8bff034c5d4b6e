"""A power law through the optima of cells: lr* = a B^p T^q N^r, by weighted least squares in logs (docs/laws.md)."""

# C cells, U unknowns (ln a first)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import FitError, unknown_name
from sweeps.laws.regression import SD_FLOOR, Regression, clusters_of, regress
from sweeps.optima.records import CellOptimum
from sweeps.optima.student import two_sided

Floats = NDArray[np.float64]

VARIABLES = ("batch_tokens", "tokens", "parameters")
_EDGES = {"edge low": -1.0, "edge high": 1.0}  # on which side of what was tried the optimum lies


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law.

    Attributes:
        variables: the regressors, in the order of the exponents.
        coefficients: ln a, then one exponent a variable (natural logs; tokens, parameters as they are).
        covariance: of the coefficients, rows as in `coefficients`.
        dof: cells less unknowns; or clusters of cells less the unknowns that only they tell apart.
        misfit_sd: sd of ln lr* between cells about the law beyond what the cells' own uncertainty explains.
        confidence: of `intervals`.
        used: keys of the cells fitted, sorted.
        left_out: (key, label, reason) of the others, sorted.
    """

    variables: tuple[str, ...]
    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    dof: int
    misfit_sd: float
    confidence: float
    used: tuple[str, ...]
    left_out: tuple[tuple[str, str, str], ...]

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """The t interval of each coefficient."""
        half = two_sided(self.confidence, dof=self.dof) * np.sqrt(np.diag(np.array(self.covariance)))
        return tuple((c - float(w), c + float(w)) for c, w in zip(self.coefficients, half, strict=True))

    def log_lr(self, point: Sequence[float]) -> float:
        """Return ln lr* at positive values of the variables, in their order."""
        row = np.array([1.0, *(math.log(x) for x in point)])
        return float(row @ np.array(self.coefficients))


def fit(
    cells: Sequence[CellOptimum],
    variables: Sequence[str],
    *,
    seed: str | int,
    confidence: float = 0.95,
    n_bootstrap: int = 1000,
) -> PowerLaw:
    """Return the law through the uncensored cells.

    Weights are 1 / (variance of the cell's optimum + variance between cells), the latter by Paule and Mandel (1982).
    The covariance is that of a bootstrap over cells: whole cells' residuals, divided by sqrt(1 - leverage), are drawn
    with replacement and laid on the fitted law, so that every draw has the design of the sweep (drawing the cells
    themselves leaves a 3 x 3 design singular too often). ln a also gets the median `form_sd`: what cells do not know of
    the basin's form they do not know together, so it does not average out. The same cells give the same bits in any
    order.

    Where cells share trials (one run serves several horizons) whole clusters of them are drawn: each keeps its own
    residuals, corrected for leverage (Bell and McCaffrey 2002), under a random sign. With under LEAST_CLUSTERS
    clusters, cells are drawn all the same.

    Raises:
        FitError: no more cells than unknowns, or a variable that does not vary (or only with another); its
            `estimate` is the law of the variables that do vary, or None.
        ConfigError: a name not in VARIABLES.
    """
    _check_names(variables)
    ordered = sorted(cells, key=lambda c: c.key)
    used = [c for c in ordered if c.optimum.censored is None]
    out = [c for c in ordered if c.optimum.censored is not None]
    left_out = tuple((c.key, c.label, str(c.optimum.censored)) for c in out)
    if (reason := refusal(used, variables, left_out)) is not None:
        fewer = [v for v in variables if len({getattr(c, v) for c in used}) > 1]
        estimate = None
        if len(fewer) < len(variables) and refusal(used, fewer, left_out) is None:
            estimate = fit(used, fewer, seed=seed, confidence=confidence, n_bootstrap=n_bootstrap)
        raise FitError(reason, estimate=estimate)
    line = _regress(used, variables, seed=seed, draws=n_bootstrap)
    return PowerLaw(
        variables=tuple(variables),
        coefficients=tuple(float(x) for x in line.estimate),
        covariance=tuple(tuple(float(x) for x in row) for row in line.covariance),
        dof=line.dof,
        misfit_sd=math.sqrt(line.between),
        confidence=confidence,
        used=tuple(c.key for c in used),
        left_out=tuple(
            _against(c, why, line, variables, confidence) for c, (_, _, why) in zip(out, left_out, strict=True)
        ),
    )


def _check_names(variables: Sequence[str]) -> None:
    for name in variables:
        if name not in VARIABLES:
            raise unknown_name("law.variables", name, VARIABLES, "variable")


def _regress(cells: Sequence[CellOptimum], variables: Sequence[str], *, seed: str | int, draws: int) -> Regression:
    """Return ln lr* of uncensored cells regressed on the logs of the variables."""
    return regress(
        design(cells, variables),
        np.array([math.log(_number(c.optimum.lr)) for c in cells]),
        np.array([_variance(c) for c in cells]),
        cluster_C=clusters_of([[r.key for r in c.results] for c in cells]),
        seed=seed,
        common_sd=float(np.median([c.optimum.form_sd or 0.0 for c in cells])),
        draws=draws,
    )


def _against(
    cell: CellOptimum, why: str, line: Regression, variables: Sequence[str], confidence: float
) -> tuple[str, str, str]:
    """Return (key, label, reason) of a censored cell, the reason with what the law says where its edge denies that.

    The best LR on an edge bounds the optimum: losses are convex in ln lr, so it lies beyond the LR next to the edge.
    The interval of the law there holds the scatter of cells too.
    """
    best = cell.optimum.lr
    if best is None or why not in _EDGES or min(getattr(cell, v) for v in (*variables, "tokens")) <= 0:
        return cell.key, cell.label, why
    row_U = design([cell], variables)[0]
    centre = float(row_U @ line.estimate)
    variance = float(row_U @ line.covariance @ row_U) + line.between
    half = two_sided(confidence, dof=line.dof) * math.sqrt(variance)
    ranked = sorted({r.lr for r in cell.results if r.outcome != "failed"}, key=lambda lr: abs(math.log(lr / best)))
    bound = math.log(ranked[1] if len(ranked) > 1 else best)
    if _EDGES[why] * (centre + _EDGES[why] * half - bound) >= 0.0:
        return cell.key, cell.label, why
    return cell.key, cell.label, f"{why}: the law says {math.exp(centre):.2g}, the best tried {best:.2g}"


def _some(labels: Sequence[str]) -> str:
    return "; ".join(labels) if len(labels) <= 3 else f"{len(labels)} cells, {labels[0]} the first"


def refusal(
    used: Sequence[CellOptimum], variables: Sequence[str], left_out: Sequence[tuple[str, str, str]]
) -> str | None:
    """Return why these cells do not support a law of these variables, None if they do."""
    unknowns = len(variables) + 1
    if len(used) <= unknowns:
        reasons = {why: sorted(label for _, label, w in left_out if w == why) for _, _, why in left_out}
        out = "".join(f"; left out ({why}): {_some(labels)}" for why, labels in sorted(reasons.items()))
        return (
            f"law: a law of {' and '.join(variables)} needs at least {unknowns + 1} cells with an optimum, "
            f"got {len(used)}{out}"
        )
    for name in variables:
        if len({getattr(c, name) for c in used}) < 2:
            return f"law: {name} is {getattr(used[0], name):,} in every cell with an optimum, so it has no exponent"
    x_CU = design(used, variables)
    if np.linalg.matrix_rank(x_CU - x_CU.mean(axis=0) * (np.arange(unknowns) > 0), tol=1e-6) < unknowns:
        return f"law: {' and '.join(variables)} vary only together in the cells with an optimum: too few exponents"
    return None


def design(cells: Sequence[CellOptimum], variables: Sequence[str]) -> Floats:
    """Return the regressors: 1 and the ln of each variable, [C, U]."""
    return np.array([[1.0, *(math.log(getattr(c, v)) for v in variables)] for c in cells])


def _number(value: float | None) -> float:
    assert value is not None, "an uncensored optimum has all its numbers"
    return value


def _variance(cell: CellOptimum) -> float:
    """Return the variance of ln lr*: of t with dof degrees of freedom, bounded where that has none."""
    dof = max(_number(cell.optimum.dof), 3.0)
    return float(max(_number(cell.optimum.log_sd), SD_FLOOR) ** 2 * dof / (dof - 2.0))
