"""Samplers on recorded runs: who asks for a place gets the nearest run not taken yet, and sees no other losses."""

# R runs

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sweeps.choose import Pool, Target, next_places, spread_out, trial_and_flops
from sweeps.replay.table import Table
from sweeps.surrogate import Surface, fit_surface, rows_of

Floats = NDArray[np.float64]

FIRST = 8  # places of our own sampler's starting design; assumed
WAVE = 1  # places it chooses at once: recorded runs take no time


@dataclass
class Oracle:
    """Recorded runs that give their losses away one at a time; `taken` are their indices, in order."""

    table: Table
    taken: list[int] = field(default_factory=list)

    def take(self, index: int) -> float:
        """Return the loss of a run."""
        assert index not in self.taken, "each run is taken once"
        self.taken.append(index)
        return float(self.table.loss[index])

    def nearest(self, cell: tuple[float, float], *, lr: float, batch_tokens: float) -> int:
        """Return the run of a (parameters, tokens) nearest to an LR and a batch, in logs, of those not taken."""
        table = self.table
        free = (table.parameters == cell[0]) & (table.tokens == cell[1])
        free[self.taken] = False
        indices = np.flatnonzero(free)
        apart_R = np.log(table.lr[indices] / lr) ** 2 + np.log(table.batch_tokens[indices] / batch_tokens) ** 2
        return int(indices[np.argmin(apart_R)])

    def left(self, cell: tuple[float, float]) -> int:
        """Return how many runs of a cell are not taken."""
        table = self.table
        free = (table.parameters == cell[0]) & (table.tokens == cell[1])
        free[self.taken] = False
        return int(np.count_nonzero(free))


Picker = Callable[[Oracle, Sequence[Target], int, int], None]
"""Takes this many runs: (oracle, targets, trials, seed)."""


def pick_for_law(oracle: Oracle, targets: Sequence[Target], trials: int, seed: int) -> None:
    """Take the runs that `sweeps.choose` asks for.

    A run costs the same share of the budget as a trial as its FLOPs are of a mean run's: both are counted.
    """
    rng = np.random.default_rng(seed)
    places_P4 = oracle.table.places
    costs_P = trial_and_flops(places_P4)
    for index in spread_out(places_P4, min(FIRST, trials), rng=rng):
        oracle.take(index)
    surface: Surface | None = None
    while len(oracle.taken) < min(trials, len(oracle.table)):
        surface = fitted(oracle.table, oracle.taken, places_P4=places_P4, start=surface)
        seeds_P = np.zeros(len(places_P4))
        seeds_P[oracle.taken] = 1.0
        count = min(WAVE, trials - len(oracle.taken))
        pool = Pool(places_P4, costs_P, seeds_P)
        for index in next_places(surface, pool, targets=targets, count=count):
            oracle.take(index)


def pick_at_random(oracle: Oracle, targets: Sequence[Target], trials: int, seed: int) -> None:
    """Take runs of each cell by turns, at LRs and batches drawn log-uniformly from the cell's ranges."""
    del targets
    rng = np.random.default_rng(seed)
    for cell in by_turns(oracle.table, trials):
        if oracle.left(cell):
            of = oracle.table.cell(*cell)
            lr, batch = (math.exp(rng.uniform(*np.log([x.min(), x.max()]))) for x in (of.lr, of.batch_tokens))
            oracle.take(oracle.nearest(cell, lr=lr, batch_tokens=batch))


def by_turns(table: Table, trials: int) -> list[tuple[float, float]]:
    """Return the cells that trials are spent on, one after the other."""
    cells = table.cells()
    return [cells[i % len(cells)] for i in range(trials)]


def fitted(
    table: Table, taken: Sequence[int] | NDArray[np.intp], *, places_P4: Floats, start: Surface | None = None
) -> Surface:
    """Return the joint surrogate of some runs of a table."""
    runs = table.of(np.asarray(taken, dtype=np.intp))
    return fit_surface(rows_of(np.column_stack([runs.places, runs.loss])), places=places_P4, start=start)
