"""What would narrow a law's interval: its width at a target against the seeds of each LR, and against trials spent."""

# C cells, U unknowns (ln a first)

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import FitError
from sweeps.laws.law import Law, fit_law
from sweeps.laws.records import Prediction
from sweeps.optima.basin import Noise, Points, basin_posterior
from sweeps.optima.linex import MARGIN
from sweeps.optima.optimum import shape_of
from sweeps.optima.pooled import pooled_curvature
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.optima.tried import NOISE_FLOOR
from sweeps.spec import LawSpec

Floats = NDArray[np.float64]

SEEDS = (1, 2, 4, 8, 16)  # the numbers of seeds told of
WORTH = 0.1  # of a half-width: seeds that narrow it by less do not help; a choice
PREFIXES = 8  # of the trials, at which the law is fitted again
FORM = "asymmetric"  # the estimator whose posterior says how noise enters an optimum
KNOWN = 1e3  # observations: a noise that is taken as it is


@dataclass(frozen=True, slots=True)
class SeedWidth:
    """A number of seeds, and how far the interval at the target would reach: up to lr* x factor, down to lr* / factor.

    Predicted, but for the number that ran.
    """

    seeds: int
    factor: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What the law said at the target once so many trials had ended; None where it was refused, and why."""

    trials: int
    found: Prediction | None
    refused: str | None = None


def seed_widths(
    law: Law, cells: Sequence[CellOptimum], *, target: Mapping[str, float], seeds: Sequence[int] = SEEDS
) -> tuple[SeedWidth, ...]:
    """Return how wide the law's interval at the target would be with other numbers of seeds, ascending.

    A cell's variance is taken apart: its basin is fitted anew through its own fitted losses, with the noise of the
    sweep over the seeds there would be. What seeds do not shrink remains: the form of the basin, and the scatter of
    cells about the law. The law's half-width is then scaled by the root of the model's variances at the target,
    with so many seeds over those that ran.

    Args:
        law: fitted on the cells.
        cells: with their results; those the law was not fitted on are not looked at.
        target: as `predict` takes it.
        seeds: the numbers asked for; the one that ran (the median over cells) is added.

    Raises:
        FitError: no noise between seeds is known, or not all of the law's cells are among `cells`.
        ReachError: the target is beyond the law's reach.
    """
    fitted = {cell["key"] for cell in law.cells}
    used = [c for c in cells if c.key in fitted and c.optimum.censored is None and c.results]
    noise_sd = law.noise.get("seed_sd")
    if noise_sd is None:
        raise FitError("seeds: the law's cells say nothing of the noise between them")
    if len(used) < len(fitted):
        raise FitError(f"seeds: needs the results of all {len(fitted)} cells of the law, got {len(used)}")
    ran = round(float(np.median([len({r.seed for r in c.results}) for c in used])))
    found = law.predict(**target)
    half = math.log(found.high / found.lr)
    wanted = sorted({*seeds, ran})
    ratio_SC = _shrunk(used, noise_sd=noise_sd, law=law, factors=[s / ran for s in wanted])
    variance_S = [_variance_at(law, used, ratio_C, target=target, far=found.place != "box") for ratio_C in ratio_SC]
    now = variance_S[wanted.index(ran)]
    return tuple(SeedWidth(s, math.exp(half * math.sqrt(v / now))) for s, v in zip(wanted, variance_S, strict=True))


def seeds_line(widths: Sequence[SeedWidth], *, ran: int) -> str:
    """Return in words whether more seeds would narrow the interval, and from where on they do not."""
    now = next(w for w in widths if w.seeds == ran)
    more = [w for w in widths if w.seeds > ran]
    last = now
    for width in more:
        if math.log(width.factor) < (1.0 - WORTH) * math.log(last.factor):
            last = width
    word = "seed" if ran == 1 else "seeds"
    if last == now:
        return (
            f"The interval is x{now.factor:.2f} with {ran} {word} an LR; more would not narrow it much: it comes from "
            "cells that scatter about the law, and from the form of their basins."
        )
    near = min(more, key=lambda w: w.seeds)
    said = f"{near.seeds} seeds instead of {ran} would narrow the interval from x{now.factor:.2f} to x{near.factor:.2f}"
    if last != near:
        said += f", {last.seeds} to x{last.factor:.2f}"
    return f"{said}; more than {last.seeds} would not help much." if last != more[-1] else f"{said}."


def by_trials(
    law: Law, cells: Sequence[CellOptimum], ended: Sequence[str], *, target: Mapping[str, float]
) -> tuple[Spent, ...]:
    """Return what the law said at the target as trials ended: it is fitted again on the first of them, then more.

    It is a replay of what was known, in the order in which trials ended; a sweep that had stopped there might have
    chosen others. A trial that serves several cells counts once.

    Args:
        law: of all the trials.
        cells: with their results.
        ended: the keys of the trials, in the order in which they ended.
        target: as `predict` takes it.
    """
    known = {r.key for c in cells for r in c.results}
    order = [key for key in dict.fromkeys(ended) if key in known]
    counts = sorted({math.ceil(len(order) * (n + 1) / PREFIXES) for n in range(PREFIXES)} - {0})
    return tuple(_spent(law, cells, set(order[:count]), count=count, target=target) for count in counts)


def _spent(law: Law, cells: Sequence[CellOptimum], keys: set[str], *, count: int, target: Mapping[str, float]) -> Spent:
    nothing = Optimum(None, None, None, None, None, "too few points")
    part = [replace(c, optimum=nothing, results=tuple(r for r in c.results if r.key in keys)) for c in cells]
    try:
        fitted = fit_law(
            [c for c in part if c.results],
            spec=_spec(law),
            recipe=law.recipe,
            sweep_key=law.made_by.get("sweep_key", ""),
            version="",
        )
        return Spent(count, fitted.predict(**target))
    except FitError as error:
        return Spent(count, None, str(error))


def _spec(law: Law) -> LawSpec:
    """Return what the law was asked for."""
    return LawSpec(
        variables=law.variables,
        estimator=law.estimator,
        convention=law.convention,
        reach={name: law.reach[name][1] / high for name, (_, high) in law.box.items() if high > 0.0},
        confidence=law.confidence,
    )


def _shrunk(cells: Sequence[CellOptimum], *, noise_sd: float, law: Law, factors: Sequence[float]) -> list[Floats]:
    """Return, for each factor on the seeds, each cell's variance over that with the seeds that ran, shape [C]."""
    curvature = pooled_curvature([cell["optimum"]["basin"] for cell in law.cells])
    noise = Noise(max(noise_sd, NOISE_FLOOR), KNOWN)

    def variance(cell: CellOptimum, factor: float) -> float:
        low, high = cell.optimum.window or (0.0, math.inf)
        lrs = sorted({r.lr for r in cell.results if r.loss is not None and low / 1.01 <= r.lr <= high * 1.01})
        fitted = np.array([cell.optimum.fitted(lr) for lr in lrs])
        count = np.array([sum(r.lr == lr and r.loss is not None for r in cell.results) for lr in lrs]) * factor
        log_lr = np.log(lrs)
        points = Points(log_lr, np.log(fitted) if cell.optimum.relative else fitted, count)
        support = (float(log_lr[0]) - MARGIN, float(log_lr[-1]) + MARGIN)
        return basin_posterior(points, noise=noise, support=support, shape=shape_of(FORM), curvature=curvature).sd ** 2

    now_C = np.array([variance(cell, 1.0) for cell in cells])
    return [np.array([variance(cell, factor) for cell in cells]) / now_C for factor in factors]


