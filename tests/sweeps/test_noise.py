from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.curves import Curve
from sweeps.errors import FitError
from sweeps.laws.law import Law, fit_law
from sweeps.laws.noise import SeedWidth, by_trials, seed_widths, seeds_line
from sweeps.optima.basin import rise
from sweeps.optima.noise import monotonicity, sweep_noise
from sweeps.optima.pooled import refine
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import LawSpec, Result

NOT_FOUND = Optimum(None, None, None, None, None, "too few points")
TARGET = {"batch_tokens": 1024.0, "tokens": 2097152.0}


def drawn(seeds: int, *, noise=0.01, scatter=0.0, offset=0.05, number=0, unit=1.0) -> tuple[CellOptimum, ...]:
    """Return 3 x 3 cells whose losses differ between seeds by an offset and by noise of their own."""
    rng = np.random.default_rng([seeds, number])
    cells = []
    for b, t in itertools.product((256, 1024, 4096), (131072, 262144, 524288)):
        best = -6 + 0.4 * math.log(b / 1024) - 0.2 * math.log(t / 262144) + scatter * rng.normal()
        log_lr = -6.1 + (np.arange(11) - 5) * math.log(2) / 1.5
        offsets = offset * rng.normal(size=seeds)
        loss = 2.3 + 0.15 * rise(log_lr - best, 0.7)[:, None] + offsets + noise * rng.normal(size=(11, seeds))
        results = tuple(
            Result(f"{b}-{t}-{i}-{s}", math.exp(x), s, float(unit * loss[i, s]), "finished")
            for i, x in enumerate(log_lr)
            for s in range(seeds)
        )
        cells.append(CellOptimum(f"{b}-{t}", f"{b}-{t}", b, t, 1, NOT_FOUND, results))
    return refine(cells)


def law_of(cells: tuple[CellOptimum, ...]) -> Law:
    return fit_law(cells, spec=LawSpec(), recipe={}, sweep_key="0", version="0")


def test_the_noise_of_the_loss_and_of_its_level_is_found_as_drawn():
    noise = sweep_noise(drawn(4, noise=0.01))
    assert noise.loss_sd == pytest.approx(0.01 / 2.3, rel=0.12)  # 9 cells of some 7 x 3 degrees of freedom
    assert noise.offset_sd == pytest.approx(0.05 / 2.3, rel=0.45)  # 27 degrees of freedom
    assert noise.relative


def test_the_noise_of_lr_is_that_of_a_cell_measured_again():
    # the sd between the optima of seeds against that between sweeps of one seed, 9 cells each
    told = sweep_noise(drawn(4, noise=0.01))
    again = [[math.log(c.optimum.lr) for c in drawn(1, noise=0.01, number=n) if c.optimum.lr] for n in range(12)]
    assert told.log_lr_dof == 27
    assert told.log_lr_sd == pytest.approx(float(np.sqrt(np.mean(np.var(again, axis=0, ddof=1)))), rel=0.4)


def test_signal_to_noise_is_the_rise_over_the_sd_and_falls_with_noise():
    quiet, loud = (sweep_noise(drawn(3, noise=x, offset=0.005)) for x in (0.002, 0.02))
    assert quiet.signal_to_noise == pytest.approx(quiet.signal / quiet.loss_sd)
    assert 6 < quiet.signal_to_noise / loud.signal_to_noise < 12


@settings(max_examples=5, deadline=None)
@given(unit=st.floats(1e-3, 1e3))
def test_noise_of_positive_losses_has_no_unit(unit: float):
    here, there = (sweep_noise(drawn(2, unit=u)) for u in (1.0, unit))
    assert there.loss_sd == pytest.approx(here.loss_sd, rel=1e-6)
    assert there.signal_to_noise == pytest.approx(here.signal_to_noise, rel=1e-6)
    assert there.log_lr_sd == pytest.approx(here.log_lr_sd, rel=1e-4)


def test_one_seed_says_nothing_of_what_seeds_do():
    noise = sweep_noise(drawn(1))
    assert noise.log_lr_sd is None
    assert noise.offset_sd is None
    assert sweep_noise([]).signal_to_noise is None


@pytest.mark.parametrize(
    ("losses", "share"),
    [([3.0, 2.0, 1.0], 1.0), ([1.0, 2.0, 3.0], 0.0), ([1.0, 1.0], 0.5), ([3.0, 1.0, 2.0], 2 / 3)],
)
def test_monotonicity_is_the_share_of_pairs_that_fall(losses: list[float], share: float):
    points = np.arange(len(losses))
    curve = Curve(points + 1, points, points * 1.0, {"loss": np.array(losses)})
    assert monotonicity([curve], metric="loss") == (pytest.approx(share),)
    assert monotonicity([curve], metric="other") == ()


def test_more_seeds_narrow_the_interval_as_they_do_when_they_are_run():
    # from two seeds what eight would give, and eight as run; a width is itself uncertain: the mean of 8 sweeps
    told, run = [], []
    for number in range(8):
        two, eight = (drawn(s, noise=0.02, number=number) for s in (2, 8))
        widths = {w.seeds: w.factor for w in seed_widths(law_of(two), two, target=TARGET)}
        assert sorted(widths.values(), reverse=True) == [widths[s] for s in sorted(widths)]
        told.append(math.log(widths[8]) / math.log(widths[2]))
        found = [law_of(cells).predict(**TARGET) for cells in (two, eight)]
        assert widths[2] == pytest.approx(found[0].high / found[0].lr)
        run.append(math.log(found[1].high / found[1].lr) / math.log(found[0].high / found[0].lr))
    assert np.mean(told) == pytest.approx(np.mean(run), abs=0.15)
    assert 0.45 < np.mean(told) < 0.85  # half, had cells nothing but noise


def test_cells_that_scatter_are_not_helped_by_seeds():
    cells = drawn(2, noise=0.003, scatter=0.3)
    widths = seed_widths(law_of(cells), cells, target=TARGET)
    by_seeds = {w.seeds: math.log(w.factor) for w in widths}
    assert by_seeds[16] > 0.9 * by_seeds[2]
    assert "more would not narrow it much" in seeds_line(widths, ran=2)


def test_the_words_say_where_more_seeds_end_to_help():
    widths = [SeedWidth(s, f) for s, f in ((2, 1.35), (4, 1.22), (8, 1.20), (16, 1.20))]
    assert seeds_line(widths, ran=2) == (
        "4 seeds instead of 2 would narrow the interval from x1.35 to x1.22; more than 4 would not help much."
    )


def test_a_law_whose_cells_are_not_all_there_says_nothing_of_seeds():
    cells = drawn(2)
    with pytest.raises(FitError, match="needs the results of all 9 cells of the law, got 3"):
        seed_widths(law_of(cells), cells[:3], target=TARGET)


def test_the_interval_against_trials_ends_at_the_law_and_is_refused_before_there_is_one():
    cells = drawn(2)
    law = law_of(cells)
    ended = [r.key for c in cells for r in c.results]
    told = by_trials(law, cells, ["of another sweep", *ended], target=TARGET)
    assert [spent.trials for spent in told] == [25, 50, 75, 99, 124, 149, 174, 198]
    assert told[-1].found is not None
    assert told[-1].found.low == pytest.approx(law.predict(**TARGET).low)
    assert told[0].found is None
    assert "needs at least 4 cells" in str(told[0].refused)
    turned = by_trials(law, cells[::-1], ended, target=TARGET)
    assert [s.found and pytest.approx(s.found.high) for s in turned] == [s.found and s.found.high for s in told]
