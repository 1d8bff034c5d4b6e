"""The best (LR, batch) of one run length and size from all its rows at once: a basin in ln lr and ln batch.

loss = c + h G(x - m - s z, k) + g z^2 / 2,  x = ln lr, z = ln batch - b, G as in `basin.rise`

A valley: at each batch a LINEX basin in ln lr whose minimum moves along a ridge of slope s; along the ridge a parabola
with its minimum at b. The minimum is at (m, b).
"""

# P points, U unknowns

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.basin import FORM_ERROR, Shape, rise
from sweeps.optima.records import CellOptimum
from sweeps.optima.student import two_sided
from sweeps.optima.tried import LONE_NOISE, NOISE_FLOOR, POOLED_DOF, SAME, tabulate

Floats = NDArray[np.float64]

WINDOW = math.log(4.0)  # rows within this much of the best (ln lr and ln batch) are fitted; assumed
SHAPE = Shape(0.7, 0.6)  # of the asymmetry in ln lr: measured on Step Law (`optimum.LOPSIDED`)
UNKNOWNS = 7  # c, m, b, s, k, ln h, ln g
RIDGE = (0.5, 0.5)  # prior mean and sd of s: lr* over batch; Adam's square root, from 0 to SGD's 1; assumed
TURNS = 60
ROUNDS = 3  # of weighing the rows by how far above the minimum the fit puts them


@dataclass(frozen=True, slots=True)
class PlaneOptimum:
    """The best LR and batch together, or why there are none.

    Attributes:
        lr, batch_tokens: the estimate; where censored, those of the best row.
        lr_interval, batch_interval: confidence intervals; None where censored.
        covariance: of (ln lr, ln batch), rows in that order; None where censored.
        dof: degrees of freedom behind it.
        censored: "lr edge low", "lr edge high", "batch edge low", "batch edge high", "too few points" or "no minimum".
        loss: the loss there by the basin.
        ridge: d ln lr* / d ln batch there.
    """

    lr: float | None
    batch_tokens: float | None
    lr_interval: tuple[float, float] | None = None
    batch_interval: tuple[float, float] | None = None
    covariance: tuple[tuple[float, float], tuple[float, float]] | None = None
    dof: float | None = None
    censored: str | None = None
    loss: float | None = None
    ridge: float | None = None


@dataclass(frozen=True)
class _Rows:
    """Points of all cells, shape [P] each; `height` is ln loss, or the loss where not all are positive."""

    x: Floats
    z: Floats
    height: Floats
    count: Floats
    relative: bool


def find_plane(
    cells: Sequence[CellOptimum], *, confidence: float = 0.95, noise_sd: float | None = None
) -> PlaneOptimum:
    """Return the best LR and batch of the cells of one (T, N), from their results.

    Rows near the best count most: the basin's form is trusted to FORM_ERROR of a row's rise. The best row on an edge
    of the batches, or on an edge of its cell's LRs, censors. `noise_sd` is that of other cells, as a share of the loss.
    """
    rows, edge = _rows(cells)
    if rows is None:
        return PlaneOptimum(None, None, censored="too few points")
    best = int(np.argmin(rows.height))
    level = math.exp(float(rows.height[best])) if rows.relative else float(rows.height[best])
    none = PlaneOptimum(math.exp(float(rows.x[best])), math.exp(float(rows.z[best])), loss=level)
    if edge is not None:
        return replace(none, censored=edge)
    near = (np.abs(rows.x - rows.x[best]) <= WINDOW + SAME) & (np.abs(rows.z - rows.z[best]) <= WINDOW + SAME)
    rows = _Rows(rows.x[near], rows.z[near], rows.height[near], rows.count[near], rows.relative)
    if len(rows.x) <= UNKNOWNS or len(np.unique(rows.z)) < 3:
        return replace(none, censored="too few points")
    found = _fit(rows, noise_sd)
    if found is None:
        return replace(none, censored="no minimum")
    unknown_U, covariance_UU, dof = found
    half = two_sided(confidence, dof=dof) * np.sqrt(np.diag(covariance_UU))
    x, z = float(unknown_U[1]), float(unknown_U[2])
    spread_x, spread_z = float(half[1]), float(half[2])
    inside = rows.x.min() < x < rows.x.max() and rows.z.min() < z < rows.z.max()
    if not (inside and 2.0 * spread_x < np.ptp(rows.x) and 2.0 * spread_z < np.ptp(rows.z)):
        return replace(none, censored="no minimum")
    return PlaneOptimum(
        lr=math.exp(x),
        batch_tokens=math.exp(z),
        lr_interval=(math.exp(x - spread_x), math.exp(x + spread_x)),
        batch_interval=(math.exp(z - spread_z), math.exp(z + spread_z)),
        covariance=(
            (float(covariance_UU[1, 1]), float(covariance_UU[1, 2])),
            (float(covariance_UU[2, 1]), float(covariance_UU[2, 2])),
        ),
        dof=dof,
        loss=math.exp(float(unknown_U[0])) if rows.relative else float(unknown_U[0]),
        ridge=float(unknown_U[3]),
    )


