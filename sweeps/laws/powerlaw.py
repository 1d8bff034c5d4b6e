"""A power law through the optima of cells: lr* = a B^p T^q N^r, by weighted least squares in logs (docs/laws.md)."""

# C cells, U unknowns (ln a first), R bootstrap draws

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import FitError, unknown_name
from sweeps.optima.records import CellOptimum
from sweeps.optima.student import two_sided

Floats = NDArray[np.float64]

VARIABLES = ("batch_tokens", "tokens", "parameters")
LEAST_CLUSTERS = 5  # fewer say too little of their own scatter; assumed
SD_FLOOR = 1e-6  # of ln lr: an exact optimum still has a finite weight


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
    for name in variables:
        if name not in VARIABLES:
            raise unknown_name("law.variables", name, VARIABLES, "variable")
    ordered = sorted(cells, key=lambda c: c.key)
    used = [c for c in ordered if c.optimum.censored is None]
    left_out = tuple((c.key, c.label, c.optimum.censored) for c in ordered if c.optimum.censored is not None)
    reason = _refusal(used, variables, left_out)
    if reason is not None:
        fewer = [v for v in variables if len({getattr(c, v) for c in used}) > 1]
        estimate = None
        if len(fewer) < len(variables) and _refusal(used, fewer, left_out) is None:
            estimate = fit(used, fewer, seed=seed, confidence=confidence, n_bootstrap=n_bootstrap)
        raise FitError(reason, estimate=estimate)
    x_CU = _design(used, variables)
    centre_U = np.concatenate(([0.0], x_CU[:, 1:].mean(axis=0)))
    lr_C = np.array([math.log(_number(c.optimum.lr)) for c in used])
    within_C = np.array([_variance(c) for c in used])
    between = _between(x_CU - centre_U, lr_C, within_C)
    weight_C = 1.0 / (within_C + between)
    cluster_C = _clusters(used)
    clusters = int(cluster_C.max()) + 1
    rng, dof = _rng(seed), len(used) - x_CU.shape[1]
    if LEAST_CLUSTERS <= clusters < len(used):
        dof = min(dof, clusters - _told_apart(x_CU, cluster_C))
    else:
        cluster_C = np.arange(len(used))
    centred_U, covariance_UU = _bootstrap(
        x_CU - centre_U, lr_C, weight_C, cluster_C=cluster_C, rng=rng, draws=n_bootstrap
    )
    covariance_UU[0, 0] += float(np.median([c.optimum.form_sd or 0.0 for c in used])) ** 2
    back_UU = np.eye(len(centred_U))
    back_UU[0] -= centre_U
    return PowerLaw(
        variables=tuple(variables),
        coefficients=tuple(float(x) for x in back_UU @ centred_U),
        covariance=tuple(tuple(float(x) for x in row) for row in back_UU @ covariance_UU @ back_UU.T),
        dof=dof,
        misfit_sd=math.sqrt(between),
        confidence=confidence,
        used=tuple(c.key for c in used),
        left_out=left_out,
    )


def _some(labels: Sequence[str]) -> str:
    return "; ".join(labels) if len(labels) <= 3 else f"{len(labels)} cells, {labels[0]} the first"


def _refusal(
    used: Sequence[CellOptimum], variables: Sequence[str], left_out: Sequence[tuple[str, str, str]]
) -> str | None:
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
    x_CU = _design(used, variables)
    if np.linalg.matrix_rank(x_CU - x_CU.mean(axis=0) * (np.arange(unknowns) > 0), tol=1e-6) < unknowns:
        return f"law: {' and '.join(variables)} vary only together in the cells with an optimum: too few exponents"
    return None


def _design(cells: Sequence[CellOptimum], variables: Sequence[str]) -> Floats:
    return np.array([[1.0, *(math.log(getattr(c, v)) for v in variables)] for c in cells])


def _number(value: float | None) -> float:
    assert value is not None, "an uncensored optimum has all its numbers"
    return value


def _variance(cell: CellOptimum) -> float:
    """Return the variance of ln lr*: of t with dof degrees of freedom, bounded where that has none."""
    dof = max(_number(cell.optimum.dof), 3.0)
    return float(max(_number(cell.optimum.log_sd), SD_FLOOR) ** 2 * dof / (dof - 2.0))


