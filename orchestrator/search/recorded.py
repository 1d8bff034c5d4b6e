"""Optuna's samplers on recorded runs: one study a cell, told of the run that was nearest to what it asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.search.samplers import SAMPLERS
from sweeps.choose import Target
from sweeps.errors import unknown_name
from sweeps.laws.published import Question, published
from sweeps.replay.picking import Oracle, Picker, by_turns, pick_at_random, pick_for_law

STARTUP = 3  # random trials of a cell before TPE and GP look at results
PRIOR_LAW = "step-law"  # whose LR and batch `gp+law` tries first in each cell


def picker_of(name: str) -> Picker:
    """Return what picks runs of a recorded table: one of PICKERS. Raises ConfigError."""
    if name not in PICKERS:
        raise unknown_name("sampler", name, PICKERS, "sampler")
    return PICKERS[name]


def _pick_by_optuna(
    oracle: Oracle, targets: Sequence[Target], trials: int, seed: int, *, sampler: str, prior_law: str | None = None
) -> None:
    """Take runs of each cell by turns, each from a study of its own over its ranges of LR and batch."""
    del targets
    studies: dict[tuple[float, float], _CellStudy] = {}
    for cell in by_turns(oracle.table, trials):
        if oracle.left(cell):
            if cell not in studies:
                studies[cell] = _CellStudy(oracle, cell, sampler=sampler, seed=seed + len(studies), prior_law=prior_law)
            studies[cell].step()


class _CellStudy:
    """One Optuna study over (lr, batch) of one cell."""

    def __init__(
        self, oracle: Oracle, cell: tuple[float, float], *, sampler: str, seed: int, prior_law: str | None
    ) -> None:
        runs = oracle.table.cell(*cell)
        self._oracle, self._cell = oracle, cell
        ranges = {
            "lr": FloatDistribution(float(runs.lr.min()), float(runs.lr.max()), log=True),
            "batch_tokens": FloatDistribution(float(runs.batch_tokens.min()), float(runs.batch_tokens.max()), log=True),
        }
        self._space: dict[str, BaseDistribution] = dict(ranges)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=SAMPLERS[sampler](seed, STARTUP), direction="minimize")
        if prior_law is not None:
            answer = published(prior_law).ask(Question(tokens=cell[1], parameters=cell[0]))
            asked = {"lr": answer.lr, "batch_tokens": answer.batch_tokens or 1.0}
            self._study.enqueue_trial({n: min(max(x, ranges[n].low), ranges[n].high) for n, x in asked.items()})

    def step(self) -> None:
        """Ask, take the nearest run, and tell what it was and gave."""
        asked = self._study.ask(self._space)
        index = self._oracle.nearest(self._cell, **asked.params)
        loss = self._oracle.take(index)
        self._study.tell(asked, state=TrialState.FAIL)  # what was run lies beside it
        table = self._oracle.table
        ran = {"lr": float(table.lr[index]), "batch_tokens": float(table.batch_tokens[index])}
        if math.isfinite(loss):
            self._study.add_trial(create_trial(params=ran, distributions=self._space, value=loss))


PICKERS: Mapping[str, Picker] = {
    "law": pick_for_law,
    "random": pick_at_random,
    "qmc": partial(_pick_by_optuna, sampler="qmc"),
    "tpe": partial(_pick_by_optuna, sampler="tpe"),
    "gp": partial(_pick_by_optuna, sampler="gp"),
    "gp+law": partial(_pick_by_optuna, sampler="gp", prior_law=PRIOR_LAW),
}
