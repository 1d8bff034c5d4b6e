"""The law of a joint surrogate: its best LR at every cell, and the power law through them (docs/laws.md)."""

# C cells, V unknowns of the power law (ln a first), W unknowns of the surrogate

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError, FitError
from sweeps.laws.law import CONVENTIONS, REACH, SYMBOLS, Law, told
from sweeps.laws.powerlaw import VARIABLES, design, refusal
from sweeps.laws.regression import clusters_of
from sweeps.optima.basin import polynomial
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.optima.student import two_sided
from sweeps.spec import Json, LawSpec, content_key
from sweeps.surrogate.fit import fit_surface
from sweeps.surrogate.posterior import Optimal, Surface
from sweeps.surrogate.rows import rows_of_cells
from sweeps.surrogate.shape import AT

Floats = NDArray[np.float64]

SHOWN = 2.0  # a cell's basin is drawn at least this far either way
LEAST_RUNS = 8  # with a loss, of all cells: fewer leave the surrogate to its prior; assumed


def joint_cells(cells: Sequence[CellOptimum], *, confidence: float = 0.95) -> tuple[CellOptimum, ...]:
    """Return the cells, each with the best LR at its batch that all together say; as they were where they say none.

    A cell needs no optimum of its own: two LRs in it count as much as the others leave open.
    """
    if _runs(cells) < LEAST_RUNS:
        return tuple(cells)
    surface = fit_surface(rows_of_cells(cells))
    return tuple(replace(cell, optimum=_optimum(surface, cell, confidence)) if cell.results else cell for cell in cells)


def joint_law(
    cells: Sequence[CellOptimum], *, spec: LawSpec, recipe: Mapping[str, Json], sweep_key: str, version: str
) -> Law:
    """Return the power law through the joint surrogate's best LRs at the cells.

    The coefficients are linear in the surrogate's unknowns; what the power law misses of the surrogate, which bends
    with the batch, counts as scatter of the cells.

    Raises:
        FitError: fewer than LEAST_RUNS runs with a loss, or cells that do not support the exponents.
        ConfigError: a batch free law, which the surrogate has at the best batch: ask `Surface.recommend`.
    """
    if spec.convention != CONVENTIONS[0]:
        raise ConfigError(f"law.convention: a joint law of a sweep is {CONVENTIONS[0]!r}, got {spec.convention!r}")
    used = sorted((cell for cell in cells if cell.results), key=lambda c: c.key)
    if _runs(used) < LEAST_RUNS:
        raise FitError(f"law: a joint law needs at least {LEAST_RUNS} runs with a loss, got {_runs(used)}")
    refused = refusal(used, spec.variables, [])
    if refused is not None:
        raise FitError(refused)
    surface = fit_surface(rows_of_cells(used))
    coefficients_V, covariance_VV, scatter = _through(surface, used, spec.variables)
    box = {v: (float(min(getattr(c, v) for c in used)), float(max(getattr(c, v) for c in used))) for v in VARIABLES}
    wide = {v: float(spec.reach.get(v, REACH[v])) for v in VARIABLES}
    clusters = clusters_of([[r.key for r in c.results] for c in used])
    unit = str(recipe.get("unit", "token"))
    return Law(
        form="lr* = a" + "".join(f" * {SYMBOLS[v]}^{'pqr'[VARIABLES.index(v)]}" for v in spec.variables),
        convention=spec.convention,
        variables=spec.variables,
        coefficients={n: float(x) for n, x in zip(("log_a", *spec.variables), coefficients_V, strict=True)},
        covariance=tuple(tuple(float(x) for x in row) for row in covariance_VV),
        dof=surface.dof,
        units={"lr": "per step", "batch_tokens": unit, "tokens": unit, "parameters": "parameter"},
        box=box,
        reach={v: (low / wide[v], high * wide[v]) for v, (low, high) in box.items()},
        cells=tuple(
            told(replace(c, optimum=_optimum(surface, c, spec.confidence)), int(cluster))
            for c, cluster in zip(used, clusters, strict=True)
        ),
        left_out=tuple({"key": c.key, "label": c.label, "reason": "no runs"} for c in cells if not c.results),
        recipe={"fingerprint": content_key(recipe), **recipe},
        status="fitted",
        validation=None,
        noise={"seed_sd": surface.noise_sd, "misfit_sd": math.hypot(surface.own_sd[0], math.sqrt(scatter))},
        estimator=spec.estimator,
        confidence=spec.confidence,
        made_by={"version": version, "sweep_key": sweep_key},
    )


def _through(surface: Surface, cells: Sequence[CellOptimum], variables: Sequence[str]) -> tuple[Floats, Floats, float]:
    """Return the coefficients [V] of the power law through the best LRs at the cells, their covariance, the scatter."""
    optima = [_target(surface, cell) for cell in cells]
    x_CV = design(cells, variables)
    through_VC = np.linalg.pinv(x_CV)
    lr_C, slopes_CW = np.array([o.lr for o in optima]), np.stack([o.lr_slopes for o in optima])
    coefficients_V = through_VC @ lr_C
    missed_C = lr_C - x_CV @ coefficients_V
    scatter = float(np.sum(missed_C**2)) / max(len(cells) - x_CV.shape[1], 1)
    covariance_VV = through_VC @ (slopes_CW @ surface.covariance @ slopes_CW.T) @ through_VC.T
    covariance_VV += scatter * through_VC @ through_VC.T
    return coefficients_V, covariance_VV, scatter


def _runs(cells: Sequence[CellOptimum]) -> int:
    return sum(r.loss is not None and r.outcome != "diverged" for cell in cells for r in cell.results)


def _target(surface: Surface, cell: CellOptimum) -> Optimal:
    size = float(cell.parameters or 1)
    return surface.target(tokens=float(cell.tokens), parameters=size, batch_tokens=float(cell.batch_tokens))


def _optimum(surface: Surface, cell: CellOptimum, confidence: float) -> Optimum:
    """Return the surrogate's optimum of a cell as the record that figures and files hold."""
    found = _target(surface, cell)
    sd, _ = found.sds(surface.covariance)
    half = two_sided(confidence, dof=surface.dof) * sd
    lr = math.exp(found.lr)
    place = np.array([[lr, cell.batch_tokens, cell.tokens, cell.parameters or 1]], dtype=np.float64)
    height = float(surface.ln_loss(place)[0])
    lrs = [r.lr for r in cell.results if r.loss is not None and r.outcome != "diverged"]
    k = float(surface.unknowns[AT["k"]])
    return Optimum(
        lr=lr,
        low=math.exp(found.lr - half),
        high=math.exp(found.lr + half),
        log_sd=sd,
        dof=surface.dof,
        censored=None,
        loss=math.exp(height),
        noise_sd=surface.noise_sd,
        basin=polynomial(height, found.curvatures[0], k, 0.0),
        centre=found.lr,
        window=(min([lr / SHOWN, *lrs]), max([lr * SHOWN, *lrs])),
        asymmetry=(k, float(math.sqrt(surface.covariance[AT["k"], AT["k"]]))),
    )
