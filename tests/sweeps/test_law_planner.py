from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.agenda import LOSS, Agenda, LawPlanner, Outcome, first_tokens, first_trials
from sweeps.curves import Curve
from sweeps.laws.published import Question, published
from sweeps.spec import (
    JOINT,
    Axes,
    Budget,
    LawSpec,
    Part,
    Range,
    Search,
    Seeds,
    Size,
    Sweep,
    Trial,
    Validation,
    Variant,
)

SIZE = Size(
    parameters=100,
    total_parameters=100,
    flops_per_token=600.0,
    tokens_per_example=1,
    unit="token",
    train_tokens=None,
    data_fingerprint="",
)


def sweep(**more: Any) -> Sweep:
    made = Sweep(
        name="drawn",
        variants=(Variant(Part("w"), Part("sgd"), SIZE),),
        schedule=Part("wsd", fields={"warmup_tokens": 0}),
        axes=Axes(
            lr=Range(1e-4, 1e-1, "log", None),
            batch_tokens=(256, 1024),
            tokens=(2**14, 2**15, 2**16),
            steps=None,
            seeds=Seeds((0, 1)),
            extra={},
        ),
        search=Search(name="law", trials=30, wave=4),
        law=LawSpec(estimator=JOINT),
        validate=Validation(tokens=2**18, batch_tokens=1024),
    )
    return replace(made, **more)


def best_lr(batch: float, tokens: float) -> float:
    return float(4e-3 * (batch / 1024) ** 0.4 * (tokens / 2**15) ** -0.3)


def outcome_of(trial: Trial) -> Outcome:
    """Return what a drawn basin gives, its noise a function of the trial alone."""
    noise = 0.003 * np.random.default_rng(int(trial.key[:12], 16)).standard_normal()
    u = math.log(trial.lr / best_lr(trial.batch_tokens, trial.tokens))
    if u > 2.5:
        return Outcome(key=trial.key, outcome="diverged", tokens=trial.marks[0], curve=Curve(), trial=trial.to_json())
    loss = 2.5 * (trial.tokens / 2**15) ** -0.06 * math.exp(0.04 * u * u + noise)
    curve = Curve.from_json({"tokens": [trial.tokens], "step": [1], "timestamp": [0.0], "metrics": {LOSS: [loss]}})
    return Outcome(key=trial.key, outcome="finished", tokens=trial.tokens, curve=curve, trial=trial.to_json())


def run(asked: Sweep, *, outcomes: dict[str, Outcome] | None = None, most: int = 10_000, last: bool = False) -> Agenda:
    """Run an agenda to its end, or to so many trials; `last` takes the shortest trial first."""
    agenda = Agenda(asked, LawPlanner(asked), outcomes or {})
    for _ in range(most):
        waiting = agenda.waiting()
        if not waiting:
            break
        taken = agenda.take()
        if last:
            while more := agenda.take():
                taken += more
        for trial in reversed(taken):
            agenda.end(outcome_of(trial))
    return agenda


def test_a_search_for_the_law_spends_its_trials_over_all_cells() -> None:
    agenda = run(sweep())
    assert agenda.complete
    assert len(agenda.trials) == 30
    assert {t.batch_tokens for t in agenda.trials.values()} == {256, 1024}
    assert len({t.tokens for t in agenda.trials.values()}) == 3
    assert sum(len(agenda.results(cell)) for cell in agenda.cells) == 30
    assert all(agenda.is_complete(cell) for cell in agenda.cells)


def test_it_starts_spread_out_and_goes_on_in_waves() -> None:
    asked = sweep()
    agenda = Agenda(asked, LawPlanner(asked), {})
    first = agenda.waiting()
    assert len(first) == 8
    taken = [trial for _ in first for trial in agenda.take()]
    assert {trial.key for trial in taken} == {trial.key for trial in first}
    for trial in taken:
        agenda.end(outcome_of(trial))
    assert len(agenda.waiting()) == 4


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(0, 29), last=st.booleans())
def test_the_trials_depend_neither_on_the_order_in_which_they_end_nor_on_a_kill(cut: int, last: bool) -> None:
    whole = set(run(sweep()).trials)
    killed = run(sweep(), most=cut).outcomes
    assert set(run(sweep(), outcomes=killed, last=last).trials) == whole


