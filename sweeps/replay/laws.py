"""Laws on a table of recorded trainings: fitted on one part, asked at cells of another, scored by the loss gap."""

# R runs

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sweeps.choose import Target
from sweeps.errors import ConfigError, FitError, unknown_name
from sweeps.laws.published import PUBLISHED, Question, published
from sweeps.replay.gaps import GapSurface
from sweeps.replay.picking import Oracle, Picker, fitted
from sweeps.replay.table import Table
from sweeps.spec import Json
from sweeps.surrogate import Recommendation

RECIPE = 0.0025  # Step Law's recipe keeps runs below (1 + this) x the cell's minimum (arXiv:2503.04715); published


@dataclass(frozen=True, slots=True)
class CellGap:
    """What a law recommends for one target cell, and what that costs.

    Attributes:
        lr, batch_tokens: recommended.
        gap_per_mille: loss there above the cell's minimum, in thousandths.
        lr_interval, batch_interval: of the law, None where it has none.
    """

    params: float
    tokens: float
    lr: float
    batch_tokens: float
    gap_per_mille: float
    lr_interval: tuple[float, float] | None = None
    batch_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Score:
    """The gaps of one law at all targets.

    Attributes:
        law: which one.
        sampler: what chose the runs; None: all of them.
        seed: of the sampler.
        trials: runs fitted.
        flops_share: of all training runs.
        steps: (trials, mean gap) as the sampler went on.
    """

    law: str
    sampler: str | None
    seed: int
    trials: int
    flops_share: float
    cells: tuple[CellGap, ...]
    steps: tuple[tuple[int, float], ...] = ()

    @property
    def mean(self) -> float:
        """The mean gap, per mille."""
        return float(np.mean([cell.gap_per_mille for cell in self.cells]))

    @property
    def worst(self) -> float:
        """The largest gap, per mille."""
        return max(cell.gap_per_mille for cell in self.cells)


Advice = Mapping[tuple[float, float], Recommendation]
Advise = Callable[[Table, Sequence[int], Sequence[tuple[float, float]]], Advice]
"""(runs, which of them, target cells) -> what to use at each (parameters, tokens)."""


def score_law(name: str, train: Table, target: Table) -> Score:
    """Return the gaps of a law fitted on all runs of a table.

    Raises:
        ConfigError: no such law, or a target cell with too few runs.
        FitError: the law cannot be fitted, or says nothing of a target.
    """
    surfaces = surfaces_of(target)
    everything = list(range(len(train)))
    cells = _gaps(adviser(name)(train, everything, list(surfaces)), surfaces)
    return Score(law=name, sampler=None, seed=0, trials=len(train), flops_share=1.0, cells=cells)


def score_sampler(
    name: str,
    picker: Picker,
    train: Table,
    target: Table,
    *,
    sampler: str,
    trials: int,
    seed: int,
    steps: Sequence[int] = (),
) -> Score:
    """Return the gaps of a law fitted on the runs that a sampler picked; it sees no run of the target's cells.

    `steps` are numbers of trials at which the law is scored as well. Raises as `score_law`.
    """
    surfaces = surfaces_of(target)
    oracle = Oracle(train)
    picker(oracle, [Target(tokens=tokens, parameters=parameters) for parameters, tokens in surfaces], trials, seed)
    advise = adviser(name)

    def gaps(count: int) -> tuple[CellGap, ...]:
        return _gaps(advise(train, oracle.taken[:count], list(surfaces)), surfaces)

    walked = tuple((n, float(np.mean([c.gap_per_mille for c in gaps(n)]))) for n in steps if n <= len(oracle.taken))
    return Score(
        law=name,
        sampler=sampler,
        seed=seed,
        trials=len(oracle.taken),
        flops_share=float(train.flops[oracle.taken].sum() / train.flops.sum()),
        cells=gaps(len(oracle.taken)),
        steps=walked,
    )


def leave_out(name: str, runs: Table, column: str) -> Score:
    """Return the gaps of a law at the cells of each value of a column, fitted on all others. Raises as `score_law`."""
    if column not in runs.columns:
        raise unknown_name("leave-out", column, runs.columns, "column")
    values = sorted(set(runs.columns[column].tolist()))
    if len(values) < 2:
        raise ConfigError(f"leave-out: {column} has one value only")
    cells: list[CellGap] = []
    for value in values:
        out = runs.columns[column] == value
        cells += score_law(name, runs.of(~out), runs.of(out)).cells
    return Score(law=name, sampler=None, seed=0, trials=len(runs), flops_share=1.0, cells=tuple(cells))


def surfaces_of(target: Table) -> dict[tuple[float, float], GapSurface]:
    """Return the loss surface of every target cell. Raises ConfigError where one has too few runs."""
    return {cell: GapSurface.of(target.cell(*cell)) for cell in target.cells()}


