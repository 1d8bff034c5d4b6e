"""A sampler for Optuna that chooses the trial which tells most of the best LR at a target, per cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from sweeps.choose import Pool, Target, next_places, start_of, trial_and_flops
from sweeps.errors import ConfigError
from sweeps.surrogate import Recommendation, Surface, fit_surface, rows_of

Floats = NDArray[np.float64]
Cost = Callable[[Floats], Floats]

AXES = ("lr", "batch_tokens", "tokens", "parameters")
LR_STEP = 0.5  # octaves between the LRs it may choose; assumed
BATCH_STEP = 1.0  # of batches and tokens, where these are ranges


class LawSampler(BaseSampler):
    """Chooses (lr, batch_tokens, tokens, parameters) for the law, as `sweeps.choose` does.

    The objective is the final loss, minimised. A pruned or failed trial counts as diverged, one that runs as if it had
    ended. Everything is worked out of the study's own trials and the seed: a study that is stored and loaded again goes
    on as if it had not stopped, and a second worker needs nothing but the study.

        space = {"lr": FloatDistribution(1e-4, 1e-1, log=True), "tokens": CategoricalDistribution([1e8, 2e8, 4e8])}
        sampler = LawSampler(space, targets=[Target(tokens=1.6e9)], seed=0)
        optuna.create_study(sampler=sampler).optimize(objective, n_trials=40, callbacks=[sampler.stop_at(1.2)])

    Args:
        space: distributions of AXES; `lr` at least. Axes that are missing have one value. The objective must suggest
            the same ones. Parameters of other names are drawn at random.
        targets: where the law will be asked.
        seed: of the starting design and of draws.
        start: trials of the starting design.
        law: a published law (`sweeps.laws.published`) whose answers are among the first half of these.
        cost: of one trial at each place (lr, batch_tokens, tokens, parameters), [P, 4] -> [P].
        most_seeds: trials of one place; above 1 the objective should tell them apart by `trial.number`.

    Raises:
        ConfigError: a space without lr, or of other axes; no target; a law that is not published or says nothing of
            these places.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        targets: Sequence[Target],
        seed: int = 0,
        start: int = 8,
        law: str | None = None,
        cost: Cost = trial_and_flops,
        most_seeds: int = 1,
    ) -> None:
        unknown = sorted(set(space) - set(AXES))
        if "lr" not in space or unknown:
            raise ConfigError(
                f"space: must have lr, and of {', '.join(AXES)} alone, got {', '.join(space) or 'nothing'}"
            )
        if not targets:
            raise ConfigError("targets: must name one place at least where the law will be asked")
        self._space = dict(space)
        self._targets = tuple(targets)
        self._seed = seed
        self._start = start
        self._grid = places_of(space)
        self._design = start_of(self._grid, start, rng=np.random.default_rng(seed), law=law)
        self._cost = cost
        self._most_seeds = most_seeds
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the space it was made with."""
        del study, trial
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next place."""
        del search_space
        if study.direction != optuna.study.StudyDirection.MINIMIZE:
            raise ConfigError("study: LawSampler minimises a loss: direction must be 'minimize'")
        before = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number and "lr" in t.params]
        if len(before) < self._start:
            return self._params(self._grid[self._design[len(before) % len(self._design)]])
        surface = self._surface(before)
        pool, places_P4 = self._pool(before)
        chosen = next_places(surface, pool, targets=self._targets, count=1)
        if chosen:
            return self._params(places_P4[chosen[0]])
        rng = np.random.default_rng([self._seed, trial.number])  # every place is taken
        return self._params(self._grid[int(rng.integers(len(self._grid)))])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a parameter that is none of its axes."""
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def law(self, study: optuna.Study, *, confidence: float = 0.95) -> list[Recommendation]:
        """Return what the trials that have ended say of each target."""
        surface = self._surface(study.get_trials(deepcopy=False))
        return [
            surface.recommend(
                tokens=t.tokens, parameters=t.parameters, batch_tokens=t.batch_tokens, confidence=confidence
            )
            for t in self._targets
        ]

    def stop_at(self, factor: float, *, confidence: float = 0.95) -> Callable[[optuna.Study, FrozenTrial], None]:
        """Return a callback that stops a study once lr* at every target is known within this factor either way."""

        def callback(study: optuna.Study, trial: FrozenTrial) -> None:
            if trial.number + 1 >= self._start:
                said = self.law(study, confidence=confidence)
                if max(math.sqrt(r.lr_high / r.lr_low) for r in said) <= factor:
                    study.stop()

        return callback

    def _surface(self, trials: Sequence[FrozenTrial]) -> Surface:
        ended = [t for t in trials if t.state.is_finished() and "lr" in t.params]
        points = [(*_place(t), t.value if t.state == TrialState.COMPLETE else None) for t in ended]
        return fit_surface(rows_of(points) if points else None, places=self._grid)

    def _pool(self, trials: Sequence[FrozenTrial]) -> tuple[Pool, Floats]:
        """Return the places to choose from, those of trials beside the grid too."""
        tried = [(_place(t), t.state.is_finished()) for t in trials]
        at: dict[tuple[float, ...], int] = {_key(place): i for i, place in enumerate(self._grid.tolist())}
        extra: list[tuple[float, ...]] = []
        for place, _ in tried:
            if _key(place) not in at:
                at[_key(place)] = len(self._grid) + len(extra)
                extra.append(place)
        places_P4 = np.vstack([self._grid, *([np.array(extra)] if extra else [])])
        seeds_P = np.zeros(len(places_P4))
        for place, ended in tried:
            seeds_P[at[_key(place)]] += ended
        pending = tuple(at[_key(place)] for place, ended in tried if not ended)
        return Pool(places_P4, self._cost(places_P4), seeds_P, self._most_seeds, pending), places_P4

    def _params(self, place_4: Floats) -> dict[str, Any]:
        return {
            name: _nearest(self._space[name], float(x))
            for name, x in zip(AXES, place_4, strict=True)
            if name in self._space
        }


def places_of(space: Mapping[str, BaseDistribution]) -> Floats:
    """Return every combination of the values that the axes may take, [P, 4]: ranges in octaves or parts of them."""
    sides = [
        _values(space[name], LR_STEP if name == "lr" else BATCH_STEP) if name in space else np.ones(1) for name in AXES
    ]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(AXES))


def _values(distribution: BaseDistribution, step: float) -> Floats:
    if isinstance(distribution, CategoricalDistribution):
        return np.array(sorted(float(x) for x in distribution.choices if isinstance(x, int | float)))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    count = max(2, round(math.log2(distribution.high / distribution.low) / step) + 1)
    found = np.geomspace(distribution.low, distribution.high, count)
    return np.unique(np.round(found)) if isinstance(distribution, IntDistribution) else found


def _nearest(distribution: BaseDistribution, value: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return min(
            distribution.choices, key=lambda x: abs(float(x) - value) if isinstance(x, int | float) else math.inf
        )
    if isinstance(distribution, IntDistribution):
        return round(value)
    assert isinstance(distribution, FloatDistribution)
    return min(max(value, distribution.low), distribution.high)


def _place(trial: FrozenTrial) -> tuple[float, float, float, float]:
    lr, batch, tokens, parameters = (float(trial.params.get(name, 1.0)) for name in AXES)
    return lr, batch, tokens, parameters


def _key(place: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{x:.6g}") for x in place)
