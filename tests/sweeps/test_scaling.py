from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.errors import ConfigError, FitError
from sweeps.scaling.law import KAPLAN, ScalingLaw, SizeLaw
from sweeps.scaling.pipeline import check_larger, fit_scaling
from sweeps.scaling.runs import TrainingRun, largest_batches, usable
from sweeps.scaling.stages import critical_batch, size_law, step_law

SIZES = (1e6, 3e6, 1e7, 3e7, 6e7)
BATCHES = tuple(2.0**k for k in range(14, 22))
LARGE = 2.0**22
NOISE = 0.003  # of the loss
# remembered constants of Part I for C4, arXiv:2403.06563: any will do to plant
C4 = ScalingLaw.of({"aN": 0.076, "N_c": 1.5e14, "aS": 0.67, "S_c": 2.6e3, "aB": 0.205, "B_star": 1.7e8})


def run(law, parameters, batch_tokens, *, noise=NOISE, rng=None, last=3e5, points=80) -> TrainingRun:
    steps = np.geomspace(200, last, points)
    loss = law.loss(parameters, steps, batch_tokens=batch_tokens)
    if rng is not None:
        loss = loss * np.exp(noise * rng.normal(size=points))
    return TrainingRun(f"{parameters:g}-{batch_tokens:g}", parameters, batch_tokens, steps, loss, warmup_steps=500)


def runs(law=KAPLAN, *, rng=None, **shape) -> list[TrainingRun]:
    sizes = [run(law, n, LARGE, rng=rng, **shape) for n in SIZES]
    return sizes + [run(law, 3e6, b, rng=rng, **shape) for b in BATCHES]


def test_the_critical_batch_and_least_steps_of_kaplan_are_the_papers():
    assert float(f"{KAPLAN.critical.tokens(3.0):.4e}") == 1.0691e6
    assert round(KAPLAN.critical.steps_min(1e5, batch_tokens=2.0**19, loss=3.0)) == 32_904


