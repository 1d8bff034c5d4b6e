from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.agenda import LOSS, Agenda, Outcome, first_tokens, first_trials, grid_chooser, is_done
from sweeps.curves import Curve
from sweeps.spec import Axes, Budget, LawSpec, Part, Range, Search, Seeds, Size, Sweep, Trial, Validation, Variant

SIZE = Size(
    parameters=100,
    total_parameters=120,
    flops_per_token=600.0,
    tokens_per_example=1,
    unit="sample",
    train_tokens=None,
    data_fingerprint="d",
)


def sweep(*, tokens: tuple[int, ...] = (1024, 2048), budget: Budget | None = None, **rest: object) -> Sweep:
    fields = {
        "name": "s",
        "variants": (Variant(Part("quadratic"), Part("sgd"), SIZE),),
        "schedule": Part("wsd"),
        "axes": Axes(lr=Range(1e-3, 1e-1, "log", 5), batch_tokens=(16, 64), tokens=tokens, seeds=Seeds((0, 1))),
        "budget": budget or Budget(),
        **rest,
    }
    return Sweep(**fields)  # type: ignore[arg-type]


def outcome(trial: Trial, loss: float | None) -> Outcome:
    """The outcome of a trial whose loss is the same at every mark; None diverges."""
    marks = trial.marks if loss is not None else trial.marks[:1]
    curve = Curve(
        tokens=list(marks),  # type: ignore[arg-type]
        step=[m // trial.batch_tokens for m in marks],  # type: ignore[arg-type]
        timestamp=[0.0 for _ in marks],  # type: ignore[arg-type]
        metrics={LOSS: [loss if loss is not None else 9.0 for _ in marks]},  # type: ignore[dict-item]
    )
    kind = "finished" if loss is not None else "diverged"
    return Outcome(key=trial.key, outcome=kind, tokens=marks[-1], curve=curve)


def play(agenda: Agenda, loss: Callable[[Trial], float | None], *, seed: int = 0, width: int = 3) -> None:
    """Run an agenda to its end, `width` trials at once, ending in a random order."""
    rng = random.Random(seed)
    running: list[Trial] = []
    while not agenda.complete:
        while len(running) < width and (family := agenda.take()):
            running += family
        ended = running.pop(rng.randrange(len(running)))
        agenda.end(outcome(ended, loss(ended)))


def bowl(best: float) -> Callable[[Trial], float]:
    import math

    return lambda trial: 1.0 + (math.log(trial.lr / best)) ** 2


def test_an_empty_agenda_holds_the_whole_grid_dearest_first() -> None:
    asked = sweep()
    waiting = Agenda(asked, grid_chooser(asked), {}).waiting()
    assert len(waiting) == first_trials(asked) == 5 * 2 * 4
    assert [t.tokens for t in waiting] == sorted((t.tokens for t in waiting), reverse=True)


def test_an_optimum_inside_the_grid_adds_nothing() -> None:
    asked = sweep()
    agenda = Agenda(asked, grid_chooser(asked), {})
    play(agenda, bowl(1e-2))
    assert len(agenda.trials) == first_trials(asked)


def test_an_optimum_beyond_the_grid_is_followed_until_it_is_bracketed() -> None:
    asked = sweep(search=Search(grow=4))
    agenda = Agenda(asked, grid_chooser(asked), {})
    play(agenda, bowl(0.5))
    assert max(t.lr for t in agenda.trials.values()) == pytest.approx(1.0)
    for cell in agenda.cells:
        results = agenda.results(cell)
        best = min(results, key=lambda r: r.loss or 9e9)
        assert best.lr < max(r.lr for r in results)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(1e-4, 1.0))
def test_the_order_in_which_trials_end_does_not_matter(seed: int, width: int, best: float) -> None:
    asked = sweep(budget=Budget(trials=50))
    one, other = (Agenda(asked, grid_chooser(asked), {}) for _ in range(2))
    play(one, bowl(best), seed=seed, width=width)
    play(other, bowl(best), seed=0, width=1)
    assert set(one.trials) == set(other.trials)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 60), st.integers(0, 100))
def test_an_agenda_cut_short_and_made_again_asks_for_the_rest_alone(cut: int, seed: int) -> None:
    asked = sweep()
    whole = Agenda(asked, grid_chooser(asked), {})
    play(whole, bowl(0.3))
    kept = dict(random.Random(seed).sample(sorted(whole.outcomes.items()), min(cut, len(whole.outcomes))))
    again = Agenda(asked, grid_chooser(asked), kept)
    assert not {t.key for t in again.waiting()} & set(kept)
    play(again, bowl(0.3), seed=seed)
    assert again.outcomes == whole.outcomes


