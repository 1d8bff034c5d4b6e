from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sweeps.choose import Pool, Target, next_places, spread_out, start_of
from sweeps.errors import ConfigError
from sweeps.laws.published import Question, published
from sweeps.surrogate import Surface, fit_surface, rows_of
from sweeps.surrogate.shape import NAMES, loss_at

Floats = NDArray[np.float64]

MEANS = dict(ln_e=0.5, ln_a=-1.0, alpha=0.34, ln_c=-1.0, beta=0.3, m0=-6.0, mT=0.2, mN=-0.6, p=0.4, c=0.15)
MEANS |= dict(b0=12.5, bT=0.5, bN=0.0, ln_h=-3.5, k=0.7, ln_hB=-3.6, kB=0.3, hT=0.0, hBT=0.0)
UNKNOWNS = np.array([MEANS[name] for name in NAMES])
MIDDLE = np.array([0.0, 0.0, math.log(2e10), math.log(3e8)])
TARGET = Target(tokens=1.6e11, parameters=3e8)


def grid() -> Floats:
    """Return places on a grid: 9 LRs, 7 batches, 3 token counts."""
    axes = [np.geomspace(5e-4, 1e-2, 9), np.geomspace(6e4, 2e6, 7), np.array([5e9, 1e10, 2e10]), np.array([3e8])]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 4)


def losses(places: Floats, *, noise: float, seed: int) -> Floats:
    level, height, _ = loss_at(UNKNOWNS, np.log(places) - MIDDLE)
    rng = np.random.default_rng(seed)
    return np.exp(level + height + noise * rng.standard_normal(len(places)))


def surface_of(places: Floats, taken: list[int], *, noise: float = 0.002) -> Surface:
    points = np.column_stack([places[taken], losses(places[taken], noise=noise, seed=1)])
    return fit_surface(rows_of(points), places=places)


def pool(places: Floats, taken: list[int], **more: object) -> Pool:
    seeds = np.bincount(taken, minlength=len(places)).astype(np.float64)
    return Pool(places, np.ones(len(places)), seeds, **more)  # type: ignore[arg-type]


def chosen(places: Floats, taken: list[int], *, count: int = 4, **more: object) -> list[int]:
    surface = surface_of(places, taken)
    return next_places(surface, pool(places, taken, **more), targets=[TARGET], count=count)


def started(places: Floats, count: int = 10) -> list[int]:
    return spread_out(places, count, rng=np.random.default_rng(0))


def test_a_start_is_spread_out_and_off_the_rim() -> None:
    places = grid()
    start = started(places)
    assert len(set(start)) == 10
    assert set(places[start, 2].tolist()) == {5e9, 1e10, 2e10}
    inner = np.abs(np.log(places[start, 0] / math.sqrt(5e-4 * 1e-2))) / math.log(1e-2 / 5e-4)
    assert inner.max() <= 0.3 + 1e-9
    nearest = [min(float(np.abs(np.log(places[i] / places[j])).max()) for j in start if j != i) for i in start]
    assert min(nearest) > math.log(1.4)


def test_a_start_of_more_places_than_there_are_is_all_of_them() -> None:
    places = grid()[:5]
    assert sorted(spread_out(places, 9, rng=np.random.default_rng(0))) == [0, 1, 2, 3, 4]


def test_a_start_from_a_published_law_has_its_answer_for_each_length() -> None:
    places = grid()
    start = start_of(places, 8, rng=np.random.default_rng(0), law="step-law")
    assert len(set(start)) == 8
    assert places[start[:3], 2].tolist() == [2e10, 1e10, 5e9]
    for lr, batch, tokens, parameters in places[start[:3]].tolist():
        said = published("step-law").ask(Question(tokens=tokens, parameters=parameters))
        assert said.batch_tokens is not None
        assert abs(math.log(lr / said.lr)) <= 0.5 * math.log(1e-2 / 5e-4) / 8 + 1e-9  # half a step of the grid
        assert abs(math.log(batch / said.batch_tokens)) <= 0.5 * math.log(2e6 / 6e4) / 6 + 1e-9


