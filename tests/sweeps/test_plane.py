from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from sweeps.optima.basin import rise
from sweeps.optima.plane import find_plane
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import Result

NONE = Optimum(None, None, None, None, None, "too few points")


def drawn(lr=1.2e-3, batch=4e5, *, ridge=0.5, asymmetry=0.7, h=0.1, g=0.02, noise=0.0, rng=None):
    rng = rng or np.random.default_rng(0)
    cells = []
    for b in (65536 * 2**i for i in range(6)):
        z = math.log(b / batch)
        points = []
        for x in (1e-3 * 2.0**j for j in range(-3, 4)):
            above = h * float(rise(np.array(math.log(x / lr) - ridge * z), asymmetry)) + 0.5 * g * z * z
            loss = 2.5 * math.exp(above) + noise * rng.normal()
            lost = loss > 4.0
            points.append(Result(f"{b}-{x:g}", x, 0, None if lost else loss, "diverged" if lost else "finished"))
        cells.append(CellOptimum(str(b), str(b), b, 10**9, 10**7, NONE, tuple(points)))
    return cells


def test_a_drawn_plane_is_recovered_with_its_ridge():
    found = find_plane(drawn(), noise_sd=1e-4)
    assert (found.lr, found.batch_tokens) == pytest.approx((1.2e-3, 4e5), rel=1e-3)
    assert found.ridge == pytest.approx(0.5, abs=1e-3)
    assert found.loss == pytest.approx(2.5, rel=1e-4)
    assert found.covariance[0][1] > 0  # along the ridge a larger batch goes with a larger LR


def test_the_intervals_of_lr_and_batch_cover():
    # 60 draws: 95 % has a standard error of 2.8 %
    hits = []
    for k in range(60):
        rng = np.random.default_rng(k)
        lr, batch = 1e-3 * math.exp(0.3 * rng.normal()), 3.8e5 * math.exp(0.3 * rng.normal())
        noise = math.exp(rng.uniform(math.log(0.001), math.log(0.01)))
        shape = {"ridge": rng.normal(0.4, 0.3), "asymmetry": rng.normal(0.7, 0.5)}
        bends = {"h": math.exp(rng.uniform(-3.5, -1.6)), "g": math.exp(rng.uniform(-4.6, -3.0))}
        found = find_plane(drawn(lr, batch, noise=noise, rng=rng, **shape, **bends), noise_sd=noise / 2.5)
        if found.censored is None:
            (low, high), (least, most) = found.lr_interval, found.batch_interval
            hits.append((low <= lr <= high, least <= batch <= most))
    assert len(hits) > 50
    assert (np.mean(hits, axis=0) >= 0.88).all()


def test_noisier_losses_widen_both_intervals():
    quiet, loud = (find_plane(drawn(), noise_sd=sd) for sd in (1e-3, 1e-2))
    assert loud.covariance[0][0] > 2 * quiet.covariance[0][0]
    assert loud.covariance[1][1] > 2 * quiet.covariance[1][1]


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        ({"batch": 1e4, "ridge": 0.0}, "batch edge low"),
        ({"batch": 1e8, "ridge": 0.0}, "batch edge high"),
        ({"lr": 1e-4, "ridge": 0.0}, "lr edge low"),
        ({"lr": 2e-2, "ridge": 0.0}, "lr edge high"),
    ],
)
def test_a_best_row_on_an_edge_is_censored(best, reason):
    found = find_plane(drawn(**best))
    assert found.censored == reason
    assert found.covariance is None
    assert found.lr is not None


def test_too_few_batches_or_rows_are_said():
    assert find_plane([]).censored == "too few points"
    cells = drawn()[1:5]
    fewer = [dataclasses.replace(c, results=c.results[2:5]) for c in cells[:3]]
    assert find_plane(fewer).censored is not None
    assert find_plane([dataclasses.replace(c, results=()) for c in cells]).lr is None


def test_rows_in_any_order_and_unit_have_the_same_optimum():
    cells = drawn(noise=0.005)
    here, back = find_plane(cells), find_plane([dataclasses.replace(c, results=c.results[::-1]) for c in cells[::-1]])
    assert back == here
    scaled = [
        dataclasses.replace(
            c,
            batch_tokens=c.batch_tokens * 10,
            results=tuple(dataclasses.replace(r, lr=100 * r.lr) for r in c.results),
        )
        for c in cells
    ]
    other = find_plane(scaled)
    assert (other.lr, other.batch_tokens) == pytest.approx((100 * here.lr, 10 * here.batch_tokens), rel=1e-4)
