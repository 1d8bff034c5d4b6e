"""Weighted least squares of points that each have an uncertainty of their own, with a covariance that covers.

Weights are 1 / (variance of the point + variance between points), the latter by Paule and Mandel (1982). The covariance
is that of a bootstrap over whole points' residuals, so that every draw has the design as it is (docs/laws.md).
"""

# C points (cells), U unknowns (the constant first), R bootstrap draws, G clusters

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_CLUSTERS = 5  # fewer say too little of their own scatter; assumed
SD_FLOOR = 1e-6  # of ln lr: an exact optimum still has a finite weight


@dataclass(frozen=True)
class Regression:
    """What least squares found.

    Attributes:
        estimate: shape [U].
        covariance: of the estimate, shape [U, U].
        dof: points less unknowns; or clusters of points less the unknowns that only they tell apart.
        between: variance between points beyond their own.
        squares: weighted squares of the residuals, by the points' own variance and `between`.
    """

    estimate: Floats
    covariance: Floats
    dof: int
    between: float
    squares: float


def regress(
    x_CU: Floats,
    y_C: Floats,
    within_C: Floats,
    *,
    cluster_C: NDArray[np.intp],
    seed: str | int,
    common_sd: float = 0.0,
    draws: int = 1000,
) -> Regression:
    """Return the regression of y on x, whose first column is 1 and whose others vary.

    Where there are LEAST_CLUSTERS clusters and fewer than points, whole clusters are drawn: each keeps its residuals,
    corrected for leverage (Bell and McCaffrey 2002), under a random sign. `common_sd` is an error that all points
    share: it goes to the constant.
    """
    centre_U = np.concatenate(([0.0], x_CU[:, 1:].mean(axis=0)))
    between = _between(x_CU - centre_U, y_C, within_C)
    weight_C = 1.0 / (within_C + between)
    clusters = int(cluster_C.max()) + 1
    rng, dof = _rng(seed), len(y_C) - x_CU.shape[1]
    if LEAST_CLUSTERS <= clusters < len(y_C):
        dof = min(dof, clusters - _told_apart(x_CU, cluster_C))
    else:
        cluster_C = np.arange(len(y_C))
    centred_U, covariance_UU = _bootstrap(x_CU - centre_U, y_C, weight_C, cluster_C=cluster_C, rng=rng, draws=draws)
    covariance_UU[0, 0] += common_sd**2
    back_UU = np.eye(len(centred_U))
    back_UU[0] -= centre_U
    residual_C = y_C - (x_CU - centre_U) @ centred_U
    return Regression(
        estimate=np.asarray(back_UU @ centred_U),
        covariance=np.asarray(back_UU @ covariance_UU @ back_UU.T),
        dof=dof,
        between=between,
        squares=float(np.sum(weight_C * np.square(residual_C))),
    )


def clusters_of(shared: Sequence[Iterable[str]]) -> NDArray[np.intp]:
    """Return the cluster of each point, shape [C]: points that share a key, directly or by others, are in one."""
    cluster_C = np.arange(len(shared))
    owner: dict[str, int] = {}
    for i, keys in enumerate(shared):
        for key in set(keys):
            first = owner.setdefault(key, i)
            cluster_C[cluster_C == cluster_C[i]] = cluster_C[first]
    return np.unique(cluster_C, return_inverse=True)[1]


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
