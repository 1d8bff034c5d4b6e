from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.errors import ConfigError, FitError
from sweeps.laws.compare import Tuned, compare, of_cells, of_law
from sweeps.laws.law import Law, fit_law
from sweeps.optima.basin import rise
from sweeps.optima.noise import Minimum
from sweeps.optima.pooled import refine
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.spec import LawSpec, Result

NOT_FOUND = Optimum(None, None, None, None, None, "too few points")
BATCHES, TOKENS = (256, 1024, 4096), (131072, 262144, 524288)
SLOPE = 0.2  # nats per unit of ln tokens


def recipe(
    better: float, *, rng: np.random.Generator, seeds=2, shared: np.ndarray | None = None, tokens=TOKENS, best=-6.0
) -> tuple[CellOptimum, ...]:
    """Return 3 x 3 cells of a recipe whose loss is lower by `better`; `shared` offsets of seeds, [cells, seeds]."""
    cells = []
    for i, (b, t) in enumerate((b, t) for b in BATCHES for t in tokens):
        offsets = 0.02 * rng.normal(size=seeds) + (0.0 if shared is None else shared[i])
        log_lr = best + (np.arange(7) - 3) * math.log(2)
        level = 3.0 - better - SLOPE * math.log(t / TOKENS[0])
        loss = level + 0.15 * rise(log_lr - best - 0.1, 0.7)[:, None] + offsets + 0.005 * rng.normal(size=(7, seeds))
        results = tuple(
            Result(f"{best}-{b}-{t}-{j}-{s}", math.exp(x), s, float(loss[j, s]), "finished")
            for j, x in enumerate(log_lr)
            for s in range(seeds)
        )
        cells.append(CellOptimum(f"{b}-{t}", f"batch {b}, tokens {t}", b, t, 1, NOT_FOUND, results))
    return refine(cells)


def known(loss: float, *, tokens=1000, batch=16, sd: float | None = None, trials=(), seeds=(0,)) -> Tuned:
    minimum = Minimum(loss, dict.fromkeys(seeds, loss), sd, 0.0)
    return Tuned(f"batch {batch}, tokens {tokens}", (batch, tokens, 1), 0.1, minimum, trials)


def test_the_better_recipe_is_found_and_by_how_much_in_loss_and_in_tokens():
    rng = np.random.default_rng(0)
    a, b = (of_cells(recipe(better, rng=rng)) for better in (0.1, 0.0))
    found = compare(a, b)
    assert found.better == "A"
    assert found.loss.low < -0.1 < found.loss.high < 0.0
    # A is ahead by 0.1 nats, and B gains 0.2 with every unit of ln tokens
    assert found.tokens is not None
    assert found.tokens.low < math.exp(0.5) < found.tokens.high
    assert len(found.cells) == 9
    assert "A is better" in found.reason
    turned = compare(b, a)
    assert turned.better == "B"
    assert (turned.loss.low, turned.loss.high) == pytest.approx((-found.loss.high, -found.loss.low))


def test_the_interval_holds_the_difference_as_often_as_it_says():
    # 150 draws: 95 % has a standard error of 1.8 %; two equal recipes are told apart in 5 % at most, and twice that
    rng = np.random.default_rng(1)
    recipes = [of_cells(recipe(0.0, rng=rng)) for _ in range(40)]
    drawn = [rng.choice(40, size=2, replace=False) for _ in range(150)]
    told = [compare(recipes[i], recipes[j]).better for i, j in drawn]
    assert told.count("cannot tell") >= 135


def test_offsets_that_seeds_of_both_share_leave_the_difference():
    rng = np.random.default_rng(2)
    shared = 0.3 * rng.normal(size=(9, 2))
    a, b = (of_cells(recipe(better, rng=rng, shared=shared)) for better in (0.1, 0.0))
    paired = compare(a, b)
    renamed = [
        replace(x, minimum=replace(x.minimum, by_seed={s + 9: y for s, y in x.minimum.by_seed.items()})) for x in a
    ]
    unpaired = compare(renamed, b)
    assert {cell.seeds for cell in paired.cells} == {2}
    assert {cell.seeds for cell in unpaired.cells} == {0}
    assert paired.better == "A"
    assert unpaired.loss.high - unpaired.loss.low > 2 * (paired.loss.high - paired.loss.low)


