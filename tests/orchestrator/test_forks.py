"""A sweep with shared trunks: the same curves and the same law as without, for fewer tokens."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cli.planning import plan_of
from orchestrator.results import fit
from orchestrator.rows.trainable import Row
from sweeps.forks import families
from sweeps.spec import Trial

SLOW = ("resources.report_seconds=0.02", "resources.checkpoint_seconds=1000")
PLAIN = "resources.forks=false"
GPT = (
    "workload={name: gpt, width: 16, depth: 1, heads: 1, context: 16, validation_tokens: 256}",
    "optimizer={name: adamw}",
    "axes={lr: [1e-3, 4e-3], batch_tokens: [64], tokens: [1024, 2048, 3000], seed: [0, 1]}",
    "search.grow=0",
)
POWER = ("schedule={name: power, n0_tokens: 40, cooldown_fraction: 0.3}", "axes.tokens=[64,100,256]")


def worked(lab: Any) -> int:
    return sum(last - first for key in lab.outcomes() for first, last in lab.store().trial(key, fence=0).read_work())


def elsewhere(lab: Any, name: str) -> None:
    lab.home = lab.folder / name


@pytest.mark.parametrize("overrides", [(), GPT, POWER], ids=["wsd", "gpt", "power"])
def test_a_forked_sweep_has_the_curves_and_the_law_of_an_unforked_one(lab: Any, overrides: tuple[str, ...]) -> None:
    trained = lab.train(*overrides)
    forked, tokens = lab.outcomes(), worked(lab)
    finished = [Trial.from_json(o.trial) for o in forked.values() if o.outcome == "finished" and not o.is_trunk]
    assert tokens >= sum(family.tokens for family in families(finished))
    elsewhere(lab, "plain")
    assert lab.train(*overrides, PLAIN) == trained
    assert lab.told(lab.outcomes()) == lab.told(forked)
    assert not any(o.is_trunk or o.forked_from for o in lab.outcomes().values())
    assert tokens < 0.75 * worked(lab)
    if overrides != GPT:  # whose three cells and two LRs make no law
        laws = [fit(lab.load(*overrides), home=home, environ={}).laws[""] for home in (lab.home, lab.folder / "home")]
        assert laws[0] is not None
        assert laws[0].to_json() == laws[1].to_json()  # type: ignore[union-attr]


def test_a_forked_sweep_trains_the_tokens_that_its_plan_says(lab: Any) -> None:
    overrides = ("axes.lr=[0.1,0.2,0.4]", "search.grow=0")
    totals = plan_of(lab.load(*overrides), home=lab.home, with_time=False)["totals"]
    assert totals["tokens"] == 3 * (64 + 128 + 256)
    assert totals["trained_tokens"] == 3 * (204 + 12 + 24 + 52)
    lab.train(*overrides)
    assert worked(lab) == totals["trained_tokens"]
    assert plan_of(lab.load(*overrides, PLAIN), home=lab.home, with_time=False)["totals"]["trained_tokens"] == 1344


def test_a_longer_horizon_goes_on_from_the_trunk_and_a_shorter_one_by_itself(lab: Any) -> None:
    lab.train("axes.tokens=[128,256]", "axes.lr=[0.2,0.4]", "search.grow=0")
    before = worked(lab)
    lab.train("axes.tokens=[128,256,512]", "axes.lr=[0.2,0.4]", "search.grow=0")
    assert worked(lab) - before == 2 * ((408 - 204) + (512 - 408))
    before = worked(lab)
    lab.train("axes.tokens=[64,128,256,512]", "axes.lr=[0.2,0.4]", "search.grow=0")
    assert worked(lab) - before == 2 * 64
    grown = lab.told(lab.outcomes())
    elsewhere(lab, "at once")
    lab.train("axes.tokens=[64,128,256,512]", "axes.lr=[0.2,0.4]", "search.grow=0")
    assert lab.told(lab.outcomes()) == grown


def family_row(lab: Any, *overrides: str, fence: int = 0) -> tuple[Row, list[Trial]]:
    """Return the row of the LR 0.2 at three horizons."""
    from sweeps.plan import brackets_of, trials_of

    loaded = lab.load(*SLOW, *overrides)
    trials = [t for bracket in brackets_of(loaded.sweep) for t in trials_of(loaded.sweep, bracket, [0.2])]
    return Row(config=lab.row([t.to_json() for t in trials], loaded, fence=fence)), trials


def finish(row: Row) -> None:
    while not row.step()["done"]:
        pass


@pytest.mark.parametrize("stops", [(1,), (2, 1, 3), (1, 1, 1, 1, 1, 1)])
def test_a_row_stopped_anywhere_goes_on_to_the_same_curves_with_nothing_trained_twice(
    lab: Any, stops: tuple[int, ...]
) -> None:
    sweep = ("axes.tokens=[2048,4096,8192]",)
    for reports in stops:
        row, trials = family_row(lab, *sweep)
        for _ in range(reports):
            row.step()
        lab.store().request_stop()
        row.step()
        lab.store().clear_stop()
    row, trials = family_row(lab, *sweep)
    finish(row)
    (family,) = families(trials)
    assert worked(lab) == family.tokens
    stopped = lab.told(lab.outcomes())
    elsewhere(lab, "straight")
    finish(family_row(lab, *sweep)[0])
    assert lab.told(lab.outcomes()) == stopped


def test_a_run_that_has_ended_is_told_once(lab: Any) -> None:
    row, trials = family_row(lab, "axes.tokens=[256,1024,16384]")
    heard = []
    while True:
        result = row.step()
        heard += [message["key"] for message in result["runs"] if message["outcome"] is not None]
        if result["done"]:
            break
    (family,) = families(trials)
    assert sorted(heard) == sorted([family.key, *(trial.key for trial in trials)])


def test_a_row_killed_anywhere_redoes_no_more_than_since_its_last_checkpoint(lab: Any) -> None:
    sweep = ("axes.tokens=[1024,2048,4096]", "resources.checkpoint_seconds=0.000001")
    for reports in (1, 2, 1, 3):
        row, trials = family_row(lab, *sweep)
        for _ in range(reports):
            if row.step()["done"]:
                break  # and then it is dropped: killed
    finish(family_row(lab, *sweep)[0])
    (family,) = families(trials)
    assert worked(lab) == family.tokens  # a checkpoint at every report: nothing twice


def test_the_trunk_keeps_one_checkpoint_and_its_branches_none(lab: Any) -> None:
    row, trials = family_row(lab)
    finish(row)
    kept = {path.parent.name for path in lab.store().folder.rglob("*.safetensors")}
    (family,) = families(trials)
    assert kept == {family.key}


def test_a_trunk_whose_branches_have_all_diverged_goes_no_further(lab: Any) -> None:
    lab.train("axes.lr=[0.2,1.6]", "search.grow=0", "axes.tokens=[1024,2048]")
    (trunk,) = [o for o in lab.outcomes().values() if o.is_trunk and o.trial["lr"] == 1.6]
    assert trunk.outcome == "diverged"
    assert trunk.tokens < 256
    assert not list((lab.store().trials / trunk.key).glob("*.safetensors"))
