"""What a driver and its command decide beside the training: endings, names, places, and what no longer fits."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator import launch
from orchestrator.cli import main
from orchestrator.driver import Driver
from orchestrator.progress import Progress
from orchestrator.results import open_tracker
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.lease import Lease
from sweeps.agenda import Agenda
from sweeps.errors import ConfigError, StoreError

REPORTS = """
import math

from workloads.script import report, trial

t = trial()
best = 0.28 * (t.tokens / 64) ** -0.25
for tokens in t.marks:
    report(tokens=tokens, loss=1 + 64 / tokens + math.log(t.lr / best) ** 2, **{"acc@1": 0.5})
"""
SCRIPT = ["workload={name: script, path: train.py}", "axes.lr=[0.1,0.2,0.4,0.8]", "search.grow=0"]


def message(key: str, status: str) -> dict[str, Any]:
    return {
        "key": key,
        "status": status,
        "reason": "",
        "tokens": 0,
        "points": [],
        "outcome": None,
        "trunk": None,
        "first_tokens": 0,
    }


@pytest.mark.parametrize("last", ["paused", "nothing"])
def test_a_trial_that_is_stopped_before_its_first_report_does_not_stay_running(lab: Any, last: str) -> None:
    loaded = lab.load()
    store = lab.store()
    lease = Lease.acquire(store.folder, holder="a test")
    agenda = Agenda(loaded.sweep, chooser_of(loaded.sweep, journal=store.folder / "j"), {})
    tracker = open_tracker(loaded, home=lab.home, environ={})
    try:
        tracker.parent("tiny", sweep_key="k", params={})
        progress = Progress(lab.heard, store.folder)
        driver = Driver(
            loaded.sweep,
            agenda=agenda,
            store=store,
            tracker=tracker,
            fence=lease.fence,
            progress=progress,
            after=list,
        )
        record, *_ = json.loads(json.dumps(driver.next_row()))["trials"]
        key = next(key for key, trial in agenda.trials.items() if trial.to_json() == record)
        driver.on_messages([message(key, "running")])
        if last == "paused":
            driver.on_messages([message(key, "paused")])
        driver.end_begun()
        tracker.flush()
        assert driver.error is None
    finally:
        tracker.close()
        lease.release()
    (run,) = lab.mlflow_runs()[1]
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "paused")


def test_a_metric_whose_name_mlflow_does_not_take_stops_no_law(lab: Any) -> None:
    (lab.folder / "train.py").write_text(REPORTS)
    sweep = [*SCRIPT, "workload.settings={'who@': me}"]
    lab.train(*sweep)
    ended = lab.run(*sweep)
    assert ended.exit_code == 0, ended.lines
    assert all(run.data.metrics["validation/acc_1"] == 0.5 for run in lab.mlflow_runs()[1])
    assert lab.statuses() == {"FINISHED": 12, "parent FINISHED": 1}


def test_a_trial_that_mlflow_never_takes_is_told_and_stops_no_law(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.train()
    key = sorted(lab.outcomes())[0]
    outcome = lab.store().trials / key / "outcome.json"
    record = json.loads(outcome.read_text())
    record["curve"]["timestamp"] = [-1e12] * len(record["curve"]["timestamp"])  # no time MLflow can hold
    outcome.write_text(json.dumps(record))
    ended = lab.run()
    assert ended.exit_code == 0, ended.lines
    assert any(line.startswith("law: lr* = ") for line in ended.lines)
    assert ended.lines[-1].startswith("warning: MLflow does not take 1 trial (")


@pytest.mark.parametrize("uri", ["./mlruns", "sqlite:////dev/full/mlflow.db", "sqlite:///{folder}/tiny.yaml"])
def test_a_tracking_store_that_cannot_be_used_is_refused_before_anything_is_written(lab: Any, uri: str) -> None:
    lab.environ = {"MLFLOW_TRACKING_URI": uri.format(folder=lab.folder)}
    with pytest.raises(StoreError, match="tracking: "):
        lab.run()
    assert not lab.store().folder.exists()


@pytest.mark.parametrize("what", ["cpus", "gpus"])
def test_a_row_that_this_machine_can_never_hold_is_refused_but_a_finished_sweep_is_not(lab: Any, what: str) -> None:
    lab.train()
    assert lab.run(f"resources.{what}=4096").exit_code == 0
    with pytest.raises(ConfigError, match=rf"resources\.{what}: a row takes 4096, this machine has \d+"):
        lab.run("axes.tokens=[64,128,256,512]", f"resources.{what}=4096")


def test_an_interrupt_outside_training_says_how_to_go_on(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "run", interrupted)
    result = CliRunner().invoke(main, ["run", "tiny.yaml"])
    assert result.exit_code == 130
    assert result.stderr.endswith("To go on: powersweep run tiny.yaml\n")


def test_a_source_that_has_changed_since_is_told_once_a_class(lab: Any) -> None:
    lab.train()
    trials = [key for key, outcome in lab.outcomes().items() if not outcome.is_trunk]
    for path in [lab.store().trials / key / "outcome.json" for key in trials[:12]]:
        record = json.loads(path.read_text())
        record["trial"]["optimizer"]["source"] = "0" * 12
        path.write_text(json.dumps(record))
    ended = lab.run()
    assert ended.exit_code == 0
    assert [line for line in lab.heard.said if line.startswith("warning: ")] == [
        "warning: the source of optimizer 'sgd' has changed since 12 of these trials ran; "
        "raise its version if its curves change"
    ]


def test_two_first_commands_of_a_home_do_not_meet(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def first(number: int) -> None:
        try:
            for turn in range(30):
                store = SweepStore(tmp_path / f"home{turn}", f"sweep{number}")
                store.check_writable()
                (store.folder / "lease").mkdir(parents=True, exist_ok=True)
        except (OSError, StoreError) as error:
            errors.append(error)

    threads = [threading.Thread(target=first, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list((tmp_path / "home0" / "sweeps").iterdir())) == 4


def test_gc_drops_what_the_scripts_of_ended_trials_kept(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.folder / "train.py").write_text(
        REPORTS + "\nfrom workloads.script import checkpoint_folder\n"
        "(checkpoint_folder() / 'model').write_bytes(bytes(1000))\n"
    )
    monkeypatch.setenv("POWERSWEEP_HOME", str(lab.home))
    lab.train(*SCRIPT, limit=1)
    (model,) = lab.home.rglob("model")
    outcomes = lab.outcomes()
    shown = CliRunner().invoke(main, ["gc", "tiny.yaml", *SCRIPT])
    assert "finished" in shown.stdout
    assert model.exists()
    assert "deleted" in CliRunner().invoke(main, ["gc", "tiny.yaml", *SCRIPT, "--delete"]).stdout
    assert not model.parent.parent.exists()
    assert lab.outcomes().keys() == outcomes.keys()
    assert "no checkpoints to drop" in CliRunner().invoke(main, ["gc", "tiny.yaml", *SCRIPT]).stdout