def test_steps_and_examples_at_one_loss_lie_on_a_hyperbola():
    steps = []
    for batch in BATCHES:
        tried = np.geomspace(1e3, 1e8, 40_000)
        steps.append(float(np.interp(-4.0, -KAPLAN.loss(1e7, tried, batch_tokens=batch), tried)))
    critical = KAPLAN.critical.tokens(4.0)
    s_min = [KAPLAN.critical.steps_min(s, batch_tokens=b, loss=4.0) for s, b in zip(steps, BATCHES, strict=True)]
    assert s_min == pytest.approx([s_min[0]] * len(BATCHES), rel=1e-5)
    e_min = s_min[0] * critical
    shares = [(s / s_min[0] - 1) * (b * s / e_min - 1) for s, b in zip(steps, BATCHES, strict=True)]
    assert shares == pytest.approx([1.0] * len(BATCHES), rel=1e-3)
    # and compute: C = 6 N B S, C_min that of a batch far below the critical one
    c_min = KAPLAN.critical.compute_min(6e7 * BATCHES[3] * steps[3], batch_tokens=BATCHES[3], loss=4.0)
    assert c_min == pytest.approx(6e7 * e_min, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(size=st.floats(1e5, 1e11), batch=st.floats(1e3, 1e8), steps=st.floats(1e2, 1e8))
def test_a_loss_by_bisection_solves_its_equation(size, batch, steps):
    loss = float(KAPLAN.loss(size, steps, batch_tokens=batch))
    least = KAPLAN.critical.steps_min(steps, batch_tokens=batch, loss=loss)
    assert loss == pytest.approx(KAPLAN.steps.loss(size, least), rel=1e-9)
    assert loss > KAPLAN.steps.sizes.converged(size)


@settings(max_examples=25, deadline=None)
@given(size=st.floats(1e5, 1e11), batch=st.floats(1e3, 1e8), steps=st.floats(1e2, 1e8))
def test_more_of_anything_never_raises_the_loss(size, batch, steps):
    here = float(KAPLAN.loss(size, steps, batch_tokens=batch))
    for more in ((2 * size, steps, batch), (size, 2 * steps, batch), (size, steps, 2 * batch)):
        assert float(KAPLAN.loss(more[0], more[1], batch_tokens=more[2])) <= here * (1 + 1e-12)


@pytest.mark.parametrize("law", [KAPLAN, C4], ids=["kaplan", "c4"])
def test_planted_constants_come_back_and_a_ten_times_larger_model_is_foreseen(law):
    for seed in range(3):
        found = fit_scaling(runs(law, rng=np.random.default_rng(seed)))
        for name in ("aN", "aS", "aB"):
            assert found.law.constants[name] == pytest.approx(law.constants[name], rel=0.05)
        larger = run(law, 10 * SIZES[-1], 2.0**19)
        said = found.law.loss(larger.parameters, larger.steps, batch_tokens=larger.batch_tokens)
        assert said == pytest.approx(larger.loss, rel=0.01)
        assert check_larger(found, larger).status == "validated"


def test_without_noise_the_constants_are_the_planted_ones():
    found = fit_scaling(runs())
    assert found.law.constants == pytest.approx(KAPLAN.constants, rel=1e-3)
    assert found.staged.constants["aN"] == pytest.approx(KAPLAN.constants["aN"], rel=0.05)


def test_intervals_of_the_constants_cover():
    # 15 draws of six constants, drawn together: a nominal 95 % of 90; runs are few, so intervals err on the wide side
    hits = []
    for seed in range(15):
        found = fit_scaling(runs(rng=np.random.default_rng(100 + seed))).intervals()
        hits += [low <= KAPLAN.constants[name] <= high for name, (low, high) in found.items()]
    assert np.mean(hits) > 0.88


def test_runs_in_any_order_give_the_same_law():
    drawn = runs(rng=np.random.default_rng(0))
    assert fit_scaling(drawn[::-1]) == fit_scaling(drawn)


def test_points_of_the_warm_up_are_never_used():
    drawn = runs(rng=np.random.default_rng(0))
    spoilt = [dataclasses.replace(r, loss=np.where(r.steps <= 500, 50.0, r.loss)) for r in drawn]
    assert fit_scaling(spoilt) == fit_scaling(drawn)


def test_a_law_that_is_wrong_is_rejected_and_a_model_too_small_says_nothing():
    found = fit_scaling(runs(rng=np.random.default_rng(0)))
    other = ScalingLaw.of({**KAPLAN.constants, "aN": 0.085})
    assert check_larger(found, run(other, 10 * SIZES[-1], 2.0**19)).status == "rejected"
    assert check_larger(found, run(KAPLAN, 2 * SIZES[-1], 2.0**19)).status == "cannot tell"


# -- each step refuses what its data do not support -------------------------------------------------------------------


def test_a_run_of_too_few_points_is_refused_with_the_others():
    drawn = runs()
    short = dataclasses.replace(drawn[0], warmup_steps=2.9e5)
    with pytest.raises(FitError, match="under 8 points after warm-up in 1e") as caught:
        usable([short, *drawn[1:]])
    assert len(caught.value.estimate) == len(drawn) - 1


@pytest.mark.parametrize("change", [{"loss": np.full(80, -1.0)}, {"steps": np.ones(80)}, {"batch_tokens": math.nan}])
def test_a_run_that_is_none_is_refused(change):
    with pytest.raises(ConfigError, match="run 1e"):
        usable([dataclasses.replace(runs()[0], **change)])


def test_too_few_sizes_or_sizes_too_close_are_refused():
    with pytest.raises(FitError, match="needs 3 model sizes or more, got 2"):
        size_law([run(KAPLAN, n, LARGE) for n in SIZES[:2]])
    with pytest.raises(FitError, match="must span a factor 4") as caught:
        size_law([run(KAPLAN, n, LARGE) for n in (1e6, 2e6, 3e6)])
    assert isinstance(caught.value.estimate, SizeLaw)


def test_runs_that_still_fall_are_refused_with_the_law_they_would_make():
    with pytest.raises(FitError, match="still takes off over 2 %") as caught:
        size_law([run(KAPLAN, n, LARGE, last=1e4) for n in SIZES])
    assert caught.value.estimate.a_n == pytest.approx(0.077, rel=0.3)


def test_a_size_that_does_not_help_is_refused():
    same = [dataclasses.replace(run(KAPLAN, 1e6, LARGE), parameters=n) for n in SIZES]
    with pytest.raises(FitError, match="does not fall with model size"):
        size_law([dataclasses.replace(r, loss=r.loss * r.parameters**0.01) for r in same])


def test_steps_over_too_small_a_range_are_refused():
    sizes = KAPLAN.steps.sizes
    short = [dataclasses.replace(r, steps=r.steps[-12:], loss=r.loss[-12:]) for r in largest_batches(runs())]
    with pytest.raises(FitError, match="steps must span a factor 4"):
        step_law(short, sizes)
    with pytest.raises(FitError, match="stays above"):
        step_law([dataclasses.replace(r, loss=r.loss * 0.5) for r in short], sizes)


def test_too_few_batches_or_batches_far_from_the_critical_one_are_refused():
    with pytest.raises(FitError, match="needs 5 batches of one size or more, got 4"):
        critical_batch([run(KAPLAN, 3e6, b) for b in BATCHES[:4]])
    with pytest.raises(FitError, match=r"B_crit: "):
        critical_batch([run(KAPLAN, 3e6, 2.0**k) for k in range(30, 36)])


def test_runs_without_a_loss_in_common_are_refused():
    apart = [
        dataclasses.replace(run(KAPLAN, 3e6, b), loss=run(KAPLAN, 3e6, b).loss + 10 * i) for i, b in enumerate(BATCHES)
    ]
    with pytest.raises(FitError, match="no loss in common"):
        critical_batch(apart)


def test_a_law_of_constants_that_are_missing_is_refused():
    with pytest.raises(ConfigError, match="aS: must be above 0 and finite, got None"):
        ScalingLaw.of({"aN": 0.07, "N_c": 1e13})
