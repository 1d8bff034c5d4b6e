"""What policies over whole studies promise: what they cost, and that no time to target changes without a rule."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import statistics
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.errors import ConfigError
from sweeps.replay.stopping.study import (
    POLICIES,
    Study,
    Times,
    first_success,
    full,
    in_sequence,
    oracle,
    own_target,
    replay_policy,
    replay_rule,
)
from sweeps.stopping import RULES, CellSoFar, Known, RunSoFar, Stop
from sweeps.stopping.plain import NoStopper
from sweeps.stopping.ranked import Median

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "stopping.py"
HORIZON = 40.0


class StopAt:
    """Ends named trials at a share of the horizon, and keeps what it was told of earlier studies."""

    version = 1
    biased = False

    def __init__(self, **share: float) -> None:
        self.share, self.earlier = share, ()

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        self.earlier = tuple(known.earlier)
        due = [run for run in cell.running if cell.share(run) >= self.share.get(run.key, math.inf) - 1e-9]
        return tuple(Stop(run.key, "asked") for run in due)


def times(end: list[float], reached: list[float]) -> Times:
    return Times(np.array(end), np.array(reached))


def run(key: str, losses: list[float], outcome: str = "finished") -> RunSoFar:
    return RunSoFar(key, 1e-3, 0, np.arange(1.0, len(losses) + 1), np.array(losses), outcome)


def straight(key: str, reached: int | None, end: int = int(HORIZON)) -> RunSoFar:
    """Return a trial with a report each unit of time, at 1.0 or below from `reached` on."""
    return run(key, [1.0 if reached is not None and t >= reached else 2.0 for t in range(1, end + 1)])


def study(*runs: RunSoFar, name: str = "study") -> Study:
    return Study(CellSoFar(name, runs, HORIZON), target=1.0)


# a study with a known answer: over at 40, 40 and 20; at the target at 10, 30 and never

KNOWN = times([40.0, 40.0, 20.0], [10.0, 30.0, math.inf])


@pytest.mark.parametrize(
    ("policy", "spent"),
    [
        ("full", 100.0),
        ("own target", 10 + 30 + 20),
        ("first success", 10 + 10 + 10),
        # of 10, 30, 20 in the orders abc, acb: 30; bac: 30+10+10; bca: 30+20+10; cab: 20+10+10; cba: 20+30+10
        ("in sequence", (30 + 30 + 50 + 60 + 40 + 60) / 6),
        ("oracle", 10.0),
    ],
)
def test_a_small_study_costs_what_is_counted_by_hand(policy: str, spent: float) -> None:
    assert POLICIES[policy](KNOWN) == pytest.approx(spent)
    by_curves = study(straight("a", 10), straight("b", 30), straight("c", None, end=20))
    (score,) = replay_policy([by_curves], policy).scores
    assert (score.total, score.spent) == (100.0, pytest.approx(spent))
    assert (score.best, score.reached, score.lost, score.worse) == (10.0, 10.0, False, False)


@pytest.mark.parametrize(
    ("share", "spent", "reached"),
    [
        ({"a": 0.2}, 8 + 30 + 20, 30.0),  # the first is stopped at 8: the second comes at 30
        ({"a": 0.25}, 10 + 10 + 10, 10.0),  # at 10 it is there
        ({"b": 0.1}, 10 + 4 + 10, 10.0),
        ({"b": 0.5}, 10 + 10 + 10, 10.0),  # too late to matter
        ({"a": 0.2, "b": 0.5}, 8 + 20 + 20, math.inf),
    ],
)
def test_a_rule_may_cut_a_trial_before_the_study_is_over(share: dict[str, float], spent: float, reached: float) -> None:
    by_curves = study(straight("a", 10), straight("b", 30), straight("c", None, end=20))
    replay = replay_rule([by_curves], StopAt(**share), name="asked")
    (score,) = replay.scores
    assert (score.spent, score.reached) == (pytest.approx(spent), reached)
    found = replay.to_json()
    assert (found["lost"], found["worse"]) == (int(reached == math.inf), int(10 < reached < math.inf))
    assert (found["studies"], found["finite"], found["saved"]) == (1, 1, pytest.approx(1 - spent / 100))


def test_a_study_without_success_costs_all_of_it_but_the_oracle() -> None:
    hopeless = times([3.0, 5.0], [math.inf, math.inf])
    assert [policy(hopeless) for policy in (full, own_target, first_success, in_sequence, oracle)] == [8, 8, 8, 8, 0]


def test_a_loss_that_is_no_number_is_no_success() -> None:
    trial = run("a", [math.nan, math.inf, 2.0, 1.0], outcome="failed")
    assert study(trial).times.first == 4.0


def test_a_study_teaches_later_ones_no_more_than_it_showed_before_it_was_over() -> None:
    first = study(straight("a", 10), straight("b", 30), straight("c", None, end=5), name="1")
    rule = StopAt(b=0.1)
    replay_rule([study(straight("a", 10), name="2"), first], rule, name="asked")
    (taught,) = rule.earlier
    assert [(r.key, r.done_tokens, r.outcome) for r in taught.runs] == [
        ("a", 10.0, "stopped"),
        ("b", 4.0, "stopped"),
        ("c", 5.0, "finished"),
    ]


def test_times_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="trial 1: reaches the target at 7, after its end 5"):
        times([3.0, 5.0], [math.inf, 7.0])
    for end, reached in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="two times a trial"):
            times(end, reached)
    with pytest.raises(ConfigError, match="no trial has run"):
        replay_policy([], "full")
    with pytest.raises(ConfigError, match="no trial has run"):
        replay_rule([], NoStopper(), name="none")


# properties


@st.composite
def trials(draw: st.DrawFn, *, most: int = 6) -> list[tuple[int, int | None]]:
    """Draw the end of each trial and when it is at the target, in whole units of time with ties."""
    ends = draw(st.lists(st.integers(1, int(HORIZON)), min_size=1, max_size=most))
    return [(end, draw(st.none() | st.integers(1, end))) for end in ends]


def times_of(drawn: list[tuple[int, int | None]]) -> Times:
    return times([float(end) for end, _ in drawn], [math.inf if at is None else float(at) for _, at in drawn])


@given(trials())
def test_policies_cost_less_in_the_order_in_which_they_know_more(drawn: list[tuple[int, int | None]]) -> None:
    costs = [policy(times_of(drawn)) for policy in (oracle, first_success, in_sequence, own_target, full)]
    assert all(less <= more + 1e-9 for less, more in itertools.pairwise(costs))


@settings(max_examples=50)
@given(trials(most=5))
def test_in_sequence_is_the_mean_over_all_orders(drawn: list[tuple[int, int | None]]) -> None:
    found = []
    for order in itertools.permutations(drawn):
        spent, best = 0.0, math.inf
        for end, at in order:
            spent += min(end, best, math.inf if at is None else at)
            best = min(best, math.inf if at is None else at)
        found.append(spent)
    assert in_sequence(times_of(drawn)) == pytest.approx(statistics.fmean(found))


@given(trials(), st.data())
def test_lock_step_under_a_rule_is_what_ticking_through_it_gives(
    drawn: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    stops = [data.draw(st.none() | st.integers(0, int(HORIZON))) for _ in drawn]
    spent, reached = 0, math.inf
    for tick in range(1, int(HORIZON) + 1):
        going = [
            at
            for (end, at), stop in zip(drawn, stops, strict=True)
            if tick <= min(end, HORIZON if stop is None else stop)
        ]
        spent += len(going)
        if tick in going:
            reached = tick
            break
    left = times_of(drawn).stopped(np.array([math.inf if stop is None else float(stop) for stop in stops]))
    assert (first_success(left), left.first) == (spent, reached)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_rule_costs_a_trial_more_than_its_end_or_brings_the_target_nearer(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    studies = []
    for number in range(4):
        walks_TP = 3.0 - np.cumsum(generator.normal(0.05, 0.1, (5, int(HORIZON))), axis=1)
        runs = tuple(run(f"{t}", walk.tolist()) for t, walk in enumerate(walks_TP))
        studies.append(Study(CellSoFar(f"{number}", runs, HORIZON), target=1.5))
    for score in replay_rule(studies, RULES[name](), name=name).scores:
        assert 0 < score.spent <= score.total
        assert score.reached >= score.best
    stopping_none = replay_rule(studies, NoStopper(), name="first success")
    assert stopping_none.scores == replay_policy(studies, "first success").scores


@given(trials(), st.data())
def test_a_stopped_trial_is_never_charged_past_its_stop(
    drawn: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    runs = [straight(f"t{t}", at, end) for t, (end, at) in enumerate(drawn)]
    share = {r.key: data.draw(st.integers(1, 39)) / 40 for r in runs}
    (score,) = replay_rule([study(*runs)], StopAt(**share), name="asked").scores
    assert score.spent <= sum(min(r.done_tokens, share[r.key] * HORIZON) for r in runs) * (1 + 1e-6)


# public logs


def benchmark() -> tuple[ModuleType, Path]:
    root = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if not root:
        pytest.skip("POWERSWEEP_PUBLIC_DATA is not set: no logs of AlgoPerf here")
    spec = importlib.util.spec_from_file_location("stopping_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module, Path(root)


def test_on_algoperfs_logs_first_success_saves_a_seventh_and_changes_no_time_to_target() -> None:
    module, root = benchmark()
    studies = module.algoperf_studies(root)
    found = {name: replay_policy(studies, name).to_json() for name in POLICIES}
    assert {(one["studies"], one["finite"], one["lost"], one["worse"]) for one in found.values()} == {(478, 373, 0, 0)}
    assert found["full"]["spent"] / 3600 == pytest.approx(20595.5, abs=0.1)
    saved = {name: round(100 * one["saved"], 2) for name, one in found.items()}
    assert saved == {"full": 0.0, "own target": 0.84, "first success": 13.93, "in sequence": 8.61, "oracle": 88.03}

    lock_step = replay_rule(studies, NoStopper(), name="first success")
    assert lock_step.to_json() == {**found["first success"], "spent": pytest.approx(found["first success"]["spent"])}
    median = replay_rule(studies, Median(), name="median").to_json()
    assert median["saved"] > found["first success"]["saved"]
    assert median["lost"] > 0  # ranks in mid-schedule, where winners of falling rates trail

    published = json.loads((root / "algoperf" / "expected_scores.json").read_text())["v0.5/external"]
    for submission, by_workload in published["time_to_target_sec_documented_rule"].items():
        for workload, seconds in by_workload.items():
            ours = [s.reached for s in lock_step.scores if s.recipe == f"{workload}/{submission}"]
            assert bool(ours) == (seconds is not None)
            if ours:
                assert np.median(ours) == pytest.approx(float(seconds), rel=1e-6)