def _variance_at(
    law: Law, cells: Sequence[CellOptimum], ratio_C: Floats, *, target: Mapping[str, float], far: bool
) -> float:
    """Return the variance of ln lr* at the target by the law's weights, each cell's own times its ratio."""
    x_CU = np.array([[1.0, *(math.log(getattr(c, v)) for v in law.variables)] for c in cells])
    row_U = np.array([1.0, *(math.log(target[v]) for v in law.variables)])
    centre_U = np.concatenate(([0.0], x_CU[:, 1:].mean(axis=0)))
    within_C = np.array([_variance(c.optimum) for c in cells]) * ratio_C
    misfit = (law.noise["misfit_sd"] or 0.0) ** 2
    gram_UU = (x_CU - centre_U).T @ ((x_CU - centre_U) / (within_C + misfit)[:, None])
    form = float(np.median([c.optimum.form_sd or 0.0 for c in cells])) ** 2
    at_U = row_U - centre_U
    return float(at_U @ np.linalg.solve(gram_UU, at_U)) + form + (misfit if far else 0.0)


def _variance(optimum: Optimum) -> float:
    """Return the variance of ln lr* of a cell: of t with its degrees of freedom."""
    dof = max(optimum.dof or 0.0, 3.0)
    return float((optimum.log_sd or 0.0) ** 2 * dof / (dof - 2.0))
