"""Whole sweeps on real Ray and real SQLite: what is there after one, and after it was cut, killed, grown or lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.results import fit
from orchestrator.store.lease import Lease
from sweeps.errors import LeaseError

LOSS = "validation/loss"
TRUNKS = 6  # of the LRs that have several horizons
MORE = "axes.tokens=[64,128,256,512]"
BOWL = """
import os, time
from dataclasses import dataclass
from pathlib import Path

from workloads.quadratic import Quadratic

@dataclass(frozen=True)
class Bowl(Quadratic):
    pids: str = "pids.txt"  # a relative path: the folder of the command

    def build_input_queue(self, *arguments, **more):
        with Path(self.pids).open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return Quadratic.build_input_queue(self, *arguments, **more)

    def model_fn(self, *arguments):
        if Path("slow").exists():
            time.sleep(0.05)
        return Quadratic.model_fn(self, *arguments)
"""
SCRIPT = """
import math
from pathlib import Path

from workloads.script import report, trial

t = trial()
if t.lr == 0.4 and t.tokens == 128 and not Path("fixed").exists():
    raise ArithmeticError("boom")
best = 0.28 * (t.tokens / 64) ** -0.25
for tokens in t.marks:
    report(tokens=tokens, loss=1 + 64 / tokens + math.log(t.lr / best) ** 2)
