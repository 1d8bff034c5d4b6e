"""Trunks and branches, as a plan: where they part, what they share, what that saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.forks import families, fork_tokens, shared_tokens, trunk_key, trunk_of
from sweeps.schedules import learning_rate, schedule_of
from sweeps.spec import Part, Trial

SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("wsd", {}),
    ("wsd", {"warmup_tokens": 1024, "cooldown_fraction": 0.37, "cooldown": "1-sqrt", "end_fraction": 0.1}),
    ("power", {"n0_tokens": 9000.0, "warmup_tokens": 512}),
    ("inverse_sqrt", {"timescale_tokens": 5000.0, "cooldown_fraction": 0.1, "end_lr": 1e-5}),
]


def trial(tokens: int, *, batch: int = 1024, schedule: str = "wsd", **fields: Any) -> Trial:
    marks = tuple(sorted({max(1, round(tokens * 2**-j / batch)) * batch for j in range(4)}))
    part = Part(schedule, 1, fields)
    return Trial(Part("w"), Part("o"), part, 1e-2, batch, marks[-1], 0, marks, "data")


def test_five_horizons_cost_nineteen_units_instead_of_thirty_one() -> None:
    trials = [trial(1024 * 1000 * k) for k in (1, 2, 4, 8, 16)]
    unit = 1024 * 1000
    assert sum(t.tokens for t in trials) == 31 * unit
    assert sum(t.tokens for t in trials) - shared_tokens(trials) == 19 * unit
    (family,) = families(trials)
    assert family.tokens == 19 * unit
    assert family.key == trunk_of(trials).key == trunk_key(trials[0])


@given(st.sampled_from(SCHEDULES), st.integers(1, 6), st.integers(3, 200))
def test_a_branch_leaves_before_its_learning_rate_does(asked: tuple[str, dict[str, Any]], log: int, steps: int) -> None:
    """The trunk has the LR of every branch to the bit, up to its fork, and no step further than the cooldown allows."""
    name, fields = asked
    batch = 16 << log
    one = trial(steps * batch, batch=batch, schedule=name, **fields)
    schedule = schedule_of(one.schedule)
    if fields.get("warmup_tokens", 0) >= 0.6 * one.tokens:
        return  # no such run
    fork = fork_tokens(one)
    if fork is None:
        assert batch > 0.1 * one.tokens or fields.get("warmup_tokens", 0) > 0.4 * one.tokens
        return
    trunk = trunk_of([one])
    assert trunk.tokens == fork
    assert fork < one.tokens
    lr = learning_rate(schedule, peak=one.lr, batch_tokens=batch, total=one.tokens)
    trunk_lr = learning_rate(schedule_of(trunk.schedule), peak=one.lr, batch_tokens=batch, total=trunk.tokens)
    assert [lr(seen) for seen in range(0, fork, batch)] == [trunk_lr(seen) for seen in range(0, fork, batch)]
    start = (1 - fields.get("cooldown_fraction", {"wsd": 0.2, "power": 0.1}.get(name, 0.0))) * one.tokens
    assert fork + batch / 2 > start * (1 - 1e-12) or fork == one.tokens - batch


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cosine", {}),
        ("linear", {}),
        ("constant", {}),
        ("wsd", {"cooldown_fraction": 0.0}),
        ("wsd", {"cooldown_fraction": 1.0}),
    ],
)
def test_what_knows_its_horizon_or_has_no_cooldown_has_no_trunk(name: str, fields: dict[str, Any]) -> None:
    trials = [trial(1024 * k, schedule=name, **fields) for k in (50, 100)]
    assert [trunk_key(t) for t in trials] == [None, None]
    assert shared_tokens(trials) == 0
    assert len(families(trials)) == 2


def test_a_trunk_is_what_its_branches_share_and_nothing_else() -> None:
    short, long = trial(1024 * 50), trial(1024 * 100)
    key = trunk_of([short, long]).key
    assert trunk_of([long]).key == key
    assert key not in (short.key, long.key)
    other: list[dict[str, Any]] = [
        {"lr": 2e-2},
        {"seed": 1},
        {"optimizer": Part("p")},
        {"data_fingerprint": "other"},
        {"schedule": Part("wsd", 1, {"warmup_tokens": 2048})},
    ]
    for change in other:
        assert trunk_key(replace(short, **change)) != key
    same = {"schedule": Part("wsd", 1, {"cooldown_fraction": 0.4, "cooldown": "cosine"})}
    assert trunk_key(replace(short, **same)) != key  # the fields of the cooldown stay part of it
    assert Trial.from_json(trunk_of([short, long]).to_json()) == trunk_of([short, long])


def test_a_trunk_looks_where_any_branch_does_and_judges_nothing() -> None:
    short, long = trial(1024 * 50), trial(1024 * 90)
    trunk = trunk_of([short, long])
    assert set(trunk.marks) == {mark for mark in (*short.marks, *long.marks) if mark <= trunk.tokens}
    assert trunk.asides == trunk.marks
    assert trunk.trunk