def test_it_ends_when_the_law_is_known_as_closely_as_was_asked() -> None:
    asked = sweep(search=Search(name="law", trials=60, wave=4, until=2.5))
    agenda = run(asked)
    assert agenda.complete
    assert len(agenda.trials) < 60


def test_it_does_not_end_before_a_law_can_be_fitted() -> None:
    agenda = run(sweep(search=Search(name="law", trials=60, wave=4, until=1e6)))  # known before anything is trained
    ran = [cell for cell in agenda.cells if agenda.results(cell)]
    assert 4 <= len(ran) < len(agenda.cells) + 1
    assert len({cell.batch_tokens for cell in ran}) > 1
    assert len({cell.tokens for cell in ran}) > 1
    assert len(agenda.trials) <= 16


def test_most_of_its_trials_lie_near_the_best_lr() -> None:
    later = list(run(sweep()).trials.values())[8:]
    off = [abs(math.log(t.lr / best_lr(t.batch_tokens, t.tokens))) for t in later]
    assert float(np.median(off)) < 1.5  # a range of ln 1000 = 6.9 drawn at random: 1.9 about its middle


def test_a_budget_of_tokens_ends_it_and_says_so() -> None:
    free = run(sweep(validate=None))
    spent = sum(t.tokens for t in free.trials.values())
    asked = sweep(validate=None, budget=Budget(tokens=0.6 * spent))
    agenda = run(asked)
    assert agenda.complete
    assert sum(t.tokens for t in agenda.trials.values()) <= 0.6 * spent
    assert agenda.refused == ["all cells: budget.tokens leaves no more tokens"]


def test_the_least_a_search_for_the_law_needs_is_its_trials_at_their_shortest() -> None:
    assert first_trials(sweep()) == 30 + 9
    assert first_tokens(sweep()) == 30 * 2**14 + 9 * 2**18


def test_the_axes_of_two_laws_are_searched_apart() -> None:
    variants = tuple(
        Variant(Part("w", fields={"decay": d}), Part("sgd"), SIZE, {"workload.decay": d}) for d in (0.0, 0.1)
    )
    asked = sweep(variants=variants)
    asked = replace(asked, axes=replace(asked.axes, extra={"workload.decay": (0.0, 0.1)}))
    agenda = run(asked)
    assert len(agenda.trials) == 60
    by_law = [t.workload.fields["decay"] for t in agenda.trials.values()]
    assert by_law.count(0.0) == by_law.count(0.1) == 30


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_seeds_of_a_place_are_different_trials(schedule: str) -> None:
    asked = sweep(schedule=Part(schedule), axes=replace(sweep().axes, lr=(2e-3, 4e-3, 8e-3)))
    agenda = run(asked)
    assert len(agenda.trials) == len(set(agenda.trials))
    places = [(t.lr, t.batch_tokens, t.tokens) for t in agenda.trials.values()]
    assert max(places.count(p) for p in places) <= 2


def test_a_search_may_start_from_a_published_law() -> None:
    big = replace(SIZE, parameters=10**8)
    made = sweep(
        variants=(Variant(Part("w"), Part("sgd"), big),),
        search=Search(name="law", trials=30, wave=4, from_law="step-law"),
    )
    first = Agenda(made, LawPlanner(made), {}).trials.values()
    answers = [published("step-law").ask(Question(tokens=2.0**k, parameters=1e8)).lr for k in (14, 15, 16)]
    longest = [t for t in first if t.tokens == 2**16]
    assert any(abs(math.log(t.lr / answers[-1])) < 0.5 * math.log(2) for t in longest)
    plain = {(t.lr, t.tokens, t.batch_tokens) for t in Agenda(sweep(), LawPlanner(sweep()), {}).trials.values()}
    assert {(t.lr, t.tokens, t.batch_tokens) for t in first} != plain
