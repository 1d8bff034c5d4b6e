from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config import load_sweep
from sweeps.optima.basin import rise
from sweeps.optima.optimum import ESTIMATORS, find_optimum
from sweeps.optima.pooled import refine
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import Result

ROOT = Path(__file__).parents[2]
LEVEL = 2.3  # nats
GRID = tuple(1e-3 * 2.0**k for k in range(-3, 4))
NONE = Optimum(None, None, None, None, None, "too few points")


def results(best, *, grid=GRID, seeds=2, noise=0.0, rng=None, curvature=0.2, asymmetry=0.7, absurd=math.inf):
    rng = rng or np.random.default_rng(0)
    out = []
    for lr in grid:
        height = LEVEL + curvature * float(rise(np.array(math.log(lr / best)), asymmetry))
        for seed in range(seeds):
            loss = height + 0.03 * seed + noise * float(rng.normal())
            lost = loss > absurd
            out.append(Result(f"{lr:g}-{seed}", lr, seed, None if lost else loss, "diverged" if lost else "finished"))
    return out


def diverged_at(points, lr):
    return [dataclasses.replace(r, loss=None, outcome="diverged") if r.lr == lr else r for r in points]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_middle_of_a_symmetric_basin_is_found(name):
    # dense LRs, so that what is nearly as good as the best lies evenly about it
    grid = tuple(1e-3 * 2.0 ** (k / 4) for k in range(-14, 15))
    for best in (0.8e-3, 1e-3, 1.3e-3):
        found = find_optimum(results(best, grid=grid, asymmetry=1e-9), estimator=name, noise_sd=1e-4)
        assert found.censored is None
        assert found.lr == pytest.approx(best, rel=0.08)
        assert found.low < best < found.high


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_optimum_has_all_its_numbers(name):
    found = find_optimum(results(1.1e-3, noise=0.01), estimator=name)
    assert found.censored is None
    assert found.low < found.lr < found.high
    assert found.log_sd > 0
    assert found.dof > 0
    assert found.noise_sd > 0
    assert found.loss == pytest.approx(LEVEL, rel=0.02)
    assert found.window[0] < found.lr < found.window[1]
    # the basin that is drawn, and told to other cells, has its minimum about there
    assert found.basin[2] > 0
    assert found.fitted(found.lr) == pytest.approx(found.loss, rel=0.005)
    assert found.fitted(found.lr) < min(found.fitted(4 * found.lr), found.fitted(found.lr / 4))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_interval_of_every_estimator_covers(name):
    # 60 draws: 95 % has a standard error of 2.8 %. What a symmetric basin says of lopsided ones is not promised.
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(60):
        best = 1e-3 * math.exp(rng.normal(0.0, 0.3))
        noise = math.exp(rng.uniform(math.log(0.008), math.log(0.05)))
        grid = tuple(float(x) for x in 1e-3 * 2.0 ** (np.arange(7) - 3 + rng.uniform(-0.5, 0.5)))
        shape = {
            "curvature": math.exp(rng.uniform(math.log(0.06), math.log(0.4))),
            "asymmetry": 1e-9 if name == "quadratic" else rng.normal(0.7, 0.5),
        }
        points = results(best, grid=grid, noise=noise, rng=rng, absurd=4.0, **shape)
        found = find_optimum(points, estimator=name, noise_sd=noise / LEVEL * math.exp(rng.normal(0.0, 0.3)))
        if found.censored is None:
            hits.append(found.low <= best <= found.high)
    assert len(hits) > 40
    assert np.mean(hits) >= 0.88


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_same_points_give_the_same_optimum_in_any_order(name):
    points = results(1.1e-3, noise=0.02)
    assert find_optimum(points, estimator=name) == find_optimum(points[::-1], estimator=name)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_learning_rates_in_another_unit_move_the_optimum_with_them(name):
    points = results(1.1e-3, noise=0.02)
    scaled = [dataclasses.replace(r, lr=1000.0 * r.lr) for r in points]
    one, other = (find_optimum(p, estimator=name) for p in (points, scaled))
    assert other.lr == pytest.approx(1000.0 * one.lr, rel=1e-4)
    assert other.log_sd == pytest.approx(one.log_sd, rel=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_noisier_losses_widen_the_interval(name):
    quiet, loud = (find_optimum(results(1.1e-3), estimator=name, noise_sd=sd) for sd in (1e-3, 1e-2))
    assert loud.log_sd > 1.1 * quiet.log_sd


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_edge_is_censored(name):
    assert find_optimum(results(1e-5), estimator=name).censored == "edge low"
    assert find_optimum(results(1e-1), estimator=name).censored == "edge high"
    assert find_optimum(results(1e-3, grid=GRID[2:4]), estimator=name).censored == "too few points"
    assert find_optimum([], estimator=name).lr is None


@pytest.mark.parametrize("name", ESTIMATORS)
def test_divergence_above_brackets_the_optimum(name):
    found = find_optimum(diverged_at(results(3.5e-3), GRID[-1]), estimator=name, noise_sd=1e-3)
    assert found.censored is None
    assert found.low < 3.5e-3 < found.high


@pytest.mark.parametrize("name", ESTIMATORS)
def test_losses_that_are_all_noise_seldom_have_an_optimum(name):
    # an interval at 95 % is fooled once in twenty: more than 6 of 40 has a chance of 1 %
    found = [
        find_optimum(
            results(1e-3, curvature=0.0, noise=0.03, rng=np.random.default_rng(k)),
            estimator=name,
            noise_sd=0.03 / LEVEL,
        ).censored
        for k in range(40)
    ]
    assert found.count(None) <= 6


@pytest.mark.parametrize("name", ESTIMATORS)
def test_losses_that_are_not_positive_have_an_optimum_too(name):
    points = [dataclasses.replace(r, loss=r.loss - 2.5) for r in results(1.1e-3, noise=0.001, asymmetry=1e-9)]
    found = find_optimum(points, estimator=name)
    if found.censored is None:  # a threshold of a share of the loss may leave no LR on one side
        assert not found.relative
        assert found.low < 1.1e-3 < found.high


@pytest.mark.parametrize("name", ESTIMATORS)
def test_cells_are_refined_by_the_estimator_that_was_asked(name):
    cells = [
        CellOptimum(str(k), str(k), 1024, 4096, 1, NONE, tuple(results(1.1e-3, noise=0.02, rng=rng)))
        for k, rng in enumerate(map(np.random.default_rng, range(3)))
    ]
    found = refine(cells, estimator=name)
    assert refine(found, estimator=name) == found
    others = [refine(cells, estimator=other) for other in ESTIMATORS if other != name]
    assert found not in others


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_sweep_may_ask_for_every_estimator(name):
    loaded = load_sweep("quickstart", [f"law.estimator={name}"], cwd=ROOT, environ=os.environ)
    assert loaded.sweep.law.estimator == name


def test_the_parabola_of_a_threshold_reaches_it_at_both_ends():
    found = find_optimum(results(1.1e-3, asymmetry=1e-9), estimator="threshold", noise_sd=1e-3)
    width = math.sqrt(2 * math.log(1.0025) / (2 * found.basin[2]))
    assert found.fitted(found.lr * math.exp(width)) == pytest.approx(1.0025 * found.loss, rel=0.002)


def test_the_threshold_is_step_laws_recipe():
    grid = tuple(1e-3 * 2.0 ** (k / 2) for k in range(-6, 7))
    points = results(1e-3, grid=grid, seeds=1, curvature=0.05)
    lowest = min(r.loss for r in points)
    kept = [math.log(r.lr) for r in points if r.loss <= 1.0025 * lowest]
    assert 1 < len(kept) < len(points)
    found = find_optimum(points, estimator="threshold", noise_sd=1e-4)
    assert math.log(found.lr) == pytest.approx(np.mean(kept))


def test_a_threshold_reached_at_the_edge_of_the_learning_rates_is_censored():
    points = results(1.1e-3, grid=(9e-4, 1e-3, 1.1e-3, 1.2e-3, 2e-3), seeds=1)
    assert find_optimum(points, estimator="threshold").censored == "edge low"


def test_a_spline_follows_a_basin_of_no_form_known_here():
    # flat below, a wall above: a LINEX basin of k near 0.7 is far from it
    grid = tuple(1e-3 * 2.0 ** (k / 2) for k in range(-6, 7))
    points = [
        Result(f"{lr:g}", lr, 0, LEVEL + 0.03 * abs(x) ** 1.5 if x < 0 else LEVEL + 0.4 * x**2, "finished")
        for lr in grid
        for x in [math.log(lr / 1.1e-3)]
    ]
    found = find_optimum(points, estimator="spline", noise_sd=1e-3)
    assert found.low < 1.1e-3 < found.high
    assert found.fitted(1.1e-3) == pytest.approx(LEVEL, abs=0.02)