"""


def when(condition: Callable[[], Any], act: Callable[[], Any]) -> threading.Thread:
    """Act once a condition holds, from another thread."""

    def watch() -> None:
        until = time.monotonic() + 120
        while not condition():
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def ended_trials(lab: Any) -> int:
    return len(list(lab.store().trials.glob("*/outcome.json")))


# -- one sweep, looked at from all sides ----------------------------------------------------------------------------


@pytest.mark.ray
def test_a_sweep_ends_with_a_law_and_the_files_of_its_report(swept: Any) -> None:
    _, ended = swept
    assert ended.exit_code == 0, ended.lines
    assert any(line.startswith("law: lr* = ") for line in ended.lines)
    names = {path.name for path in ended.paths}
    assert {"law.json", "report.html", "curves.parquet"} <= names
    assert all(path.exists() for path in ended.paths)


@pytest.mark.ray
def test_each_trial_is_one_ended_run_under_one_parent_with_tokens_as_the_step(swept: Any) -> None:
    lab, _ = swept
    parent, children = lab.mlflow_runs()
    outcomes = lab.outcomes()
    assert sum(outcome.is_trunk for outcome in outcomes.values()) == TRUNKS
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["trial_key"] for run in children} == set(outcomes)
    for run in children:
        outcome = outcomes[run.data.tags["trial_key"]]
        assert run.info.status == "FINISHED"
        assert (run.data.tags.get("trunk") == "true") == outcome.is_trunk
        told = (run.data.tags.get("trunk_key"), int(run.data.tags.get("forked_at_tokens", 0)))
        assert told == (outcome.forked_from or (None, 0))
        for name in (LOSS, "lr", "train/loss"):
            history = {m.step: m.value for m in lab.client().get_metric_history(run.info.run_id, name)}
            curve = outcome.curve
            assert history == dict(zip(curve.tokens.tolist(), curve.metrics.get(name, []), strict=False))


@pytest.mark.ray
def test_the_parent_run_holds_the_law_the_page_the_figures_and_the_curves(swept: Any) -> None:
    lab, _ = swept
    parent, _ = lab.mlflow_runs()
    names = {item.path for item in lab.client().list_artifacts(parent.info.run_id)}
    assert {"law.json", "report.html", "curves.parquet"} <= names
    assert any(name.endswith(".png") for name in names)


@pytest.mark.ray
def test_a_diverged_trial_is_an_outcome_and_no_error(swept: Any) -> None:
    lab, ended = swept
    _, children = lab.mlflow_runs()
    diverged = {key for key, outcome in lab.outcomes().items() if outcome.outcome == "diverged"}
    assert len(diverged) == 4  # the trunk of the three as well
    assert "3 diverged" in ended.lines[0]
    assert {run.data.tags["trial_key"] for run in children if run.data.tags.get("outcome") == "diverged"} == diverged


@pytest.mark.ray
def test_a_grid_that_misses_the_best_lr_has_grown_around_it(swept: Any) -> None:
    lab, _ = swept
    law = json.loads(lab.law())
    tried = {outcome.trial["lr"] for outcome in lab.outcomes().values()}
    assert min(tried) == pytest.approx(0.05)  # the grid begins at 0.1
    assert all(cell["optimum"]["censored"] is None for cell in law["cells"])


@pytest.mark.ray
def test_the_law_from_mlflow_is_the_law_from_the_outcomes(swept: Any) -> None:
    lab, _ = swept
    found = [fit(lab.load(), home=lab.home, environ={}, from_mlflow=way).laws[""] for way in (False, True)]
    assert found[0].coefficients == found[1].coefficients


@pytest.mark.ray
def test_the_same_command_again_runs_nothing_and_starts_no_ray(swept: Any) -> None:
    lab, _ = swept
    law = lab.law()
    code = (
        "import sys\nfrom orchestrator.cli import main\n"
        "try:\n  main(['run', 'tiny.yaml'])\nexcept SystemExit as e: code = e.code\n"
        "print('ray' in sys.modules, code)"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "POWERSWEEP_HOME": str(lab.home)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ, cwd=lab.folder
    )
    assert done.stdout.startswith("Nothing to run: all 17 trials are done.")
    assert done.stdout.splitlines()[-1] == "False 0", done.stdout
    assert lab.law() == law
    assert lab.statuses() == {"FINISHED": 17 + TRUNKS, "parent FINISHED": 1}


# -- a sweep that changes or loses something ------------------------------------------------------------------------


@pytest.mark.ray
def test_more_tokens_and_seeds_run_their_trials_alone_and_no_secret_is_written(
    swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = swept[0].copy(tmp_path / "more")
    monkeypatch.chdir(lab.folder)
    secret = "31415926.5"  # SQLite's timeout: the one part of its URI that may hold anything
    lab.environ = {"PS_SECRET": secret}
    written: list[bytes] = []
    remove = shutil.rmtree

    def removing(path: Any, *rest: Any, **more: Any) -> None:
        if "powersweep-tune-" in str(path):
            written.extend(file.read_bytes() for file in Path(path).rglob("*") if file.is_file())
        remove(path, *rest, **more)

    monkeypatch.setattr(shutil, "rmtree", removing)
    uri = f"tracking.uri='sqlite:///{lab.home}/mlflow.db?timeout=${{oc.env:PS_SECRET}}'"
    before = lab.outcomes()
    ended = lab.run(MORE, "axes.seed={values: [0, 1], up_to_tokens: 64}", uri)
    new = [outcome for key, outcome in lab.outcomes().items() if key not in before and not outcome.is_trunk]
    assert {(o.trial["tokens"], o.trial["seed"]) for o in new} == {(512, 0), (64, 1)}
    assert ended.lines[0].startswith(f"{len(new)} trials ended")
    assert lab.statuses() == {"FINISHED": 17 + TRUNKS + len(new), "parent FINISHED": 1}
    assert written
    kept = [path.read_bytes() for path in lab.home.rglob("*") if path.is_file()]
    assert not [text for text in [*written, *kept, "".join(ended.lines).encode()] if secret.encode() in text]


@pytest.mark.ray
def test_an_mlflow_that_is_lost_is_written_anew_from_the_outcomes(swept: Any, tmp_path: Path, database: Path) -> None:
    lab = swept[0].copy(tmp_path / "lost")
    for path in lab.home.glob("mlflow.db*"):
        path.unlink()
    shutil.copy(database, lab.home / "mlflow.db")
    ended = lab.run()
    assert ended.lines[0].startswith("Nothing to run")
    assert lab.statuses() == {"FINISHED": 17 + TRUNKS, "parent FINISHED": 1}
    parent, _ = lab.mlflow_runs()
    assert "law.json" in {item.path for item in lab.client().list_artifacts(parent.info.run_id)}


@pytest.mark.ray
def test_a_store_that_is_lost_is_taken_from_mlflow_but_for_what_mlflow_lacks_too(
    swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = swept[0].copy(tmp_path / "lost")
    monkeypatch.chdir(lab.folder)
    law, outcomes = lab.law(), lab.outcomes()
    shutil.rmtree(lab.home / "sweeps")
    ended = lab.run()
    assert ended.lines[0] == "Nothing to run: all 17 trials are done."
    assert ended.exit_code == 0
    assert lab.law() == law
    assert {key: (o.outcome, o.tokens, o.exceeded) for key, o in lab.outcomes().items()} == {
        key: (o.outcome, o.tokens, o.exceeded) for key, o in outcomes.items() if not o.is_trunk
    }
    assert lab.statuses() == {"FINISHED": 17 + TRUNKS, "parent FINISHED": 1}
    gone = next(run for run in lab.mlflow_runs()[1] if "trunk" not in run.data.tags)
    lab.client().delete_run(gone.info.run_id)
    shutil.rmtree(lab.home / "sweeps")
    ended = lab.run()
    assert ended.lines[0].startswith("1 trial ended")
    assert lab.law() == law
    assert lab.statuses() == {"FINISHED": 17 + TRUNKS, "parent FINISHED": 1}


# -- a sweep that is cut --------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_sweep_cut_twice_goes_on_to_the_same_law_to_the_byte(swept: Any, lab: Any) -> None:
    when(lambda: ended_trials(lab) >= 2, lambda: os.kill(os.getpid(), signal.SIGINT)).join(0)
    ended = lab.run()
    assert ended.exit_code == 130
    assert any(line.startswith("Stopped (interrupted): ") for line in ended.lines)
    assert ended.lines[-1] == "To go on: powersweep run tiny.yaml"
    assert not {"RUNNING", "parent RUNNING"} & set(lab.statuses())
    before = ended_trials(lab)
    assert 2 <= before < 17
    when(lambda: ended_trials(lab) >= before + 2, lab.store().request_stop)
    ended = lab.run()
    assert (ended.exit_code, ended_trials(lab) < 17) == (130, True)
    assert ended.lines[0].startswith("Stopped (asked to stop): ")
    assert lab.run().exit_code == 0
    assert lab.law() == swept[0].law()
    assert lab.statuses() == {"FINISHED": 17 + TRUNKS, "parent FINISHED": 1}


def test_a_second_driver_is_told_who_holds_the_sweep(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERSWEEP_HOME", str(lab.home))
    lease = Lease.acquire(lab.store().folder, holder="powersweep run")
    try:
        with pytest.raises(LeaseError, match=f"pid {os.getpid()}"):
            lab.run()
        result = CliRunner().invoke(main, ["run", "tiny.yaml"])
    finally:
        lease.release()
    assert result.exit_code == 1
    assert f"pid {os.getpid()}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.ray
def test_time_that_is_used_up_stops_cleanly_and_says_so(lab: Any, ray_here: None) -> None:
    ended = lab.run("budget.seconds=0.001")
    assert ended.exit_code == 1
    assert ended.lines[0].startswith("Stopped (budget.seconds, 0.001, is used up): 15 trials are not finished")
    assert ended.lines[1] == "To go on: powersweep run tiny.yaml budget.seconds=0.001"
    assert not lab.statuses()["parent RUNNING"]


@pytest.mark.ray
def test_time_that_is_used_up_gives_the_law_of_the_cells_that_are_complete(lab: Any, ray_here: None) -> None:
    lab.train()
    ended = lab.run(MORE, "budget.seconds=0.001")
    assert ended.exit_code == 1
    assert ended.lines[0].startswith("Stopped (budget.seconds, 0.001, is used up): 5 trials are not finished")
    assert ended.lines[2].startswith("law: lr* = ")
    cells = json.loads(lab.law())["cells"]
    assert {cell["tokens"] for cell in cells} == {64, 128, 256}
    page = (lab.store().folder / "report" / "report.html").read_text()
    assert "5 trials are not finished" in page


# -- code of the user's, and workers that die -----------------------------------------------------------------------


@pytest.mark.ray
def test_a_killed_worker_goes_on_from_its_checkpoint_and_the_sweep_ends_well(lab: Any, ray_here: None) -> None:
    (lab.folder / "killed_bowl.py").write_text(BOWL)
    (lab.folder / "slow").touch()
    sweep = [
        "workload.name='killed_bowl:Bowl'",
        *("resources.checkpoint_seconds=0.05", "resources.report_seconds=0.2"),
    ]

    def kill() -> None:
        (lab.folder / "slow").unlink()
        os.kill(int((lab.folder / "pids.txt").read_text().split()[-1]), signal.SIGKILL)

    when(lambda: list(lab.store().trials.glob("*/*.safetensors")), kill)
    ended = lab.run(*sweep)
    assert ended.exit_code == 0, ended.lines
    assert "1 crash retried from the checkpoint" in ended.lines[0]
    work = [lab.store().trial(key, fence=0).read_work() for key in lab.outcomes()]
    assert all(first > 0 for spans in work for first, _ in spans[1:])  # nothing again from the beginning
    assert lab.statuses() == {"FINISHED": len(lab.outcomes()), "parent FINISHED": 1}


@pytest.mark.ray
def test_a_trial_whose_code_always_raises_is_named_and_the_next_run_tries_it_again(lab: Any, ray_here: None) -> None:
    (lab.folder / "train.py").write_text(SCRIPT)
    sweep = ["workload={name: script, path: train.py}", "resources.retries=1", "axes.lr=[0.1,0.2,0.4,0.8]"]
    sweep += ["search.grow=0"]
    ended = lab.run(*sweep)
    assert ended.exit_code == 1
    (failed,) = [line for line in ended.lines if line.startswith("failed: ")]
    assert "boom" in failed
    assert "line 9, in <module>" in Path(ended.lines[ended.lines.index(failed) + 1].strip()).read_text()
    assert lab.statuses() == {"FINISHED": 11, "FAILED": 1, "parent FAILED": 1}
    (run,) = [run for run in lab.mlflow_runs()[1] if run.info.status == "FAILED"]
    assert run.data.tags["trial_key"][:12] in failed
    (lab.folder / "fixed").touch()
    ended = lab.run(*sweep)
    assert ended.exit_code == 0, ended.lines
    assert ended.lines[0].startswith("1 trial ended")
    assert lab.statuses() == {"FINISHED": 12, "parent FINISHED": 1}
    exponent = json.loads(lab.law())["coefficients"]["tokens"]
    assert exponent == pytest.approx(-0.25, abs=0.02)  # the script's own; its losses are without noise


@pytest.mark.ray
def test_a_sweep_whose_first_trials_all_fail_stops(lab: Any, ray_here: None) -> None:
    (lab.folder / "broken.py").write_text("raise SystemExit('no such thing')\n")
    ended = lab.run("workload={name: script, path: broken.py}", "resources.retries=0")
    assert ended.exit_code == 1
    failed = [line for line in ended.lines if line.startswith("failed: ")]
    assert len(failed) == 3
    assert all("no such thing" in line for line in failed)
    assert any("the first 3 trials all failed" in line for line in ended.lines)
    assert lab.statuses() == {"FAILED": 3, "parent KILLED": 1}


# -- laws of more than one recipe, and of runs that something else logged -------------------------------------------


def test_a_further_axis_gives_one_law_file_a_value_in_the_report_and_in_mlflow(lab: Any) -> None:
    sweep = ["axes.weight_decay=[0.0,0.01]"]
    lab.train(*sweep)
    ended = lab.run(*sweep)  # all trained: no Ray
    assert ended.exit_code == 0, ended.lines
    files = {"law-weight_decay-0.0.json", "law-weight_decay-0.01.json"}
    assert files <= {path.name for path in ended.paths}
    parent, _ = lab.mlflow_runs()
    assert files <= {item.path for item in lab.client().list_artifacts(parent.info.run_id)}
    page = (lab.store().folder / "report" / "report.html").read_text()
    assert all(name in page for name in files)
    again = fit(lab.load(*sweep), home=lab.home, environ={}, from_mlflow=True)
    assert {label: law.coefficients for label, law in again.laws.items()} == {
        label: law.coefficients for label, law in ended.findings.laws.items()
    }


def test_a_profiled_axis_gives_one_law_of_the_best_value_in_each_cell(lab: Any) -> None:
    sweep = ["axes.weight_decay=[0.0,0.3]", "law.profile_over=[weight_decay]"]
    lab.train(*sweep)
    findings = fit(lab.load(*sweep), home=lab.home, environ={})
    assert list(findings.laws) == [""]
    assert findings.laws[""] is not None
    assert len(findings.cells[""]) == 3


def test_a_size_axis_gives_a_law_in_parameters(lab: Any) -> None:
    sweep = ["axes.dimensions=[64,128,256]", "law.variables=[tokens,parameters]"]
    lab.train(*sweep)
    findings = fit(lab.load(*sweep), home=lab.home, environ={})
    assert list(findings.laws) == [""]
    assert set(findings.laws[""].coefficients) >= {"tokens", "parameters"}


def test_a_law_is_never_fitted_through_an_edge(lab: Any) -> None:
    sweep = ["axes.lr=[0.4,0.8,1.6]", "search.grow=0"]
    lab.train(*sweep)
    findings = fit(lab.load(*sweep), home=lab.home, environ={})
    assert {cell.optimum.censored for cell in findings.cells[""]} == {"edge low"}
    assert findings.laws == {"": None}


def test_runs_that_plain_mlflow_logged_give_their_law(lab: Any) -> None:
    client = lab.client()
    experiment = client.create_experiment("tiny")
    for tokens in (64, 128, 256):
        for lr in (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6):
            run = client.create_run(experiment).info.run_id
            for name, value in {"lr": lr, "batch_tokens": 4, "tokens": tokens, "who": "me"}.items():
                client.log_param(run, name, value)
            loss = math.nan if lr == 1.6 else 1 + math.log(lr / (0.25 * (tokens / 64) ** -0.25)) ** 2
            client.log_metric(run, LOSS, 2.0, step=tokens // 2)
            client.log_metric(run, LOSS, loss, step=tokens)
            client.set_terminated(run)
    strange = client.create_run(experiment).info.run_id
    for name in ("lr", "batch_tokens", "tokens"):
        client.log_param(strange, name, "auto")
    client.log_metric(strange, LOSS, 0.0, step=64)
    half = client.create_run(experiment).info.run_id  # still under way: says nothing of its horizon
    for name, value in {"lr": 0.15, "batch_tokens": 4, "tokens": 64}.items():
        client.log_param(half, name, value)
    client.log_metric(half, LOSS, 2.0, step=32)
    findings = fit(lab.load(), home=lab.home, environ={}, from_mlflow=True)
    assert [len(cell.results) for cell in findings.cells[""]] == [7, 7, 7]
    assert findings.laws[""].coefficients["tokens"] == pytest.approx(-0.25, abs=0.02)


def test_runs_of_another_recipe_in_the_experiment_do_not_count(lab: Any) -> None:
    lab.train()
    lab.run()
    other = ["optimizer.momentum=0.5"]
    lab.train(*other)
    lab.run(*other)
    for overrides in ([], other):
        loaded = lab.load(*overrides)
        found = [fit(loaded, home=lab.home, environ={}, from_mlflow=way).laws[""] for way in (False, True)]
        assert found[0].coefficients == found[1].coefficients