def _solve(x_CU: Floats, y_C: Floats, weight_C: Floats) -> Floats:
    root = np.sqrt(weight_C)
    solution = np.linalg.lstsq(x_CU * root[:, None], y_C * root, rcond=None)[0]
    return np.asarray(solution, dtype=np.float64)


def _between(x_CU: Floats, lr_C: Floats, within_C: Floats) -> float:
    """Return the variance between cells at which the weighted squares equal their dof (Paule and Mandel 1982), or 0."""
    dof = len(lr_C) - x_CU.shape[1]

    def excess(between: float) -> float:
        weight_C = 1.0 / (within_C + between)
        residual_C = lr_C - x_CU @ _solve(x_CU, lr_C, weight_C)
        return float(np.sum(weight_C * np.square(residual_C))) - float(dof)

    if excess(0.0) <= 0.0:
        return 0.0
    low: float = 0.0
    high: float = float(np.max(within_C)) + float(np.var(lr_C)) * len(lr_C)
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
    return float(0.5 * (low + high))


def _clusters(cells: Sequence[CellOptimum]) -> NDArray[np.intp]:
    """Return the cluster of each cell, shape [C]: cells that share a trial, directly or by others, are in one."""
    cluster_C = np.arange(len(cells))
    owner: dict[str, int] = {}
    for i, cell in enumerate(cells):
        for key in {result.key for result in cell.results}:
            first = owner.setdefault(key, i)
            cluster_C[cluster_C == cluster_C[i]] = cluster_C[first]
    return np.unique(cluster_C, return_inverse=True)[1]


def _told_apart(x_CU: Floats, cluster_C: NDArray[np.intp]) -> int:
    """Return how many unknowns only clusters tell apart: the columns that are constant in each."""
    spread_GU = [np.ptp(x_CU[cluster_C == g], axis=0) for g in range(cluster_C.max() + 1)]
    return int(np.count_nonzero(np.max(spread_GU, axis=0) < SD_FLOOR))


def _bootstrap(
    x_CU: Floats,
    lr_C: Floats,
    weight_C: Floats,
    *,
    cluster_C: NDArray[np.intp],
    rng: np.random.Generator,
    draws: int,
) -> tuple[Floats, Floats]:
    """Return the estimate and its covariance over draws of standardised residuals, of whole cells or clusters."""
    root_C = np.sqrt(weight_C)
    q_CU, r_UU = np.linalg.qr(x_CU * root_C[:, None])
    estimate_U = _solve(x_CU, lr_C, weight_C)
    residual_C = (lr_C - x_CU @ estimate_U) * root_C
    clusters = int(cluster_C.max()) + 1
    if clusters == len(lr_C):
        leverage_C = np.minimum(np.sum(q_CU**2, axis=1), 1.0 - 1e-9)
        standard_C = residual_C / np.sqrt(1.0 - leverage_C)
        drawn_RC = rng.choice(standard_C, size=(draws, len(standard_C)))
        signs_RC = rng.choice(np.array([-1.0, 1.0]), size=drawn_RC.shape)
    else:
        drawn_RC = _standardised(residual_C, q_CU, cluster_C)[None, :]
        signs_RC = rng.choice(np.array([-1.0, 1.0]), size=(draws, clusters))[:, cluster_C]
    shift_RU = np.linalg.solve(r_UU, q_CU.T @ (drawn_RC * signs_RC).T).T
    return estimate_U, np.asarray(shift_RU.T @ shift_RU / draws)


def _standardised(residual_C: Floats, q_CU: Floats, cluster_C: NDArray[np.intp]) -> Floats:
    """Return the residuals of each cluster, times (1 - leverage)^(-1/2), a matrix of its cells."""
    standard_C = np.empty_like(residual_C)
    for g in range(int(cluster_C.max()) + 1):
        of = np.flatnonzero(cluster_C == g)
        value, vector = np.linalg.eigh(np.eye(len(of)) - q_CU[of] @ q_CU[of].T)
        standard_C[of] = vector @ ((vector.T @ residual_C[of]) / np.sqrt(np.maximum(value, 1e-9)))
    return standard_C


def _rng(seed: str | int) -> np.random.Generator:
    digest = hashlib.sha256(f"powerlaw\x1f{seed}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