def to_json(scores: Sequence[Score]) -> Json:
    """Return scores of one law as JSON: means over seeds, and the cells of the first."""
    first = scores[0]
    return {
        "mean_gap_per_mille": float(np.mean([score.mean for score in scores])),
        "max_gap_per_mille": float(np.mean([score.worst for score in scores])),
        "cells": [asdict(cell) for cell in first.cells],
        "flops_share": float(np.mean([score.flops_share for score in scores])),
        "trials": first.trials,
        "seeds": len(scores),
        "law": first.law,
        "sampler": first.sampler,
        "gaps": [score.mean for score in scores],
        "steps": [
            [first.steps[i][0], float(np.mean([score.steps[i][1] for score in scores]))]
            for i in range(len(first.steps))
        ],
    }


def adviser(name: str) -> Advise:
    """Return what makes a law's recommendations: one of ADVISERS, or a published law. Raises ConfigError."""
    if name in ADVISERS:
        return ADVISERS[name]
    if name in PUBLISHED:
        return lambda runs, taken, cells: _published(name, cells)
    raise unknown_name("law", name, [*ADVISERS, *PUBLISHED], "law")


def _gaps(advice: Advice, surfaces: Mapping[tuple[float, float], GapSurface]) -> tuple[CellGap, ...]:
    gaps = []
    for (parameters, tokens), surface in surfaces.items():
        said = advice[(parameters, tokens)]
        sure = said.lr_low < said.lr_high
        gaps.append(
            CellGap(
                params=parameters,
                tokens=tokens,
                lr=said.lr,
                batch_tokens=said.batch_tokens,
                gap_per_mille=surface.gap_per_mille(said.lr, said.batch_tokens),
                lr_interval=(said.lr_low, said.lr_high) if sure else None,
                batch_interval=(said.batch_low, said.batch_high) if sure else None,
            )
        )
    return tuple(gaps)


def _joint(runs: Table, taken: Sequence[int], cells: Sequence[tuple[float, float]]) -> Advice:
    """Return what the joint surrogate says (`sweeps.surrogate`)."""
    surface = fitted(runs, taken, places_P4=runs.places)
    return {cell: surface.recommend(tokens=cell[1], parameters=cell[0]) for cell in cells}


def _recipe(within: float) -> Advise:
    """Return Step Law's recipe: least squares through all runs below (1 + within) x their cell's minimum.

    ln lr on ln N and ln D, ln B on ln D (arXiv:2503.04715; their code/fit_tool.py).
    """

    def advise(runs: Table, taken: Sequence[int], cells: Sequence[tuple[float, float]]) -> Advice:
        seen = runs.of(np.asarray(taken, dtype=np.intp))
        seen = seen.of(np.isfinite(seen.loss))
        best = {cell: float(seen.cell(*cell).loss.min()) for cell in seen.cells()}
        floor_R = np.array([best[cell] for cell in zip(seen.parameters.tolist(), seen.tokens.tolist(), strict=True)])
        kept = seen.of(seen.loss < (1.0 + within) * floor_R)
        if len(best) < 3:
            raise FitError(f"law: the recipe needs 3 cells at least, got {len(best)}")
        ones = np.ones(len(kept))
        lr = np.linalg.lstsq(np.column_stack([ones, np.log(kept.parameters), np.log(kept.tokens)]), np.log(kept.lr))[0]
        batch = np.linalg.lstsq(np.column_stack([ones, np.log(kept.tokens)]), np.log(kept.batch_tokens))[0]
        return {
            (n, t): _certain(
                math.exp(float(lr @ [1.0, math.log(n), math.log(t)])), math.exp(float(batch @ [1.0, math.log(t)]))
            )
            for n, t in cells
        }

    return advise


def _published(name: str, cells: Sequence[tuple[float, float]]) -> Advice:
    """Return what a published law says. Raises FitError where it has no batch of its own."""
    found = {}
    for parameters, tokens in cells:
        answer = published(name).ask(Question(tokens=tokens, parameters=parameters))
        if answer.batch_tokens is None:
            raise FitError(f"law: {name} says nothing of the batch size")
        found[(parameters, tokens)] = _certain(answer.lr, answer.batch_tokens)
    return found


def _certain(lr: float, batch: float) -> Recommendation:
    return Recommendation(lr, lr, lr, batch, batch, batch, convention="batch free", gap=0.0, confidence=0.95)


ADVISERS: Mapping[str, Advise] = {
    "joint": _joint,
    "recipe": _recipe(RECIPE),
    "recipe-0.1%": _recipe(0.001),
    "recipe-0.5%": _recipe(0.005),
}
