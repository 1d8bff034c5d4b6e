"""What a sweep's stoppers are told and say while it runs: curves of a noisy quadratic, simulated, no training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from orchestrator.board import Board, seen_by
from sweeps.agenda import LOSS, Agenda, Outcome, Stopped, grid_chooser, is_done
from sweeps.curves import Curve
from sweeps.forks import fork_tokens, trunk_key
from sweeps.schedules import learning_rate, schedule_of
from sweeps.spec import Axes, Part, Seeds, Size, Sweep, Trial, Variant
from workloads.quadratic import Quadratic

LRS = tuple(0.0075 * 1.7**k for k in range(10))
HORIZONS = (768, 1280, 2304, 4352)
BATCH = 16
SIZE = Size(100, 100, 600.0, 1, "sample", None, "d")
DOMINATED = Part("dominated", fields={"confidence": 0.95, "grace_share": 0.05, "neighbours": 1})
WSD = Part("wsd", fields={"warmup_tokens": 0, "cooldown_fraction": 0.2, "cooldown": "linear"})


def sweep(*stopping: Part, schedule: str = "cosine", horizons: Sequence[int] = HORIZONS) -> Sweep:
    part = WSD if schedule == "wsd" else Part(schedule)
    axes = Axes(lr=LRS, batch_tokens=(BATCH,), tokens=tuple(horizons), seeds=Seeds((0,)))
    return Sweep("s", (Variant(Part("quadratic"), Part("sgd"), SIZE),), part, axes, stopping=stopping)


def agenda_of(asked: Sweep, outcomes: Iterable[Outcome] = ()) -> Agenda:
    return Agenda(asked, grid_chooser(asked), {outcome.key: outcome for outcome in outcomes})


def curves_of(trials: Sequence[Trial]) -> dict[str, list[dict[str, Any]]]:
    """Return the points of the trials of one cell, as a row reports them."""
    first = trials[0]
    factor = learning_rate(schedule_of(first.schedule), peak=1.0, batch_tokens=BATCH, total=first.tokens)
    factors = [factor(step * BATCH) for step in range(first.tokens // BATCH)]
    lrs = sorted({trial.lr for trial in trials})
    losses = Quadratic().simulate(lrs, [101], batch_tokens=BATCH, marks=list(first.marks), factors=factors)
    return {
        trial.key: [
            {"tokens": mark, "step": mark // BATCH, "timestamp": float(trial.tokens), "metrics": {LOSS: float(loss)}}
            for mark, loss in zip(trial.marks, losses[0, lrs.index(trial.lr)], strict=True)
        ]
        for trial in trials
    }


def outcome(trial: Trial, points: Sequence[dict[str, Any]], **rest: Any) -> Outcome:
    curve = Curve(
        np.array([point["tokens"] for point in points]),
        np.array([point["step"] for point in points]),
        np.array([point["timestamp"] for point in points]),
        {LOSS: np.array([point["metrics"][LOSS] for point in points])},
    )
    return Outcome(trial.key, "finished", trial.tokens, curve, trial=trial.to_json(), **rest)


def by_cell(agenda: Agenda) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for trial in sorted(agenda.trials.values(), key=lambda t: (t.tokens, t.lr)):
        found.setdefault(trial.tokens, []).append(trial)
    return found


def finish(agenda: Agenda, board: Board, trials: Sequence[Trial]) -> None:
    """Let trials of one cell go to their ends."""
    points = curves_of(trials)
    for trial in trials:
        ended = outcome(trial, points[trial.key])
        agenda.end(ended)
        board.ended(ended)


def advance(board: Board, trials: Sequence[Trial], share: float) -> None:
    """Let trials of one cell report together, mark after mark, up to a share of the horizon."""
    points = curves_of(trials)
    for mark in [mark for mark in trials[0].marks if mark <= share * trials[0].tokens]:
        for trial in trials:
            if trial.key not in board.told:
                board.saw(trial.key, [point for point in points[trial.key] if point["tokens"] == mark])


def test_a_board_without_stoppers_says_nothing() -> None:
    agenda = agenda_of(sweep(Part("diverged", fields={"above": 3.0})))
    board = Board(agenda)
    for trials in by_cell(agenda).values():
        advance(board, trials, 0.5)
        finish(agenda, board, trials)
    assert board.told == {}


def last_cell(*, schedule: str = "cosine") -> tuple[Agenda, Board, list[Trial]]:
    """Return a board on which all cells but the last have ended."""
    agenda = agenda_of(sweep(DOMINATED, schedule=schedule))
    board = Board(agenda)
    *earlier, last = by_cell(agenda).values()
    for trials in earlier:
        finish(agenda, board, trials)
    return agenda, board, last


def test_the_hopeless_runs_of_a_later_cell_are_told_to_stop_and_a_decision_stays() -> None:
    agenda, board, last = last_cell()
    advance(board, last, 0.6)
    ends = {trial.lr: curves_of(last)[trial.key][-1]["metrics"][LOSS] for trial in last}
    best = LRS.index(min(ends, key=lambda lr: ends[lr]))
    told = {LRS.index(agenda.trials[key].lr) for key in board.told}
    assert told
    assert not told & {best - 1, best, best + 1}
    for key, stop in board.told.items():
        trial = agenda.trials[key]
        assert stop.by == DOMINATED.identity()
        assert stop.report_tokens in trial.marks
        assert stop.horizon_tokens == trial.tokens
        assert stop.forecast is not None
        assert stop.forecast.low < stop.forecast.loss < stop.forecast.high
        assert stop.forecast.best < stop.forecast.loss
        assert Stopped.from_json(stop.to_json()) == stop
    before = dict(board.told)
    advance(board, last, 1.0)
    assert {key: board.told[key] for key in before} == before


def test_the_first_three_cells_are_never_cut() -> None:
    agenda = agenda_of(sweep(DOMINATED))
    board = Board(agenda)
    for trials in list(by_cell(agenda).values())[:3]:
        advance(board, trials, 1.0)
        finish(agenda, board, trials)
    assert board.told == {}


def test_a_new_board_says_of_the_same_outcomes_what_the_first_one_said() -> None:
    agenda, board, last = last_cell()
    again = agenda_of(sweep(DOMINATED), agenda.outcomes.values())
    other = Board(again)
    advance(board, last, 0.6)
    advance(other, last, 0.6)
    assert other.told == board.told


def test_a_run_that_waits_for_its_trunk_is_judged_by_what_the_trunk_saw() -> None:
    agenda, board, last = last_cell(schedule="wsd")
    points = curves_of(last)
    for trial in last:
        key, fork = trunk_key(trial), fork_tokens(trial)
        assert key is not None
        assert fork is not None
        seen = [point for point in points[trial.key] if point["tokens"] <= fork]
        board.saw(key, [*seen, {**seen[-1], "tokens": fork}], trunk=True)  # the fork itself is no mark
    assert board.told
    key, stop = next(iter(board.told.items()))
    record = board.outcome(agenda.trials[key], trunk="t")
    assert record["outcome"] == "stopped"
    assert record["curve"]["tokens"] == [mark for mark in last[0].marks if mark <= record["tokens"]]
    assert record["forked_from"] == ("t", record["tokens"])
    assert record["stop"] == stop.to_json()


def test_a_branch_sees_of_its_trunk_its_own_marks_before_its_fork() -> None:
    (*_, last) = by_cell(agenda_of(sweep(DOMINATED, schedule="wsd"))).values()
    trial, fork = last[0], fork_tokens(last[0]) or 0
    points = [seen(tokens) for tokens in (*trial.marks, fork)]
    mine = seen_by(trial, points)
    assert [point.tokens for point in mine] == [mark for mark in trial.marks if mark <= fork]
    assert all(set(point.metrics) == {LOSS} for point in mine)


def seen(tokens: int) -> Any:
    from orchestrator.board import Seen

    return Seen(tokens, tokens // BATCH, 0.0, {LOSS: 1.0, "train/loss": 2.0})


def test_a_run_that_serves_several_horizons_is_not_stopped_before_the_one_before_the_last() -> None:
    asked = sweep(Part("median", fields={"grace_share": 0.05, "least_runs": 4}), schedule="constant")
    agenda = agenda_of(asked)
    board = Board(agenda)
    trials = sorted(agenda.trials.values(), key=lambda t: t.lr)
    for mark in trials[0].marks:
        for i, trial in enumerate(trials):
            point = {"tokens": mark, "step": 1, "timestamp": 0.0, "metrics": {LOSS: 1.0 + i}}
            board.saw(trial.key, [point])
        assert not board.told or mark >= HORIZONS[-2]
    assert board.told


@pytest.mark.parametrize("change", ["rule", "field", "horizon"])
def test_a_stopped_trial_is_done_only_while_its_stopper_is_followed_to_the_same_horizon(change: str) -> None:
    trial = next(iter(agenda_of(sweep(DOMINATED)).trials.values()))
    stop = Stopped(DOMINATED.identity(), "hopeless", 64, trial.tokens)
    ended = Outcome(trial.key, "stopped", 64, Curve(), stop=stop)
    assert is_done(trial, ended)
    other = {
        "rule": agenda_of(sweep()),
        "field": agenda_of(sweep(Part("dominated", fields={**DOMINATED.fields, "confidence": 0.99}))),
    }
    if change == "horizon":
        stop = Stopped(DOMINATED.identity(), "hopeless", 64, 2 * trial.tokens)
        assert not is_done(trial, Outcome(trial.key, "stopped", 64, Curve(), stop=stop))
    else:
        assert not is_done(other[change].trials[trial.key], ended)