def _rows(cells: Sequence[CellOptimum]) -> tuple[_Rows | None, str | None]:
    """Return the rows that gave a loss, and the edge on which the best one is."""
    ordered = sorted(cells, key=lambda c: (c.batch_tokens, c.key))
    relative = all(r.loss is None or r.loss > 0.0 for c in ordered for r in c.results)
    told = [(math.log(c.batch_tokens), tabulate(c.results, relative=relative)) for c in ordered]
    tables = [(z, tried) for z, tried in told if tried is not None]
    if not tables:
        return None, None
    finite = [np.isfinite(t.loss) for _, t in tables]
    rows = _Rows(
        np.concatenate([t.log_lr[f] for (_, t), f in zip(tables, finite, strict=True)]),
        np.concatenate([np.full(np.count_nonzero(f), z) for (z, _), f in zip(tables, finite, strict=True)]),
        np.concatenate([t.height[f] for (_, t), f in zip(tables, finite, strict=True)]),
        np.concatenate([t.count[f] for (_, t), f in zip(tables, finite, strict=True)]),
        all(t.relative for _, t in tables),
    )
    z, tried = min(tables, key=lambda table: float(table[1].loss[table[1].best]))
    edges = {
        "batch edge low": z == tables[0][0],
        "batch edge high": z == tables[-1][0],
        "lr edge low": tried.best == 0,
        "lr edge high": tried.best == len(tried.log_lr) - 1,
    }
    return rows, next((name for name, true in edges.items() if true), None)


def _fit(rows: _Rows, noise_sd: float | None) -> tuple[Floats, Floats, float] | None:
    """Return the unknowns (UNKNOWNS), their covariance and degrees of freedom; None where no minimum is found."""
    prior = LONE_NOISE.sd if noise_sd is None else max(noise_sd, NOISE_FLOOR)
    prior_dof = LONE_NOISE.dof if noise_sd is None else POOLED_DOF
    best = int(np.argmin(rows.height))
    lowest = float(rows.height[best])
    spread = max(float(np.ptp(rows.height)), NOISE_FLOOR)
    unknown_U = np.array(
        [lowest, rows.x[best], rows.z[best], RIDGE[0], SHAPE.mean, *(2 * [math.log(spread)])], dtype=np.float64
    )
    noise = prior
    for _ in range(ROUNDS):
        up_P = np.maximum(_height(unknown_U, rows) - unknown_U[0], 0.0)
        sd_P = np.sqrt(noise**2 / rows.count + (FORM_ERROR * up_P) ** 2)
        solved = _newton(unknown_U, rows, sd_P)
        if solved is None:
            return None
        unknown_U, covariance_UU = solved
        free = max(1.0, len(rows.x) - UNKNOWNS)
        # rows where noise outweighs the form's error tell the noise
        share_P = (noise**2 / rows.count / sd_P**2) ** 2
        squares_P = np.square(rows.height - _height(unknown_U, rows)) * rows.count
        own = float(share_P @ squares_P / share_P.sum()) * len(rows.x) / free
        noise = math.sqrt((prior_dof * prior**2 + free * own) / (prior_dof + free))
    dof = prior_dof + free
    return unknown_U, covariance_UU, dof


def _height(unknown_U: Floats, rows: _Rows) -> Floats:
    """Return the basin's height at each row, shape [P]."""
    c, m, b, s, k, log_h, log_g = unknown_U
    z = rows.z - b
    return np.asarray(c + math.exp(log_h) * rise(rows.x - m - s * z, k) + 0.5 * math.exp(log_g) * z * z)


def _newton(start_U: Floats, rows: _Rows, sd_P: Floats) -> tuple[Floats, Floats] | None:
    """Return the unknowns of least weighted squares (Levenberg and Marquardt) and their covariance."""
    unknown_U, damping = start_U, 1e-2
    residual = _residual(unknown_U, rows, sd_P)
    cost = float(residual @ residual)
    for _ in range(TURNS):
        slope_PU = _slope(unknown_U, rows, sd_P)
        normal_UU = slope_PU.T @ slope_PU
        step = np.linalg.solve(normal_UU + damping * np.diag(np.diag(normal_UU) + 1e-12), -slope_PU.T @ residual)
        trial_U = unknown_U + np.clip(step, -1.0, 1.0)
        there = _residual(trial_U, rows, sd_P)
        if float(there @ there) < cost:
            gained = cost - float(there @ there)
            unknown_U, residual, cost = trial_U, there, cost - gained
            damping = max(damping / 5.0, 1e-9)
            if gained < 1e-10 * (1.0 + cost):
                break
        else:
            damping *= 5.0
            if damping > 1e9:
                break
    slope_PU = _slope(unknown_U, rows, sd_P)
    normal_UU = slope_PU.T @ slope_PU
    if np.linalg.cond(normal_UU) > 1e14:
        return None
    return unknown_U, np.asarray(np.linalg.inv(normal_UU), dtype=np.float64)


def _residual(unknown_U: Floats, rows: _Rows, sd_P: Floats) -> Floats:
    """Return the weighted residuals of the rows, then those of the priors of s and k."""
    s, k = float(unknown_U[3]), float(unknown_U[4])
    prior = [(s - RIDGE[0]) / RIDGE[1], (k - SHAPE.mean) / SHAPE.sd]
    return np.concatenate(((_height(unknown_U, rows) - rows.height) / sd_P, prior))


def _slope(unknown_U: Floats, rows: _Rows, sd_P: Floats) -> Floats:
    """Return the derivative of the residuals by each unknown, by central differences, shape [P + 2, U]."""
    step = 1e-5
    columns = []
    for u in range(UNKNOWNS):
        move = np.zeros(UNKNOWNS)
        move[u] = step
        up, down = (_residual(unknown_U + sign * move, rows, sd_P) for sign in (1.0, -1.0))
        columns.append((up - down) / (2.0 * step))
    return np.column_stack(columns)
