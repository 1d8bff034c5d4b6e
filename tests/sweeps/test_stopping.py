"""What stoppers promise: which runs they end, and which they never do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.forecast.fitting import fit_curves, known
from sweeps.forecast.forms import Momentum
from sweeps.forecast.records import LossCurve, LrPath
from sweeps.stopping import RULES, STOPPERS, CellSoFar, Known, RunSoFar, Stopper
from sweeps.stopping.dominated import Dominated
from sweeps.stopping.history import lessons_of, predict_finals
from sweeps.stopping.plain import Diverged, Patience
from sweeps.stopping.ranked import Asha, Median

LRS = [1e-3 * 2.0**k for k in range(7)]
POINTS = 20


def run(key: str, losses: Sequence[float], *, lr: float = 1e-3, outcome: str | None = None) -> RunSoFar:
    return RunSoFar(key, lr, 0, np.arange(1.0, len(losses) + 1), np.array(losses, dtype=float), outcome)


def cell(*runs: RunSoFar, horizon: float = 20.0) -> CellSoFar:
    return CellSoFar("cell", runs, horizon)


def stopped(stopper: Stopper, *runs: RunSoFar, horizon: float = 20.0, about: Known | None = None) -> list[str]:
    return [stop.key for stop in stopper.stops(cell(*runs, horizon=horizon), about or Known())]


def loss(lr: float, share: float, horizon: float, *, noise: float = 0.0) -> float:
    """A recipe whose best LR is 0.04 / sqrt(horizon) and whose high LRs gain all of their lead in the last part."""
    x = math.log(lr * math.sqrt(horizon) / 0.04)
    gain = 0.4 * (1 + 0.5 * math.tanh(x)) * min(max((1 - share) / 0.3, 0.0), 1.0)
    return math.exp(0.3 * x**2 + gain - 0.2 * math.log(horizon) + 0.5 * (1 - share) + noise)


def recipe_cell(
    horizon: float, *, until: float = 1.0, seeds: int = 2, sd: float = 0.0, lrs: Sequence[float] = LRS
) -> CellSoFar:
    """Return a cell of that recipe, ended or on its way."""
    rng = np.random.default_rng(round(horizon))
    tokens = np.arange(1, POINTS + 1) * horizon / POINTS
    runs = []
    for lr in lrs:
        for seed in range(seeds):
            noise = sd * rng.standard_normal(POINTS)
            losses = [loss(lr, t / horizon, horizon, noise=e) for t, e in zip(tokens, noise, strict=True)]
            seen = tokens <= until * horizon * (1 + 1e-9)
            ended = "finished" if until >= 1.0 else None
            runs.append(RunSoFar(f"{lr:g}/{seed}", lr, seed, tokens[seen], np.array(losses)[seen], ended))
    return CellSoFar(f"{horizon:g}", tuple(runs), horizon)


EARLIER = Known([recipe_cell(horizon, sd=0.01) for horizon in (100.0, 200.0, 400.0, 800.0)])


# conformance, over the table


@st.composite
def led(draw: st.DrawFn) -> tuple[CellSoFar, str]:
    """Return a running cell with a run that is best of all at every point and falls; others may lag behind it."""
    points = draw(st.integers(1, 18))
    lead = np.sort(draw(st.lists(st.floats(0.5, 4.0), min_size=points, max_size=points)))[::-1]
    runs = [run("leader", lead.tolist(), lr=draw(st.sampled_from(LRS)))]
    for i in range(draw(st.integers(1, 9))):
        above = draw(st.lists(st.floats(0.0, 30.0), min_size=points, max_size=points))
        kept = draw(st.integers(1, points))
        outcome = draw(st.sampled_from([None, None, "diverged", "stopped"]))
        losses = (lead + above)[:kept]
        runs.append(run(f"other {i}", losses.tolist(), lr=draw(st.sampled_from(LRS)), outcome=outcome))
    order = draw(st.permutations(runs))
    return cell(*order), "leader"


@pytest.mark.parametrize("name", RULES)
@given(case=led())
@settings(max_examples=60, deadline=None)
def test_no_stopper_ends_a_run_that_is_best_at_every_point(name: str, case: tuple[CellSoFar, str]) -> None:
    led_cell, leader = case
    for about in (Known(), EARLIER):
        assert leader not in [stop.key for stop in RULES[name]().stops(led_cell, about)]


@pytest.mark.parametrize("name", RULES)
@given(case=led(), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_every_stopper_says_the_same_of_the_same_curves_in_any_order(
    name: str, case: tuple[CellSoFar, str], seed: int
) -> None:
    some, _ = case
    mixed = replace(some, runs=tuple(np.random.default_rng(seed).permutation(np.array(some.runs, dtype=object))))
    first, again, other = (RULES[name]().stops(c, EARLIER) for c in (some, some, mixed))
    assert first == again
    assert {stop.key for stop in first} == {stop.key for stop in other}
    assert {stop.key for stop in first} <= {r.key for r in some.running}


@pytest.mark.parametrize("name", RULES)
def test_a_cell_that_has_not_begun_is_left_alone(name: str) -> None:
    assert RULES[name]().stops(cell(run("a", []), run("b", [])), EARLIER) == ()


def test_the_rules_that_rank_raw_losses_are_named_as_biased_and_one_learns() -> None:
    assert STOPPERS.keys() == RULES.keys() - {"none"}
    assert [name for name, rule in RULES.items() if rule.learns] == ["dominated"]
    assert {name for name, rule in RULES.items() if rule.biased} == {"patience", "median", "asha"}
    assert all((rule.__doc__ or "").startswith("Biased.") for rule in (Median, Asha))


@pytest.mark.parametrize(
    ("rule", "fields", "message"),
    [
        (Diverged, {"above": 1.0}, "above: must be a finite factor over 1, got 1.0"),
        (Patience, {"share": 0.0}, "share: must be between 0 and 1, got 0.0"),
        (Patience, {"least_gain": 1.0}, "least_gain: must be at least 0 and below 1"),
        (Dominated, {"confidence": 0.5}, "confidence: must be between 0.5 and 1, got 0.5"),
        (Dominated, {"grace_share": 1.0}, "grace_share: must be at least 0 and below 1"),
        (Dominated, {"neighbours": -1}, "neighbours: must be at least 0, got -1"),
        (Median, {"grace_share": -0.1}, "grace_share"),
        (Median, {"least_runs": 1}, "least_runs: must be at least 2"),
        (Asha, {"eta": 1.0}, "eta: must be over 1"),
        (Asha, {"first_share": 1.0}, "first_share: must be between 0 and 1"),
    ],
)
def test_fields_out_of_range_are_refused(rule: type, fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        rule(**fields)


# rules on one run


def test_a_run_diverges_at_a_loss_that_is_not_finite_or_absurd() -> None:
    runs = [run("nan", [2.0, math.nan]), run("high", [2.0, 6.1]), run("near", [2.0, 5.9]), run("fine", [2.0, 1.0])]
    assert stopped(Diverged(), *runs) == ["nan", "high"]
    assert stopped(Diverged(above=2.5), *runs) == ["nan", "high", "near"]


def test_patience_ends_a_plateau_unless_it_is_the_best_there() -> None:
    flat, falling = run("flat", [3.0, 2.0, *[2.0] * 6]), run("falling", [3.0 - 0.3 * k for k in range(8)])
    assert stopped(Patience(), flat, falling) == ["flat"]
    worse = run("worse", [3.0] * 8)
    assert stopped(Patience(), flat, worse) == ["worse"]
    assert stopped(Patience(share=0.6), flat, falling) == []


# rules that rank


def test_the_median_rule_ends_the_worse_half_and_counts_those_that_are_gone() -> None:
    runs = [run(f"{k}", [3.0, 3.0, 3.0, 3.0, 2.0 + k]) for k in range(6)]
    assert stopped(Median(), *runs) == ["3", "4", "5"]
    gone = [replace(r, outcome="stopped", tokens=r.tokens[:4], loss=r.loss[:4]) for r in runs[3:]]
    assert stopped(Median(), *runs[:3], *gone) == []
    assert stopped(Median(), *runs[:3]) == []
    assert stopped(Median(grace_share=0.5), *runs) == []


def test_asha_keeps_a_quarter_at_each_rung() -> None:
    runs = [run(f"{k}", [2.0 + k] * 2) for k in range(8)]
    assert stopped(Asha(), *runs, horizon=32.0) == [f"{k}" for k in range(2, 8)]
    assert stopped(Asha(eta=2.0), *runs, horizon=32.0) == [f"{k}" for k in range(4, 8)]
    assert stopped(Asha(), *runs, horizon=40.0) == []


def test_asha_judges_at_the_rung_not_at_the_last_report() -> None:
    late = run("late", [4.0, 4.0, 1.0])
    early = [run(f"{k}", [2.0 + k, 2.0 + k, 2.0 + k]) for k in range(3)]
    assert "late" in stopped(Asha(first_share=2 / 32), late, *early, horizon=32.0)


# dominated, from history


def test_a_winner_that_trails_goes_on_and_what_cannot_win_is_ended() -> None:
    on_its_way = recipe_cell(1600.0, until=0.6, sd=0.01)
    at = {r.key: float(r.loss[-1]) for r in on_its_way.runs}
    end = {r.key: float(r.loss[-1]) for r in recipe_cell(1600.0, sd=0.01).runs}
    winner = min(end, key=lambda key: end[key])
    assert at[winner] > min(at.values())
    gone = [stop.key for stop in Dominated().stops(on_its_way, EARLIER)]
    assert winner not in gone
    assert {"0.016/0", "0.032/0", "0.064/1"} <= set(gone)
    assert all(end[key] > end[winner] for key in gone)


def test_runs_at_lrs_beside_the_best_go_on_so_that_an_optimum_can_be_fitted() -> None:
    on_its_way = recipe_cell(1600.0, until=0.9)
    kept = {}
    for neighbours in (0, 1, 2):
        gone = {stop.key for stop in Dominated(neighbours=neighbours).stops(on_its_way, EARLIER)}
        kept[neighbours] = sorted({r.lr for r in on_its_way.runs if r.key not in gone})
    assert kept[1] == LRS[:2]
    assert kept[2] == LRS[:3]
    assert set(kept[0]) <= set(kept[1])


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_with_too_little_history_nothing_is_ended(cells: int) -> None:
    assert Dominated().stops(recipe_cell(1600.0, until=0.9), Known(EARLIER.earlier[:cells])) == ()


def test_cells_of_another_recipe_teach_nothing() -> None:
    foreign = Known([replace(c, recipe="other") for c in EARLIER.earlier])
    assert Dominated().stops(recipe_cell(1600.0, until=0.9), foreign) == ()


def test_an_lr_far_from_any_that_finished_is_not_judged() -> None:
    wide = recipe_cell(1600.0, until=0.9, lrs=[*LRS, 1.0, 2.0, 8.0])
    gone = {stop.key for stop in Dominated().stops(wide, EARLIER)}
    assert gone
    assert not gone & {"1/0", "2/0", "8/0"}


def test_a_higher_confidence_ends_no_more() -> None:
    on_its_way = recipe_cell(1600.0, until=0.5, sd=0.05)
    noisy = Known([recipe_cell(horizon, sd=0.05) for horizon in (100.0, 200.0, 400.0, 800.0)])
    ended = [{s.key for s in Dominated(confidence=c).stops(on_its_way, noisy)} for c in (0.8, 0.95, 0.999)]
    assert ended[2] <= ended[1] <= ended[0]
    assert len(ended[2]) < len(ended[0])


def test_a_finished_run_of_the_cell_ends_those_that_will_be_above_it() -> None:
    on_its_way = recipe_cell(1600.0, until=0.5)
    done = RunSoFar("done", 1e-3, 7, np.array([800.0, 1600.0]), np.array([0.2, 0.1]), "finished")
    with_it = replace(on_its_way, runs=(*on_its_way.runs, done))
    gone = {stop.key for stop in Dominated(neighbours=0).stops(with_it, EARLIER)}
    assert gone == {r.key for r in on_its_way.runs}


def test_losses_that_are_not_positive_are_compared_as_they_are() -> None:
    def lowered(c: CellSoFar) -> CellSoFar:
        return replace(c, runs=tuple(replace(r, loss=np.log(r.loss)) for r in c.runs))

    gone = Dominated().stops(lowered(recipe_cell(1600.0, until=0.6)), Known([lowered(c) for c in EARLIER.earlier]))
    assert {"0.032/0", "0.064/0"} <= {stop.key for stop in gone}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    # 40 drawn recipes of one noise; errors of a cell go together, so that a share below 0.9 would be an interval too
    # narrow by a third or more
    held = []
    for draw in range(40):
        horizons = [100.0 + draw, 200.0 + draw, 400.0 + draw, 800.0 + draw]
        lessons = lessons_of([recipe_cell(h, sd=0.05) for h in horizons])
        full, now = (recipe_cell(1600.0 + draw, until=u, sd=0.05) for u in (1.0, 0.5))
        said = predict_finals(now, now.runs, lessons, share=0.5, confidence=0.95, relative=True)
        end = {r.key: math.log(r.loss[-1]) for r in full.runs}
        held += [height - half < end[key] for key, height, half in zip(said.keys, said.height, said.half, strict=True)]
    assert len(held) > 400
    assert np.mean(held) > 0.9


# dominated, by a curve law


TRUE = known(Momentum(), {"L0": 3.1, "A": 0.25, "C": 1.5, "alpha": 0.5})


def curve_run(name: str, lrs: list[float], seen: int) -> RunSoFar:
    step = np.arange(240, 2401, 40)
    path = LrPath(np.array(lrs), 200)
    curve = LossCurve(name, path, step, TRUE.predict(path, step)).until(seen)
    return RunSoFar(name, float(path.lr.max()), 0, curve.step.astype(float), curve.loss, None, curve)


def test_a_curve_law_spares_the_schedule_that_falls_late_and_ends_the_one_that_never_does() -> None:
    warm = [3e-4 * k / 200 for k in range(1, 201)]
    constant = [*warm, *[3e-4] * 2200]
    late = [*warm, *[3e-4] * 1400, *[3e-5] * 800]
    cosine = [*warm, *(3e-5 + 2.7e-4 * (1 + np.cos(np.linspace(0, np.pi, 2200))) / 2)]
    paths = {"constant": constant, "late": late, "cosine": cosine}
    full = {name: curve_run(name, lrs, 2400) for name, lrs in paths.items()}
    assert min(full, key=lambda name: full[name].loss[-1]) == "late"
    law = fit_curves([c for name in ("constant", "late") if (c := full[name].curve) is not None], Momentum())
    runs = [curve_run(name, lrs, 1500) for name, lrs in paths.items()]
    assert min(runs, key=lambda r: r.loss[-1]).key == "cosine"
    stops = Dominated().stops(cell(*runs, horizon=2400.0), Known(law=law))
    assert [stop.key for stop in stops] == ["constant", "cosine"]
    assert all("worse at 95% confidence" in stop.why for stop in stops)


def test_a_run_whose_lrs_are_not_known_is_not_judged_by_a_law() -> None:
    runs = [run("a", [3.0] * 8), run("b", [9.0] * 8)]
    step = np.arange(240, 2401, 40)
    lr = np.concatenate([np.full(2000, 3e-4), np.full(400, 3e-5)])
    path = LrPath(lr)
    fitted = fit_curves([LossCurve("x", path, step, TRUE.predict(path, step))], Momentum())
    assert stopped(Dominated(), *runs, about=Known(law=fitted)) == []


# records


def test_a_loss_is_read_between_reports_and_nowhere_else() -> None:
    one = run("a", [3.0, 2.0])
    assert (one.loss_at(1.0), one.loss_at(1.5), one.loss_at(0.5), one.loss_at(2.5)) == (3.0, 2.5, None, None)
    assert run("a", [3.0, math.nan]).loss_at(1.5) == math.inf


def test_curves_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^a: must have one loss a report, got 2 and 1"):
        RunSoFar("a", 1e-3, 0, np.array([1.0, 2.0]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"^a: tokens must ascend"):
        RunSoFar("a", 1e-3, 0, np.array([2.0, 2.0]), np.array([1.0, 1.0]))