def test_a_start_without_a_law_is_the_spread_out_one() -> None:
    places = grid()
    assert start_of(places, 8, rng=np.random.default_rng(0)) == spread_out(places, 8, rng=np.random.default_rng(0))


def test_a_start_from_a_law_that_says_nothing_of_such_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'step-law'"):
        start_of(grid(), 8, rng=np.random.default_rng(0), law="steplaw")
    with pytest.raises(ConfigError, match="step-law: needs parameters"):
        start_of(
            grid() * np.array([1, 1, 1, 0]) + np.array([0, 0, 0, 1]), 8, rng=np.random.default_rng(0), law="step-law"
        )


def test_the_same_runs_choose_the_same() -> None:
    places = grid()
    assert chosen(places, started(places)) == chosen(places, started(places))


def test_no_place_is_chosen_twice_nor_one_that_was_trained() -> None:
    places = grid()
    start = started(places)
    found = chosen(places, start, count=20)
    assert len(set(found)) == 20
    assert not set(found) & set(start)


def test_when_nothing_is_left_nothing_is_chosen() -> None:
    places = grid()[:12]
    assert chosen(places, list(range(10)), count=5) in ([10, 11], [11, 10])
    assert chosen(places, list(range(12)), count=5) == []


def test_what_is_under_way_is_not_chosen_again_and_moves_the_next_choice_as_if_it_had_ended() -> None:
    places = grid()
    start = started(places)
    first = chosen(places, start, count=1)[0]
    pending = chosen(places, start, count=3, pending=(first,))
    assert first not in pending
    assert pending[:2] == chosen(places, start, count=3)[1:3]


def test_seeds_of_a_place_are_chosen_where_they_are_allowed() -> None:
    places = grid()[::7]
    start = started(places, 8)
    found = chosen(places, start, count=60, most_seeds=3)
    trained = np.bincount(start + found, minlength=len(places))
    assert trained.max() == 3


def test_a_place_that_costs_more_is_chosen_less() -> None:
    places = grid()
    start = started(places)
    surface = surface_of(places, start)
    seeds = np.bincount(start, minlength=len(places)).astype(np.float64)

    def mean_tokens(costs: Floats) -> float:
        made = Pool(places, costs, seeds)
        found = next_places(surface, made, targets=[TARGET], count=12)
        return float(places[found, 2].mean())

    assert mean_tokens((places[:, 2] / 5e9) ** 2) < mean_tokens(np.ones(len(places)))


def test_what_is_chosen_for_a_target_tells_more_of_it_than_what_is_drawn() -> None:
    places = grid()
    start = started(places)
    rng = np.random.default_rng(3)
    taken, drawn = list(start), [*start, *rng.choice(len(places), 16, replace=False).tolist()]
    while len(taken) < len(start) + 16:
        taken += chosen(places, taken, count=4)
    gaps = []
    for ran in (taken, drawn):
        surface = surface_of(places, ran)
        said = surface.recommend(tokens=TARGET.tokens, parameters=TARGET.parameters)
        gaps.append(said.gap)
    assert gaps[0] < 0.8 * gaps[1]


def test_the_predicted_gain_is_what_the_covariance_loses() -> None:
    places = grid()
    start = started(places, 12)
    before = surface_of(places, start, noise=0.002)
    picked = chosen(places, start, count=6)
    after = surface_of(places, start + picked, noise=0.002)
    gaps = [s.recommend(tokens=TARGET.tokens, parameters=TARGET.parameters).gap for s in (before, after)]
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("batch", [None, 1e5])
def test_a_target_at_a_batch_is_as_good_a_target(batch: float | None) -> None:
    places = grid()
    start = started(places)
    target = Target(tokens=1.6e11, parameters=3e8, batch_tokens=batch)
    surface = surface_of(places, start)
    found = next_places(surface, pool(places, start), targets=[target], count=3)
    assert len(set(found)) == 3
