"""Chooses the trials of a sweep for its law: of all cells together, those that tell most of it per cost."""

# P places: (lr, bracket)

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.agenda.choosers import Planner
from sweeps.choose import Pool, Target, next_places, start_of, trial_and_flops
from sweeps.laws.law import REACH
from sweeps.plan import Bracket, brackets_of, group_label, trials_of
from sweeps.spec import Range, Result, Sweep, Trial, content_key, six_digits
from sweeps.surrogate import Surface, fit_surface, rows_of
from sweeps.surrogate.law import LEAST_RUNS

Floats = NDArray[np.float64]

LR_STEP = 0.5  # octaves between the LRs that may be chosen
START = 8  # trials of the starting design; assumed


@dataclass(frozen=True)
class LawPlanner(Planner):
    """Waves of trials chosen by `sweeps.choose`, all brackets of one law together.

    The law is asked at the held-out target; without one, at every batch at the end of the reach in tokens. A wave is
    decided from complete ones alone, and the first is seeded by the sweep: the same outcomes give the same trials,
    whatever was killed in between.
    """

    sweep: Sweep

    def fields(self) -> list[tuple[Bracket, ...]]:
        """Return the brackets of each law."""
        laws: dict[str, list[Bracket]] = {}
        for bracket in brackets_of(self.sweep):
            laws.setdefault(group_label(self.sweep, bracket.variant), []).append(bracket)
        return [tuple(brackets) for brackets in laws.values()]

    def next_trials(
        self,
        field: Sequence[Bracket],
        members: Mapping[str, Sequence[Trial]],
        results: Mapping[str, Sequence[Result]],
    ) -> dict[str, list[Trial]]:
        """Return the next wave."""
        search = self.sweep.search
        asked = sum(len(trials) for trials in members.values())
        lrs = self._lrs()
        seeds_P = np.array([sum(t.lr == lr for t in members[b.key]) for lr in lrs for b in field], dtype=np.float64)
        places_P4 = np.array([_place(lr, bracket) for lr in lrs for bracket in field])
        if asked == 0:
            rng = np.random.default_rng([search.seed, int(content_key([b.key for b in field]), 16) % 2**63])
            chosen = start_of(places_P4, min(START, search.trials), rng=rng, law=search.from_law)
        else:
            surface = _surface(field, results, places_P4)
            known, untold = self._is_known(surface, field), self._lacking(field, results)
            if asked >= search.trials or (known and not untold):
                return {}
            full_P = seeds_P >= np.array([len(b.seeds) for _ in lrs for b in field])
            if known:  # all that is asked now is a law: runs in other cells
                full_P |= np.array([b.key not in untold for _ in lrs for b in field])
            most = max(len(bracket.seeds) for bracket in field)
            pool = Pool(places_P4, trial_and_flops(places_P4), np.where(full_P, most, seeds_P), most)
            count = min(search.wave, search.trials - asked)
            chosen = next_places(surface, pool, targets=self._targets(field), count=count)
        found: dict[str, list[Trial]] = {}
        for index in chosen:
            lr, bracket = lrs[index // len(field)], field[index % len(field)]
            seed = bracket.seeds[int(seeds_P[index])]
            seeds_P[index] += 1.0
            found.setdefault(bracket.key, []).extend(
                trial for trial in trials_of(self.sweep, bracket, [lr]) if trial.seed == seed
            )
        return found

    def _lrs(self) -> list[float]:
        """Return the LRs that may be chosen: those of a list, or half octaves of a range."""
        lr = self.sweep.axes.lr
        if not isinstance(lr, Range):
            return list(lr)
        count = math.ceil(math.log2(lr.high / lr.low) / LR_STEP - 1e-9) + 1
        return [six_digits(x) for x in np.geomspace(lr.low, lr.high, max(2, count)).tolist()]

    def _targets(self, field: Sequence[Bracket]) -> list[Target]:
        """Return where the law is asked: for the largest model."""
        check, largest = self.sweep.validate, max(bracket.cells[0].parameters for bracket in field)
        if check is not None:
            return [Target(float(check.tokens), float(largest or 1), float(check.batch_tokens))]
        far = max(cell.tokens for bracket in field for cell in bracket.cells)
        far_tokens = far * self.sweep.law.reach.get("tokens", REACH["tokens"])
        batches = sorted({bracket.batch_tokens for bracket in field})
        return [Target(far_tokens, float(largest or 1), float(batch)) for batch in batches]

    def _lacking(self, field: Sequence[Bracket], results: Mapping[str, Sequence[Result]]) -> set[str]:
        """Return the brackets that a law still needs runs of, by key; none where it can be fitted."""
        told = [[r for c in b.cells for r in results[c.key] if r.loss is not None] for b in field]
        cells = [cell for b, found in zip(field, told, strict=True) if found for cell in b.cells]
        varied = all(len({getattr(c, name) for c in cells}) > 1 for name in self.sweep.law.variables)
        enough = len(cells) >= len(self.sweep.law.variables) + 2 and sum(map(len, told)) >= LEAST_RUNS
        return set() if varied and enough else {b.key for b, found in zip(field, told, strict=True) if not found}

    def _is_known(self, surface: Surface, field: Sequence[Bracket]) -> bool:
        """Return whether lr* at every target is known as closely as was asked."""
        until = self.sweep.search.until
        if until is None:
            return False
        for target in self._targets(field):
            said = surface.recommend(
                tokens=target.tokens,
                parameters=target.parameters,
                batch_tokens=target.batch_tokens,
                confidence=self.sweep.law.confidence,
            )
            if math.sqrt(said.lr_high / said.lr_low) > until:
                return False
        return True


def _place(lr: float, bracket: Bracket) -> tuple[float, float, float, float]:
    """Return (lr, batch_tokens, tokens, parameters) of a bracket's longest cell."""
    longest = max(bracket.cells, key=lambda cell: cell.tokens)
    return lr, float(bracket.batch_tokens), float(longest.tokens), float(longest.parameters or 1)


def _surface(field: Sequence[Bracket], results: Mapping[str, Sequence[Result]], places_P4: Floats) -> Surface:
    points = [
        (r.lr, cell.batch_tokens, cell.tokens, cell.parameters or 1, None if r.outcome == "diverged" else r.loss)
        for bracket in field
        for cell in bracket.cells
        for r in results[cell.key]
        if r.outcome == "diverged" or r.loss is not None
    ]
    return fit_surface(rows_of(points) if points else None, places=places_P4)
