"""What the cells of a sweep tell each other: how noisy losses are, how curved and how lopsided basins are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sweeps.optima.basin import Curvature, Shape
from sweeps.optima.optimum import SAME, WINDOW, find_optimum, shape_of, tabulate
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import Result

Floats = NDArray[np.float64]

CUBIC = 4  # coefficients of a cubic
LIKE_CELLS = 3  # whose basins together say how curved another may be
CURVATURE_SPREAD = 0.6  # of the curvature, in its median: it doubles over a 64-fold range of batch on Step Law; assumed


def all_positive(cells: Sequence[CellOptimum]) -> bool:
    """Return whether every loss is, so that basins are of ln loss and noise is a share of it."""
    return all(r.loss is None or r.loss > 0.0 for cell in cells for r in cell.results)


def pooled_noise(cells: Sequence[CellOptimum]) -> float | None:
    """Return the sd of the loss between paired seeds as a share of it, offsets removed, pooled over cells.

    Each cell counts its LRs within the window of its best only: far off, seeds differ more. With one seed a cell it is
    the scatter about a cubic in ln lr, by its median over cells; None if no cell has five LRs there.
    """
    total, dof, relative = 0.0, 0, all_positive(cells)
    scatter: list[float] = []
    for cell in cells:
        tried = tabulate(cell.results, relative=relative)
        if tried is None:
            continue
        near = np.isfinite(tried.loss) & (np.abs(tried.log_lr - tried.log_lr[tried.best]) <= WINDOW + SAME)
        residuals = tried.residuals[near]
        seen = np.isfinite(residuals)
        own = int(np.count_nonzero(seen)) - len(residuals) - int(np.count_nonzero(seen.any(axis=0))) + 1
        if own > 0:
            total, dof = total + float(np.sum(np.square(residuals[seen]))), dof + own
        elif len(residuals) > CUBIC:
            scatter.append(_scatter(tried.log_lr[near], tried.height[near]))
    if dof:
        return math.sqrt(total / dof)
    return math.sqrt(float(np.median(scatter))) if scatter else None


def pooled_curvature(basins: Sequence[Sequence[float]]) -> Curvature | None:
    """Return what basins of like cells say of the second derivative of the loss in ln lr; None of fewer than three."""
    bends = [2.0 * basin[2] for basin in basins if len(basin) > 2 and basin[2] > 0.0]
    if len(bends) < LIKE_CELLS:
        return None
    middle = float(np.median(bends))
    return Curvature(middle, max(CURVATURE_SPREAD * middle, float(np.std(bends))))


def pooled_shape(found: Sequence[tuple[float, float] | None], prior: Shape) -> Shape:
    """Return what like cells say of the asymmetry of another, from each one's (mean, sd) under the prior.

    Their asymmetries scatter about a common one by prior.sd less prior.common, in squares.
    """
    if prior.sd == 0.0 or prior.common == 0.0:
        return prior
    scatter = prior.sd**2 - prior.common**2
    weight, total = prior.common**-2, prior.mean * prior.common**-2
    for mean, sd in (x for x in found if x is not None):
        known = sd**-2 - prior.sd**-2  # what the cell's losses add to the prior
        if known > 0.0:
            own = (mean * sd**-2 - prior.mean * prior.sd**-2) / known
            share = 1.0 / (1.0 / known + scatter)
            weight, total = weight + share, total + share * own
    return Shape(total / weight, math.sqrt(1.0 / weight + scatter), math.sqrt(1.0 / weight))


def refine(
    cells: Sequence[CellOptimum], *, estimator: str = "asymmetric", confidence: float = 0.95
) -> tuple[CellOptimum, ...]:
    """Return the cells, each optimum found again with what all say of noise and curvature."""
    noise, prior, relative = pooled_noise(cells), shape_of(estimator), all_positive(cells)

    def again(curvature: Curvature | None, shape: Shape) -> tuple[CellOptimum, ...]:
        def optimum(results: Sequence[Result]) -> Optimum:
            return find_optimum(
                results,
                estimator=estimator,
                confidence=confidence,
                noise_sd=noise,
                curvature=curvature,
                shape=shape,
                relative=relative,
            )

        return tuple(replace(c, optimum=optimum(c.results)) if c.results else c for c in cells)

    first = again(None, prior)
    curvature = pooled_curvature([c.optimum.basin for c in first])
    if curvature is None:
        return first
    return again(curvature, pooled_shape([c.optimum.asymmetry for c in first], prior))


def _scatter(log_lr: Floats, loss: Floats) -> float:
    """Return the variance about a cubic, scaled so that the median of many is unbiased (Wilson and Hilferty 1931)."""
    dof = len(loss) - CUBIC
    residual = loss - np.polynomial.Polynomial.fit(log_lr, loss, CUBIC - 1)(log_lr)
    return float(np.sum(np.square(residual))) / dof / (1.0 - 2.0 / (9.0 * dof)) ** 3