def test_the_budget_bounds_growth() -> None:
    asked = sweep(budget=Budget(trials=42))
    agenda = Agenda(asked, grid_chooser(asked), {})
    play(agenda, bowl(10.0))
    assert len(agenda.trials) <= 42
    assert agenda.refused


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(0, 10**6), st.integers(1, 5))
def test_the_budget_of_tokens_bounds_growth_whatever_the_order(rows: int, seed: int, width: int) -> None:
    needed = first_tokens(sweep())
    asked = sweep(budget=Budget(tokens=needed + rows * 2048.0), search=Search(grow=4))
    one, other = (Agenda(asked, grid_chooser(asked), {}) for _ in range(2))
    play(one, bowl(10.0), seed=seed, width=width)
    play(other, bowl(10.0))
    assert set(one.trials) == set(other.trials)
    assert needed <= sum(t.tokens for t in one.trials.values()) <= needed + rows * 2048
    # each of the 4 cells has an equal share, and a step of growth takes both seeds: 2,048 tokens in the shorter cells
    assert {t.tokens for t in one.trials.values() if t.lr > 0.1} == ({1024} if rows >= 4 else set()) | (
        {2048} if rows >= 8 else set()
    )
    assert any("budget.tokens" in line for line in one.refused)


def test_the_least_tokens_are_those_of_the_first_trials() -> None:
    asked = sweep(validate=Validation(tokens=4096, batch_tokens=16, seeds=3))
    waiting = Agenda(asked, grid_chooser(asked), {}).waiting()
    assert first_tokens(asked) == sum(t.tokens for t in waiting) + 3 * 3 * 4096


def test_each_law_has_a_held_out_check_of_its_own() -> None:
    variants = tuple(Variant(Part("quadratic"), Part("sgd", fields={"m": m}), SIZE, {"optimizer.m": m}) for m in (0, 1))
    asked = sweep(variants=variants, validate=Validation(tokens=4096, batch_tokens=16, seeds=3))
    profiled = sweep(variants=variants, validate=asked.validate, law=LawSpec(profile_over=("m",)))
    assert first_trials(asked) - 2 * 40 == 2 * 9
    assert first_trials(profiled) - 2 * 40 == 9


def test_diverged_trials_are_outcomes_and_bracket_from_above() -> None:
    asked = sweep()
    agenda = Agenda(asked, grid_chooser(asked), {})
    play(agenda, lambda t: None if t.lr > 2e-2 else bowl(1.0)(t))
    assert len(agenda.trials) == first_trials(asked)


def test_a_failed_trial_is_run_again_by_the_next_agenda() -> None:
    asked = sweep()
    agenda = Agenda(asked, grid_chooser(asked), {})
    trial, *others = agenda.take()
    for other in others:
        agenda.end(outcome(other, 1.0))
    empty = outcome(trial, 1.0).curve.until(0)
    agenda.end(Outcome(key=trial.key, outcome="failed", tokens=0, curve=empty))
    play(agenda, bowl(1e-2))
    again = Agenda(asked, grid_chooser(asked), agenda.outcomes)
    assert [t.key for t in again.waiting()] == [trial.key]


def test_under_an_open_ended_schedule_a_longer_horizon_goes_on_with_the_same_trials() -> None:
    short, long = (sweep(schedule=Part("constant"), tokens=t) for t in ((1024, 2048), (1024, 2048, 8192)))
    first = Agenda(short, grid_chooser(short), {})
    play(first, bowl(1e-2))
    then = Agenda(long, grid_chooser(long), first.outcomes)
    assert {t.key for t in then.waiting()} == set(first.trials)
    assert {t.tokens for t in then.waiting()} == {8192}


def on_paper(trial: Trial) -> float:
    """A loss whose best LR, 0.3, is beyond the grid."""
    return bowl(0.3)(trial)


GROWN = {"axes": Axes(lr=(1e-3, 1e-2, 1e-1), batch_tokens=(16,), tokens=(1024, 2048)), "budget": Budget(trials=10)}
LONGER = {
    "axes": Axes(lr=(1e-3, 1e-2, 1e-1), batch_tokens=(16,), tokens=(1024, 2048, 4096)),
    "budget": Budget(trials=10),
}


