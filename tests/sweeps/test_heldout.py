from __future__ import annotations

import collections
import math

import numpy as np
import pytest

from sweeps.laws.heldout import check
from sweeps.laws.law import Law
from sweeps.optima.basin import rise
from sweeps.spec import Result

LR = 1e-3
LEVEL = 2.3  # nats, of every basin here; basins are of ln loss, noise is a share of the loss
TARGET = {"batch_tokens": 1024, "tokens": 4e6}


def law(half: float = 0.15, seed_sd: float = 0.01) -> Law:
    """Return a law that says LR at TARGET, give or take `half` in ln lr."""
    axes = {"batch_tokens": (1024.0, 1024.0), "tokens": (1e6, 4e6), "parameters": (1e5, 1e5)}
    return Law(
        form="lr* = a * T^q",
        convention="batch fixed",
        variables=("tokens",),
        coefficients={"log_a": math.log(LR), "tokens": 0.0},
        covariance=(((half / 2.447) ** 2, 0.0), (0.0, 0.0)),
        dof=6.0,
        units={},
        box=axes,
        reach=axes,
        cells=tuple(
            {
                "key": f"{i}",
                "label": f"cell {i}",
                "batch_tokens": 1024,
                "tokens": 8_000_000,  # beyond the target: no slope of the loss is known
                "parameters": 100_000,
                "optimum": {"lr": LR, "loss": LEVEL, "basin": [math.log(LEVEL), 0.0, 0.1 / LEVEL]},
            }
            for i in range(9)
        ),
        left_out=(),
        recipe={},
        status="fitted",
        validation=None,
        noise={"seed_sd": seed_sd / LEVEL, "misfit_sd": 0.0},
        estimator="asymmetric",
        confidence=0.95,
        made_by={},
    )


def results(best: float, *, noise=0.01, seeds=3, curvature=0.2, rng=None, lrs=(LR / 2, LR, 2 * LR)) -> list[Result]:
    rng = rng or np.random.default_rng(0)
    shift = 0.05 * rng.normal(size=seeds)
    return [
        Result(
            f"{lr:g}-{s}",
            lr,
            s,
            float(LEVEL + curvature * rise(np.array(math.log(lr / best)), 0.7) + shift[s] + noise * rng.normal()),
            "finished",
        )
        for lr in lrs
        for s in range(seeds)
    ]


def statuses(best: float, draws: int = 60, **kwargs) -> collections.Counter[str]:
    rng = np.random.default_rng(2)
    return collections.Counter(check(law(), results(best, rng=rng, **kwargs), **TARGET).status for _ in range(draws))


def test_a_law_that_holds_is_validated_and_not_rejected():
    said = statuses(LR * 1.05)
    assert said["rejected"] <= 3  # at most 5 % of 60
    assert said["validated"] >= 50


def test_a_law_that_is_off_by_two_is_rejected_on_either_side():
    assert statuses(2 * LR)["rejected"] >= 55
    assert statuses(LR / 2)["rejected"] >= 55


def test_an_optimum_beyond_the_neighbour_is_informative():
    verdict = check(law(), results(6 * LR), **TARGET)
    assert verdict.status == "rejected"
    assert verdict.observed.censored == "edge high"
    assert verdict.regret > 0.05


def test_losses_that_are_all_noise_cannot_tell():
    rng = np.random.default_rng(2)
    flat = [results(LR, curvature=0.0, noise=0.04, rng=rng) for _ in range(60)]
    said = collections.Counter(check(law(seed_sd=0.04), points, **TARGET).status for points in flat)
    assert said["cannot tell"] >= 52  # a 95 % interval is fooled three times in sixty


def test_two_seeds_cannot_tell():
    verdict = check(law(), results(LR, seeds=2), **TARGET)
    assert verdict.status == "cannot tell"
    assert "needs 3 seeds that ran at every learning rate, got 2" in verdict.reason


def test_two_learning_rates_cannot_tell():
    assert check(law(), results(LR, lrs=(LR, 2 * LR)), **TARGET).status == "cannot tell"
    assert check(law(), [], **TARGET).status == "cannot tell"


def test_a_prediction_that_diverges_is_rejected():
    points = [Result(f"{lr}-{s}", lr, s, None, "diverged") for lr in (LR / 2, LR, 2 * LR) for s in range(3)]
    assert check(law(), points, **TARGET).status == "rejected"


def test_a_target_beyond_the_reach_cannot_tell_but_says_the_estimate():
    verdict = check(law(), results(LR), batch_tokens=1024, tokens=1e9)
    assert verdict.status == "cannot tell"
    assert verdict.predicted.place == "beyond"


def test_a_law_as_wide_as_the_learning_rates_tried_is_not_validated():
    assert check(law(half=0.65), results(LR), **TARGET).status == "validated"  # the LRs tried: ln 4 = 1.39 wide
    verdict = check(law(half=0.75), results(LR), **TARGET)
    assert verdict.status == "cannot tell"
    assert "the law's interval is as wide as the LRs tried" in verdict.reason


def test_regret_is_what_the_predicted_lr_costs_by_the_basin():
    verdict = check(law(), results(1.4 * LR, noise=1e-4), **TARGET)
    assert verdict.regret == pytest.approx(0.2 * float(rise(np.array(-math.log(1.4)), 0.7)), rel=0.25)


def test_a_verdict_becomes_part_of_the_law(tmp_path):
    verdict = check(law(), results(LR), **TARGET)
    judged = law().with_verdict(verdict)
    assert judged.status == verdict.status
    assert judged.validation["observed"]["lr"] == verdict.observed.lr
    judged.save(tmp_path / "law.json")
    assert Law.load(tmp_path / "law.json") == judged


def test_the_order_of_results_changes_no_verdict():
    points = results(LR, noise=0.02)
    assert check(law(), points, **TARGET) == check(law(), points[::-1], **TARGET)
