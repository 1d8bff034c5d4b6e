"""The row: what Ray Tune calls a trial, here without Ray around it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.rows.trainable import Row
from orchestrator.store.index import outcome_of
from orchestrator.store.lease import FencedError, Lease
from sweeps.plan import brackets_of, grid_lrs, trials_of
from sweeps.spec import Trial

LOSS = "validation/loss"
RAISING = """
from dataclasses import dataclass
from pathlib import Path

from workloads.quadratic import Quadratic

@dataclass(frozen=True)
class Raising(Quadratic):
    def model_fn(self, *arguments):
        if Path("broken").exists():
            raise ArithmeticError("boom")
        return Quadratic.model_fn(self, *arguments)
"""
SCRIPT = """
from workloads.script import checkpoint_folder, report, resume_folder, trial

done = int((checkpoint_folder() / "done").read_text()) if resume_folder() else 0
for mark in trial().marks:
    if mark > done:
        report(tokens=mark, loss=1 + 1 / mark)
        (checkpoint_folder() / "done").write_text(str(mark))
"""
SLOW = ["resources.report_seconds=0.02", "resources.checkpoint_seconds=1000"]  # a report every few steps


def trials(lab: Any, *overrides: str, **options: str) -> list[Trial]:
    """The trials of a sweep, those of the longest horizon last."""
    sweep = lab.load(*overrides, **options).sweep
    return [trial for bracket in brackets_of(sweep) for trial in trials_of(sweep, bracket, grid_lrs(sweep))]


def config(lab: Any, some: list[Trial], *overrides: str, fence: int = 0) -> dict[str, str]:
    made: dict[str, str] = lab.row([trial.to_json() for trial in some], lab.load(*overrides), fence=fence)
    return made


def run_out(row: Row) -> list[dict[str, Any]]:
    """Step a row to its end, and return all its messages."""
    messages: list[dict[str, Any]] = []
    while True:
        result = row.step()
        messages += result["runs"]
        if result["done"]:
            return messages


def points_of(messages: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(point["tokens"], point["metrics"][LOSS]) for message in messages for point in message["points"]]


def test_a_row_reports_each_point_once_and_leaves_an_outcome_with_all_of_them(lab: Any) -> None:
    trial = trials(lab)[-3]
    messages = run_out(Row(config=config(lab, [trial])))
    outcome = lab.outcomes()[trial.key]
    assert outcome.outcome == messages[-1]["status"] == "finished"
    assert [tokens for tokens, _ in points_of(messages)] == list(trial.marks) == outcome.curve.tokens.tolist()
    assert outcome_of(messages[-1]["outcome"]).curve == outcome.curve
    assert lab.store().trial(trial.key, fence=0).read_work() == [(0, trial.tokens)]


def test_a_row_of_several_runs_ends_when_all_have(lab: Any) -> None:
    some = trials(lab)[:3]
    run_out(Row(config=config(lab, some)))
    assert {key for key, o in lab.outcomes().items() if not o.is_trunk} == {trial.key for trial in some}


def test_a_row_that_is_stopped_saves_and_another_goes_on_from_there_to_the_same_curve(lab: Any) -> None:
    sweep = [*SLOW, "axes.tokens=[64,128,8192]"]
    trial = trials(lab, *sweep)[-5]
    row = Row(config=config(lab, [trial], *sweep))
    row.step()
    lab.store().request_stop()
    paused = row.step()
    assert paused["done"]
    assert paused["runs"][0]["status"] == "paused"
    lab.store().clear_stop()
    run_out(Row(config=config(lab, [trial], *sweep)))
    spans = lab.store().trial(trial.key, fence=0).read_work()
    assert spans[0][0] == 0
    assert [last for _, last in spans[:-1]] == [first for first, _ in spans[1:]]  # nothing twice
    assert 0 < paused["runs"][0]["tokens"] < trial.tokens
    whole = lab.outcomes()[trial.key].curve
    lab.home = lab.folder / "another home"
    run_out(Row(config=config(lab, [trial], *sweep)))
    straight = lab.outcomes()[trial.key].curve
    assert whole.metrics[LOSS].tolist() == straight.metrics[LOSS].tolist()


def test_a_row_that_starts_while_the_sweep_stops_does_nothing(lab: Any) -> None:
    trial = trials(lab)[0]
    lab.store().request_stop()
    assert run_out(Row(config=config(lab, [trial]))) == []
    assert not lab.store().keys()


def test_a_reused_row_saves_what_it_leaves_and_opens_what_it_gets(lab: Any) -> None:
    one, other = trials(lab)[0], trials(lab)[1]
    row = Row(config=config(lab, [one]))
    run_out(row)
    assert row.reset_config(config(lab, [other]))
    messages = run_out(row)
    assert {message["key"] for message in messages} == {other.key}
    assert set(lab.outcomes()) == {one.key, other.key}


def test_a_trial_that_has_ended_is_reported_and_not_trained_again(lab: Any) -> None:
    trial = trials(lab)[0]
    run_out(Row(config=config(lab, [trial])))
    (message,) = run_out(Row(config=config(lab, [trial])))
    assert message["outcome"]["outcome"] == "finished"
    assert lab.store().trial(trial.key, fence=0).read_work() == [(0, trial.tokens)]


def test_a_diverged_run_ends_its_row_as_an_outcome(lab: Any) -> None:
    trial = max(trials(lab, "axes.lr=[0.1,50.0]"), key=lambda t: t.lr)
    messages = run_out(Row(config=config(lab, [trial], "axes.lr=[0.1,50.0]")))
    assert messages[-1]["status"] == "diverged"
    assert "above" in lab.outcomes()[trial.key].reason or "finite" in lab.outcomes()[trial.key].reason


def test_a_finished_trial_keeps_no_checkpoint_and_an_open_ended_one_its_last(lab: Any) -> None:
    for schedule, kept in (("wsd", 0), ("constant", 1)):
        overrides = [f"schedule={{name: {schedule}}}"]
        trial = trials(lab, *overrides)[0]
        run_out(Row(config=config(lab, [trial], *overrides)))
        assert len(list((lab.store().trials / trial.key).glob("*.safetensors"))) == kept


def test_an_open_ended_trial_goes_on_to_a_longer_horizon(lab: Any) -> None:
    short, long = ([*["schedule={name: constant}"], f"axes.tokens=[64,128,{last}]"] for last in (256, 1024))
    first, then = trials(lab, *short)[0], trials(lab, *long)[0]
    assert first.key == then.key
    run_out(Row(config=config(lab, [first], *short)))
    run_out(Row(config=config(lab, [then], *long)))
    assert lab.store().trial(then.key, fence=0).read_work() == [(0, 256), (256, 1024)]
    assert lab.outcomes()[then.key].tokens == 1024


OPEN = ["schedule={name: constant}", "search.grow=0", "axes.lr=[0.1,0.2,0.4]"]
SEEN = ("validation/loss", "train/loss", "lr", "grad_norm")


def curves(lab: Any) -> dict[str, dict[int, list[float]]]:
    """All curves there are, but for their speeds and times."""
    return {
        key: {int(t): [float(o.curve.metrics[m][i]) for m in SEEN] for i, t in enumerate(o.curve.tokens)}
        for key, o in lab.outcomes().items()
    }


@pytest.mark.parametrize(
    ("before", "after", "work"),
    [
        ("[64,200]", "[64,200,400]", [(0, 200), (200, 400)]),  # 50 steps are no mark of the ladder
        ("[64,128]", "[64,128,200]", [(0, 128), (128, 200)]),
        ("[128,256]", "[100,128,256]", [(0, 256), (0, 256)]),  # passed without a look: anew
        ("[128,256]", "[100,128,256,400]", [(0, 256), (0, 400)]),
    ],
)
def test_more_horizons_under_an_open_ended_schedule_are_the_same_as_asking_for_all_at_once(
    lab: Any, before: str, after: str, work: list[tuple[int, int]]
) -> None:
    assert lab.train(*OPEN, f"axes.tokens={before}") == 3
    assert lab.train(*OPEN, f"axes.tokens={after}") == 3
    assert lab.train(*OPEN, f"axes.tokens={after}") == 0
    grown = curves(lab)
    for key in grown:
        assert lab.store().trial(key, fence=0).read_work() == work
    lab.home = lab.folder / "another home"
    assert lab.train(*OPEN, f"axes.tokens={after}") == 3
    assert curves(lab) == grown


def test_a_run_that_starts_anew_and_is_stopped_goes_on_from_its_new_checkpoint(lab: Any) -> None:
    before, after = ([*OPEN, *SLOW, f"axes.tokens=[{tokens}]"] for tokens in ("4096,8192", "1000,4096,8192"))
    assert lab.train(*before) == 3
    trial = trials(lab, *after)[0]
    row = Row(config=config(lab, [trial], *after, fence=9))
    row.step()
    lab.store().request_stop()
    reached = row.step()["runs"][0]["tokens"]
    lab.store().clear_stop()
    run_out(Row(config=config(lab, [trial], *after, fence=9)))
    work = lab.store().trial(trial.key, fence=0).read_work()
    assert (0, 8192) not in work[1:]
    assert reached in [first for first, _ in work]


def test_a_script_that_has_passed_a_new_horizon_starts_anew_too(lab: Any) -> None:
    (lab.folder / "train.py").write_text(SCRIPT)
    script = [*OPEN, "axes.lr=[0.1,0.2]", "workload={name: script, path: train.py}"]
    assert lab.train(*script, "axes.tokens=[64,128]") == 2
    assert lab.train(*script, "axes.tokens=[64,100,128]") == 2
    assert lab.train(*script, "axes.tokens=[64,100,128]") == 0
    assert len(lab.outcomes()) == 2
    assert {o.curve.at(100, LOSS) for o in lab.outcomes().values()} == {1 + 1 / 100}


def test_a_higher_factor_of_divergence_opens_a_trial_again_and_a_lower_one_nothing(lab: Any) -> None:
    # at LR 2.1 the steepest of the directions grows by 1.1 a step: absurd by and by, never infinite
    asked = [*OPEN, "axes.lr=[0.5,2.1]", "axes.tokens=[128,256]"]
    low, high = (f"stopping=[{{name: diverged, above: {above}}}]" for above in ("1.01", "1e300"))
    assert lab.train(*asked, low) == 2
    (diverged,) = [o for o in lab.outcomes().values() if o.outcome == "diverged"]
    assert diverged.exceeded == 1.01
    assert lab.train(*asked, low) == 0
    assert lab.train(*asked, high) == 1
    assert lab.outcomes()[diverged.key].outcome == "finished"
    assert lab.train(*asked, low) == 0
    grown = curves(lab)
    lab.home = lab.folder / "another home"
    assert lab.train(*asked, high) == 2
    assert curves(lab) == grown


def test_a_run_that_raises_in_a_step_is_not_saved_when_its_row_is_cleaned_up(lab: Any) -> None:
    (lab.folder / "raising_bowl.py").write_text(RAISING)
    overrides = ["workload.name='raising_bowl:Raising'"]
    trial = trials(lab, *overrides)[0]
    row = Row(config=config(lab, [trial], *overrides))
    (lab.folder / "broken").touch()
    with pytest.raises(ArithmeticError, match="boom"):
        row.step()
    row.cleanup()
    assert not list(lab.store().folder.rglob("*.safetensors"))
    (lab.folder / "broken").unlink()
    run_out(Row(config=config(lab, [trial], *overrides)))
    assert lab.outcomes()[trial.key].outcome == "finished"


def test_a_row_of_a_driver_that_lost_the_lease_writes_nothing(lab: Any) -> None:
    old = Lease.acquire(lab.store().folder, holder="old", stale_seconds=0.01)
    old.release()
    new = Lease.acquire(lab.store().folder, holder="new")
    row = Row(config=config(lab, [trials(lab)[0]], fence=old.fence))
    with pytest.raises(FencedError):
        run_out(row)
    new.release()
    assert not lab.outcomes()


def test_a_row_works_in_the_folder_of_the_command(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(lab, [trials(lab)[0]])
    monkeypatch.chdir(lab.folder.parent)
    Row(config=made)
    assert Path.cwd() == lab.folder


def test_a_report_is_due_after_the_time_asked_for(lab: Any) -> None:
    overrides = ["axes.tokens=[64,128,1048576]", "resources.report_seconds=0.1"]
    row = Row(config=config(lab, [trials(lab, *overrides)[-5]], *overrides))
    row.step()  # builds the model
    began = time.monotonic()
    result = row.step()
    assert not result["done"]
    assert time.monotonic() - began < 2.0  # a step takes well under a millisecond; the rest is a busy machine
    row.cleanup()
