"""Sweeps that follow a stopper: fewer tokens and the same law; a decision is kept, and a stopped trial can go on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.cli.garbage import find_garbage
from orchestrator.results import fit
from orchestrator.rows.trainable import Row
from orchestrator.store.stops import TOLD_FILE, read_stop, write_stop
from sweeps.agenda import Outcome, Stopped
from sweeps.plan import mean_losses
from sweeps.spec import Trial

WIDE = (
    "axes={lr: {log: [0.0125, 1.6], points: 8}, batch_tokens: [4, 8], tokens: [512, 1024, 2048, 4096]}",
    "law.variables=[batch_tokens,tokens]",
    "search.grow=1",
    "resources.report_seconds=0.01",
    "resources.checkpoint_seconds=1000",
)
DOMINATED = "stopping=[{name: dominated}]"
OFTEN = "resources.checkpoint_seconds=0.000001"
COSINE = "schedule={name: cosine}"


def worked(lab: Any) -> int:
    store = lab.store()
    return sum(last - first for key in store.keys() for first, last in store.trial(key, fence=0).read_work())  # noqa: SIM118 - no mapping


def stopped(lab: Any) -> dict[str, Outcome]:
    return {key: outcome for key, outcome in lab.outcomes().items() if outcome.stop is not None}


@pytest.mark.parametrize("schedule", [(), (COSINE,)], ids=["trunks", "alone"])
def test_hopeless_runs_are_stopped_the_law_holds_and_the_stopped_go_on_once_the_rule_is_gone(
    lab: Any, schedule: tuple[str, ...]
) -> None:
    sweep = (*WIDE, *schedule)
    lab.train(*sweep, DOMINATED)
    some, tokens = stopped(lab), worked(lab)
    assert some
    for outcome in some.values():
        trial = Trial.from_json(outcome.trial)
        assert outcome.stop is not None
        assert outcome.stop.by in trial.stopping
        assert outcome.stop.report_tokens <= outcome.tokens < trial.tokens
        assert outcome.stop.report_tokens in outcome.curve.tokens
        assert outcome.reason == outcome.stop.why
    found = fit(lab.load(*sweep, DOMINATED), home=lab.home, environ={})
    for cell in found.cells[""]:
        losses = mean_losses(cell.results)
        best = min(losses, key=lambda lr: losses[lr])
        assert best not in {result.lr for result in cell.results if result.outcome == "stopped"}
    first = lab.home
    lab.home = lab.folder / "never stopped"
    lab.train(*sweep)
    assert tokens < 0.95 * worked(lab)
    never, whole = lab.told(lab.outcomes()), fit(lab.load(*sweep), home=lab.home, environ={}).laws[""]
    law = found.laws[""]
    assert law is not None
    assert whole is not None
    for cell in found.cells[""]:
        said, full = (x.predict(batch_tokens=cell.batch_tokens, tokens=cell.tokens) for x in (law, whole))
        assert said.low <= full.lr <= said.high
        assert full.low <= said.lr <= full.high
    lab.home = first
    lab.train(*sweep)
    assert {key: lab.told(lab.outcomes())[key] for key in never} == never
    again = fit(lab.load(*sweep), home=lab.home, environ={}).laws[""]
    assert again is not None
    assert again.to_json() == whole.to_json()


def test_a_sweep_killed_in_between_keeps_its_decisions(lab: Any) -> None:
    sweep = (*WIDE, DOMINATED)
    lab.train(*sweep, limit=55)
    lab.train(*sweep, limit=7)
    before = lab.told(lab.outcomes())
    lab.train(*sweep)
    after = lab.told(lab.outcomes())
    assert {key: after[key] for key in before} == before
    assert Counter(how for how, *_ in after.values())["stopped"] > 0
    assert lab.train(*sweep) == 0
    assert lab.told(lab.outcomes()) == after


def test_a_decision_whose_driver_died_before_the_outcome_is_followed_by_the_next_one(lab: Any) -> None:
    two = ("axes.lr=[0.1,0.2]", "axes.tokens=[2048,4096]", "search.grow=0", *WIDE[3:], COSINE, DOMINATED, OFTEN)
    with lab.driver(*two) as driver:
        row = driver.next_row()
        trial = Trial.from_json(row["trials"][0])
        seats = Row(config={"row": json.dumps(row)})
        seats.step()  # and then it is dropped: killed
        stop = Stopped(trial.stopping[0], "as a driver decided", 128, trial.tokens)
        write_stop(lab.store().trial(trial.key, fence=row["fence"]), stop)
    assert not lab.outcomes()
    lab.train(*two)
    outcome = lab.outcomes()[trial.key]
    assert (outcome.outcome, outcome.stop) == ("stopped", stop)
    assert read_stop(lab.store().trials / trial.key) == stop
    assert 0 < outcome.tokens < trial.tokens
    assert {g.key: g.why for g in find_garbage(lab.load(*two).sweep, home=lab.home)} == {
        trial.key: "stopped (under another rule it would start anew)"
    }


def test_a_waiting_branch_told_to_stop_ends_and_its_trunk_goes_on_for_a_longer_one(lab: Any) -> None:
    one = ("axes.lr=[0.1,0.2]", "axes.tokens=[1024,4096]", "search.grow=0", *WIDE[3:])
    with lab.driver(*one, DOMINATED) as driver:
        rows = [driver.next_row(), driver.next_row()]
        assert driver.next_row() is None  # no two of one trunk at a time
        row = rows[0]
        (short,), (long,) = ([Trial.from_json(record) for record in row[what]] for what in ("trials", "later"))
        assert (short.lr, short.tokens, long.lr, long.tokens) == (short.lr, 1024, short.lr, 4096)
        stop = Stopped(short.stopping[0], "as a driver decided", 0, short.tokens)
        write_stop(lab.store().trial(short.key, fence=row["fence"]), stop)
        for row in rows:
            lab.step_through(driver, row)
        assert driver.tally.stopped == 1
        while (row := driver.next_row()) is not None:
            lab.step_through(driver, row)
        assert driver.agenda.complete
    straight = lab.told(lab.outcomes())[long.key]
    lab.train(*one)
    ended = lab.told(lab.outcomes())
    assert ended[short.key][0] == "finished"
    assert ended[long.key] == straight
    lab.home = lab.folder / "never stopped"
    lab.train(*one)
    assert lab.told(lab.outcomes()) == ended


def test_a_stop_file_of_another_rule_or_horizon_or_a_torn_one_stops_nothing(lab: Any) -> None:
    one = ("axes.lr=[0.1,0.2]", "axes.tokens=[256,512]", "search.grow=0", COSINE, DOMINATED)
    with lab.driver(*one) as driver:
        trial, *_ = (trial for trial in driver.agenda.trials.values() if trial.tokens == 256)
        store = lab.store().trial(trial.key, fence=1)
        for stop in (Stopped({"name": "other"}, "", 0, 256), Stopped(trial.stopping[0], "", 0, 512)):
            write_stop(store, stop)
            row = Row(config=lab.row([trial.to_json()], lab.load(*one), fence=1))
            assert row.step()["runs"][0]["status"] != "stopped"
        (store.folder / TOLD_FILE).write_text("{")
        assert read_stop(store.folder) is None
    lab.train(*one)
    assert {outcome.outcome for outcome in lab.outcomes().values()} == {"finished"}


def test_a_biased_rule_is_followed_and_said_to_be_biased(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERSWEEP_HOME", str(lab.home))
    rules = "stopping=[{name: median, grace_share: 0.1}]"
    said = CliRunner().invoke(main, ["plan", "tiny.yaml", rules, "--no-time"])
    assert "warning: stopping: median ranks losses in mid-schedule" in said.stdout
    assert "biased" not in CliRunner().invoke(main, ["plan", "tiny.yaml", DOMINATED, "--no-time"]).stdout


@pytest.mark.ray
def test_a_real_sweep_says_what_was_stopped_and_why(lab: Any, ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERSWEEP_HOME", str(lab.home))
    sweep = (*WIDE, "resources.report_seconds=0.05", DOMINATED)
    lab.train(*sweep, limit=36)  # what Ray would do, faster: the cells that teach
    ended = lab.run(*sweep)
    assert ended.exit_code == 0, ended.lines
    some = stopped(lab)
    assert some
    assert any(" stopped" in line for line in ended.lines if " ended" in line), ended.lines
    trunks = [outcome for outcome in lab.outcomes().values() if outcome.is_trunk and outcome.outcome == "stopped"]
    assert lab.statuses()["KILLED"] == len(some) + len(trunks)
    assert {trunk.reason for trunk in trunks} <= {"its branches were stopped"}
    runs = {run.data.tags["trial_key"]: run for run in lab.mlflow_runs()[1]}
    for key, outcome in some.items():
        tags = runs[key].data.tags
        assert (tags["outcome"], tags["reason"]) == ("stopped", outcome.reason)
        assert json.loads(tags["stopped_by"]) == outcome.stop.by  # type: ignore[union-attr]
        assert float(tags["forecast_loss"]) == outcome.stop.forecast.loss  # type: ignore[union-attr]
    page = (lab.store().folder / "report" / "report.html").read_text()
    assert "Stopped runs" in page
    assert page.count("<td>dominated</td>") == len(some)
    status = CliRunner().invoke(main, ["status", "tiny.yaml", *sweep])
    assert f"{len(some)} stopped" in status.stdout
    logged = fit(lab.load(*sweep), home=lab.home, environ={}, from_mlflow=True).cells[""]
    assert {r.key for cell in logged for r in cell.results if r.outcome == "stopped"} == some.keys()
    assert lab.run(*sweep).lines[0].startswith("Nothing to run")