def test_a_longer_axis_keeps_the_growth_that_is_paid_for() -> None:
    short, long = sweep(**GROWN), sweep(**LONGER)
    first = Agenda(short, grid_chooser(short), {})
    play(first, on_paper)
    assert {t.tokens for t in first.trials.values() if t.lr > 0.1} == {1024, 2048}
    then = Agenda(long, grid_chooser(long), first.outcomes)
    play(then, on_paper)
    assert set(first.trials) < set(then.trials)
    assert len(then.trials) - len(first.trials) == 3  # a third of what is left, none, is the longest cell's


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 12))
def test_what_is_paid_for_does_not_depend_on_the_order_or_on_a_kill(seed: int, width: int, cut: int) -> None:
    short, long = sweep(**GROWN), sweep(**LONGER)
    first = Agenda(short, grid_chooser(short), {})
    play(first, on_paper)
    before = dict(random.Random(seed).sample(sorted(first.outcomes.items()), min(cut, len(first.outcomes))))
    one, other = (Agenda(long, grid_chooser(long), before) for _ in range(2))
    play(one, on_paper, seed=seed, width=width)
    play(other, on_paper)
    assert set(one.trials) == set(other.trials)
    new = sorted((key, outcome) for key, outcome in one.outcomes.items() if key not in before)
    killed = {**before, **dict(new[: len(new) // 2])}
    again = Agenda(long, grid_chooser(long), killed)
    play(again, on_paper, seed=seed)
    assert again.outcomes == one.outcomes


def test_a_trial_that_passed_a_new_horizon_without_a_look_is_not_done() -> None:
    asked, wider = (sweep(schedule=Part("constant"), tokens=t) for t in ((1024, 2048), (960, 1024, 2048)))
    first = Agenda(asked, grid_chooser(asked), {})
    play(first, bowl(1e-2))
    then = Agenda(wider, grid_chooser(wider), first.outcomes)
    assert {t.key for t in then.waiting()} == set(first.trials)
    assert not any(
        cell.tokens == 960 for cell in then.cells if then.results(cell)
    )  # it says nothing there until it ran again
    play(then, bowl(1e-2))
    assert then.complete
    assert not Agenda(wider, grid_chooser(wider), then.outcomes).waiting()
    assert not Agenda(asked, grid_chooser(asked), then.outcomes).waiting()


def test_a_mark_that_a_run_was_asked_for_and_made_no_point_at_is_not_asked_for_again() -> None:
    asked = sweep(schedule=Part("constant"), tokens=(960, 2048))
    (trial, *_) = Agenda(asked, grid_chooser(asked), {}).waiting()
    whole = outcome(trial, 1.0)
    silent = replace(whole, curve=whole.curve.since(1024))
    assert not is_done(trial, silent)
    assert is_done(trial, replace(silent, trial=trial.to_json()))


def test_a_trial_that_diverged_by_a_lower_factor_is_not_done_and_one_of_no_finite_loss_is() -> None:
    trials = {
        above: Agenda(asked, grid_chooser(asked), {}).waiting()[0]
        for above in (1.5, 3.0, 10.0)
        for asked in [sweep(stopping=(Part("diverged", fields={"above": above}),))]
    }
    assert len({trial.key for trial in trials.values()}) == 1
    diverged = replace(outcome(trials[3.0], None), exceeded=3.0)
    assert [is_done(trials[above], diverged) for above in (1.5, 3.0, 10.0)] == [True, True, False]
    assert all(is_done(trial, replace(diverged, exceeded=None)) for trial in trials.values())


def test_the_held_out_check_is_part_of_the_least_a_sweep_needs() -> None:
    assert first_trials(sweep(validate=Validation(tokens=4096, batch_tokens=16, seeds=3))) == 40 + 9


LEARNS = (Part("dominated", fields={"confidence": 0.95, "grace_share": 0.05, "neighbours": 1}),)
WSD = Part("wsd", fields={"warmup_tokens": 0, "cooldown_fraction": 0.2, "cooldown": "linear"})


def test_a_stopper_that_learns_brings_short_trials_first_and_one_of_a_trunk_at_a_time() -> None:
    asked = sweep(tokens=(1024, 2048, 4096), schedule=WSD, stopping=LEARNS)
    agenda = Agenda(asked, grid_chooser(asked), {})
    waiting = agenda.waiting()
    assert [(t.tokens, t.batch_tokens) for t in waiting] == sorted((t.tokens, t.batch_tokens) for t in waiting)
    assert [t.lr for t in waiting[:2]] == [0.01, 0.01]  # the middle one, both seeds
    taken = [agenda.take() for _ in range(21)]
    assert taken[-1] == []  # five LRs, two seeds, two batches: all their trunks are under way
    assert [len(some) for some in taken[:-1]] == [1] * 20
    ((first,), *_) = taken
    assert [t.tokens for t in agenda.later(first)] == [2048, 4096]
    agenda.end(outcome(first, 1.0))
    ((longer,), more) = agenda.take(), agenda.take()
    assert (longer.tokens, longer.lr, longer.seed, longer.batch_tokens) == (2048, first.lr, first.seed, 16)
    assert more == []


@pytest.mark.parametrize("schedule", [WSD, Part("cosine")], ids=["wsd", "cosine"])
def test_the_order_of_a_stopper_that_learns_changes_no_growth(schedule: Part) -> None:
    grown = []
    for stopping in ((), LEARNS):
        asked = sweep(schedule=schedule, stopping=stopping)
        agenda = Agenda(asked, grid_chooser(asked), {})
        play(agenda, bowl(0.3))
        grown.append(sorted(agenda.trials))
    assert grown[0] == grown[1]
    assert len(grown[0]) > 40


def test_a_stopped_trial_is_no_best_lr_and_no_edge() -> None:
    asked = sweep()
    agenda = Agenda(asked, grid_chooser(asked), {})
    told = bowl(0.1)
    while not agenda.complete:
        for trial in agenda.take():
            ended = outcome(trial, told(trial))
            hopeless = trial.lr == 0.1 and trial.tokens == 2048
            agenda.end(replace(ended, outcome="stopped", curve=Curve()) if hopeless else ended)
    lrs = {tokens: {t.lr for t in agenda.trials.values() if t.tokens == tokens} for tokens in (1024, 2048)}
    assert max(lrs[1024]) > 0.1  # its best is the highest tried: it grows
    assert max(lrs[2048]) == 0.1