def test_cells_that_share_trials_count_as_one():
    alone = [[known(1.0 + d, tokens=t) for t, d in ((1000, x), (2000, x + 0.01))] for x in (0.0, 0.2)]
    apart = compare(*alone)
    # one run of each serves both token counts: two cells, one observation, and one seed says nothing of its error
    tied = [[replace(cell, trials=("run",)) for cell in side] for side in alone]
    assert apart.better == "A"
    with pytest.raises(FitError, match="nothing says its error") as caught:
        compare(*tied)
    assert caught.value.estimate == pytest.approx(-0.2)


def test_recipes_with_no_cell_in_common_are_refused_and_the_axis_is_named():
    a, b = [known(1.0, tokens=1000)], [known(1.0, tokens=2000)]
    with pytest.raises(FitError, match="they share no token counts"):
        compare(a, b)
    with pytest.raises(FitError, match="they share no batches"):
        compare(a, [known(1.0, batch=32)])


def test_a_censored_cell_is_left_out_and_said():
    sound = [known(1.0, tokens=t) for t in (1000, 2000)]
    edge = Tuned("batch 16, tokens 3000", (16, 3000, 1), None, None, censored="edge low")
    found = compare([*sound, edge], [*sound, known(1.0, tokens=3000)])
    assert [(x["recipe"], x["reason"]) for x in found.left_out] == [
        ("A", "edge low"),
        ("B", "the other has no optimum there"),
    ]
    with pytest.raises(FitError, match="A, batch 16, tokens 3000: edge low"):
        compare([edge], [known(1.0, tokens=3000)])


def test_tokens_are_not_told_where_loss_does_not_fall_with_them():
    assert compare([known(1.0), known(1.2, batch=32)], [known(1.1), known(1.2, batch=32)]).tokens is None
    rising = [known(1.0, tokens=1000), known(1.5, tokens=2000)]
    assert compare(rising, rising).tokens is None


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-2, 2), scale=st.floats(0.1, 10))
def test_a_shift_of_all_losses_changes_nothing_and_a_unit_scales(shift: float, scale: float):
    losses = [(1.0, 1.2), (0.8, 0.9), (0.7, 0.85)]
    sides = [[known(x[i], tokens=1000 * 2**n) for n, x in enumerate(losses)] for i in (0, 1)]
    moved = [[replace(c, minimum=replace(c.minimum, loss=scale * c.minimum.loss + shift)) for c in x] for x in sides]
    here, there = compare(*sides), compare(*moved)
    assert there.better == here.better
    assert there.loss.value == pytest.approx(scale * here.loss.value)
    assert there.tokens.value == pytest.approx(here.tokens.value)


def test_a_law_file_says_as_much_as_the_sweep_it_was_fitted_on(tmp_path):
    rng = np.random.default_rng(3)
    sides = [recipe(better, rng=rng) for better in (0.05, 0.0)]
    laws = []
    for n, cells in enumerate(sides):
        fit_law(cells, spec=LawSpec(), recipe={}, sweep_key="0", version="0").save(tmp_path / f"{n}.json")
        laws.append(of_law(Law.load(tmp_path / f"{n}.json")))
    by_law, by_sweep = compare(*laws), compare(*map(of_cells, sides))
    assert by_law.loss.value == pytest.approx(by_sweep.loss.value, abs=1e-3)
    assert by_law.loss.high == pytest.approx(by_sweep.loss.high, abs=2e-3)


def test_a_law_file_without_seeds_takes_the_cells_of_a_batch_for_one(tmp_path):
    rng = np.random.default_rng(3)
    laws = []
    for better in (0.05, 0.0):
        law = fit_law(recipe(better, rng=rng), spec=LawSpec(), recipe={}, sweep_key="0", version="0")
        content = json.loads(json.dumps(law.to_json()))
        for cell in content["cells"]:
            del cell["minimum"], cell["cluster"]
        (tmp_path / "old.json").write_text(json.dumps(content))
        laws.append(of_law(Law.load(tmp_path / "old.json")))
    found = compare(*laws)
    assert found.dof == 2.0  # three batches
    assert {cell.sd for cell in found.cells} == {None}


def test_a_confidence_is_a_share():
    with pytest.raises(ConfigError, match="confidence"):
        compare([known(1.0)], [known(1.0)], confidence=95.0)
