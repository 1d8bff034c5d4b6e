"""The command line: what it offers, what it prints, and how it ends."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from orchestrator.build import build_run
from orchestrator.cli import main
from orchestrator.cli.care import _page
from orchestrator.config import load_sweep
from orchestrator.store import SweepStore
from orchestrator.store.lease import Lease
from orchestrator.tracking.client import connect, resolve_uri
from sweeps.curves import Curve
from sweeps.errors import StoreError
from sweeps.laws.law import Law, fit_law
from sweeps.optima.records import CellOptimum, Optimum
from sweeps.plan import Bracket, brackets_of, grid_lrs, held_out_cell, trials_of
from sweeps.spec import LawSpec, Sweep

TINY = """
name: tiny
workload: {name: quadratic, dimensions: 8}
optimizer: {name: sgd}
schedule: {name: wsd}
axes:
  lr: {log: [0.005, 0.08], points: 5}
  batch_tokens: [8, 16]
  tokens: [128, 256, 512]
"""
SWEEP = ["sweep", "overrides"]
OPTIONS = {
    "run": [*SWEEP],
    "plan": [*SWEEP, "--json", "--time/--no-time"],
    "status": [*SWEEP, "--json", "--watch"],
    "stop": [*SWEEP],
    "fit": [*SWEEP, "--from-mlflow", "--json"],
    "predict": [
        *("law", "--anchor-lr", "--anchor-parameters", "--anchor-tokens", "--batch-tokens", "--compute-flops"),
        *("--json", "--law", "--parameters", "--sequence-tokens", "--tokens"),
    ],
    "validate": [*SWEEP, "--batch-tokens", "--json", "--law", "--seeds", "--tokens"],
    "compare": ["a", "b", "--confidence", "--json"],
    "report": [*SWEEP],
    "export": [*SWEEP, "--json", "--out"],
    "replay": [],
    "prepare": [
        *("sources", "--documents", "--held-out", "--out", "--seed", "--text-column", "--token-type", "--tokenizer"),
        "--vocab-size",
    ],
    "gc": [*SWEEP, "--delete"],
    "ui": [*SWEEP, "--host", "--port"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder of a test, with a sweep; powersweep's home is in it, not made yet."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POWERSWEEP_HOME", str(tmp_path / "home"))
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def printed(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def loaded_tiny(folder: Path) -> Sweep:
    return load_sweep("tiny.yaml", cwd=folder, environ={}).sweep


def train(sweep: Sweep, home: Path, *, brackets: int = 100, held_out: bool = False) -> int:
    """Train the trials of the first brackets here and now, leave their outcomes in the store, and count them."""
    store = SweepStore(home, sweep.experiment)
    count = 0
    listed = [(bracket, grid_lrs(sweep)) for bracket in brackets_of(sweep)[:brackets]]
    if held_out:
        listed.append((Bracket((held_out_cell(sweep, sweep.variants[0]),)), grid_lrs(sweep)[:3]))
    for bracket, lrs in listed:
        for trial in trials_of(sweep, bracket, lrs):
            place = store.trial(trial.key, fence=0)
            resources = asdict(sweep.resources)
            run = build_run(trial, resources=resources, folder=place.folder, cwd=Path.cwd())
            while run.status == "running":
                run.advance(deadline=None, clock=time.monotonic)
            place.save_checkpoint(*run.state())
            record = {"key": trial.key, "outcome": run.status, "tokens": run.tokens, "seconds": 0.5}
            curve = Curve().append(run.points).to_json()
            place.write_outcome({**record, "reason": "", "curve": curve, "trial": trial.to_json()})
            count += 1
    return count


def drawn_law() -> Law:
    """Return the law lr = 0.01 (B / 1024)^0.5 (T / 1e6)^-0.25, of cells with some noise."""
    rng = np.random.default_rng(0)
    cells = []
    for batch in (256, 1024, 4096):
        for tokens in (10**6, 2 * 10**6, 4 * 10**6):
            lr = 0.01 * (batch / 1024) ** 0.5 * (tokens / 1e6) ** -0.25 * math.exp(rng.normal(0, 0.02))
            optimum = Optimum(lr, lr * 0.95, lr * 1.05, 0.02, 20.0, None)
            cells.append(CellOptimum(f"{batch} {tokens}", f"{batch} {tokens}", batch, tokens, 1000, optimum))
    return fit_law(cells, spec=LawSpec(), recipe={}, sweep_key="drawn", version="0")


# -- the command itself ---------------------------------------------------------------------------------------------


def test_the_options_are_these() -> None:
    found = {}
    for name, command in main.commands.items():
        parts = [
            "/".join([*p.opts, *p.secondary_opts]) if isinstance(p, click.Option) else str(p.name)
            for p in command.params
        ]
        found[name] = [p for p in parts if not p.startswith("-")] + sorted(p for p in parts if p.startswith("-"))
    assert found == OPTIONS


def test_help_and_version_load_nothing_heavy() -> None:
    code = "import sys\nfrom orchestrator.cli import main\ntry:\n  main()\nexcept SystemExit as e: code = e.code\n"
    code += "print(sorted({'torch', 'ray', 'mlflow', 'optuna', 'numpy', 'omegaconf'} & set(sys.modules)), code)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments in (["--help"], ["--version"], ["run", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
        assert done.stdout.splitlines()[-1] == "[] 0", done.stdout


def test_help_lists_the_commands_in_the_order_of_their_use() -> None:
    text = printed("--help")
    assert [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()] == list(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plann"], "powersweep: No such command 'plann'. Did you mean 'plan'?"),
        (["run"], "powersweep: run: Missing argument 'SWEEP'."),
        (["plan", "tiny.yaml", "--jsn"], "powersweep: plan: No such option '--jsn'"),
        (["predict", "x", "--tokens", "many"], "powersweep: predict: Invalid value for '--tokens'"),
        (["ui", "--port", "0"], "powersweep: ui: Invalid value for '--port'"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line(arguments: list[str], message: str, folder: Path) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert result.stderr.startswith(message)


# -- plan and status ------------------------------------------------------------------------------------------------


def test_a_plan_counts_trials_and_tokens_and_writes_nothing(folder: Path) -> None:
    plan = json.loads(printed("plan", "tiny.yaml", "validate={tokens: 1024, batch_tokens: 8, seeds: 2}", "--json"))
    assert len(plan["cells"]) == 6
    assert plan["totals"]["trials"] == 6 * 5 + 3 * 2
    assert plan["totals"]["tokens"] == 2 * 5 * (128 + 256 + 512) + 3 * 2 * 1024
    assert plan["totals"]["flops"] == plan["totals"]["tokens"] * 6 * 8
    assert plan["seconds"] > 0
    assert plan["held_out"][0]["tokens"] == [1024]
    assert not (folder / "home").exists()


def test_a_plan_is_a_table_for_people(folder: Path) -> None:
    text = printed("plan", "tiny.yaml", "axes.dimensions=[4,8]", "axes.tokens=[1000,2048]", "--no-time")
    assert "dimensions 4" in text
    assert "40 trials at least" in text
    assert "horizons rounded to whole batches: 992" in text
    assert "about" not in text


def test_a_plan_says_when_no_law_can_come_of_it(folder: Path) -> None:
    text = printed("plan", "tiny.yaml", "axes.batch_tokens=[8]", "axes.tokens=[128,256]", "--no-time")
    assert "no law can be fitted: it takes 3 cells at least, the axes make 2" in text


def test_a_plan_of_a_search_prices_its_trials(folder: Path) -> None:
    plan = json.loads(printed("plan", "tiny.yaml", "search={name: tpe, trials: 7}", "--no-time", "--json"))
    assert plan["totals"]["trials"] == 42
    assert plan["seconds"] is None


def test_a_plan_warns_of_what_the_machine_lacks(folder: Path) -> None:
    result = invoke("plan", "tiny.yaml", "resources.cpus=10000", "--no-time")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: resources.cpus: a row takes 10000")


def test_a_plan_says_what_is_done(folder: Path) -> None:
    done = train(loaded_tiny(folder), folder / "home", brackets=2)
    plan = json.loads(printed("plan", "tiny.yaml", "--json"))
    assert (plan["totals"]["done"], plan["totals"]["trials"]) == (done, 30)
    assert plan["speed_from"] == "as measured in its ended trials"


def test_status_says_how_far_a_sweep_is(folder: Path) -> None:
    assert "0 of 30 trials done; nobody runs it now" in printed("status", "tiny.yaml")
    done = train(loaded_tiny(folder), folder / "home", brackets=1)
    found = json.loads(printed("status", "tiny.yaml", "--json"))
    assert (found["done"], found["trials"], found["outcomes"]) == (done, 30, {"finished": done})
    assert found["cells"][0]["done"] == 5
    assert found["cells"][0]["best_loss"] < 1
    assert found["cells"][1]["best_lr"] is None
    assert "5/5" in printed("status", "tiny.yaml")


def test_plan_and_status_count_the_held_out_check(folder: Path) -> None:
    check = "validate={tokens: 1024, batch_tokens: 8, seeds: 2}"
    sweep = load_sweep("tiny.yaml", [check], cwd=folder, environ={}).sweep
    train(sweep, folder / "home", held_out=True)
    assert "36 done, 0 to run\n" in printed("plan", "tiny.yaml", check)
    shown = printed("status", "tiny.yaml", check)
    assert "36 of 36 trials done" in shown
    assert "held out: batch 8, tokens 1,024" in shown


def test_ui_links_to_the_runs_of_a_sweep(folder: Path, tracking_home: Path) -> None:
    uri = resolve_uri(None, home=tracking_home, environ={})
    found = connect(uri, "linked", home=tracking_home).experiment_id
    assert _page(uri, "linked") == f"experiments/{found}/runs"
    assert _page(uri, None) == "experiments"
    with pytest.raises(StoreError, match="no experiment 'never-run'"):
        _page(uri, "never-run")


def test_status_names_who_runs_a_sweep(folder: Path) -> None:
    lease = Lease.acquire(SweepStore(folder / "home", "tiny").folder, holder="a test")
    try:
        driver = json.loads(printed("status", "tiny.yaml", "--json"))["driver"]
        assert driver["pid"] == os.getpid()
        assert f"run by {driver['user']}@{driver['host']} (pid {os.getpid()})" in printed("status", "tiny.yaml")
    finally:
        lease.release()


# -- stop and gc ----------------------------------------------------------------------------------------------------


def test_stop_asks_the_driver_and_says_how_to_go_on(folder: Path) -> None:
    store = SweepStore(folder / "home", "tiny")
    assert "nothing to stop" in printed("stop", "tiny.yaml")
    assert not store.stop_requested()
    lease = Lease.acquire(store.folder, holder="a test")
    try:
        assert "powersweep run tiny.yaml search.grow=1" in printed("stop", "tiny.yaml", "search.grow=1")
        assert store.stop_requested()
    finally:
        lease.release()


def test_gc_shows_what_would_go_and_deletes_only_when_told(folder: Path) -> None:
    home = folder / "home"
    assert "no checkpoints to drop" in printed("gc", "tiny.yaml")
    count = train(loaded_tiny(folder), home, brackets=1)
    checkpoints = list(home.rglob("*.safetensors"))
    assert f"{count} checkpoints" in printed("gc", "tiny.yaml")
    assert list(home.rglob("*.safetensors")) == checkpoints
    assert "deleted" in printed("gc", "tiny.yaml", "--delete")
    assert not list(home.rglob("*.safetensors"))
    assert len(list(home.rglob("outcome.json"))) == count


def test_gc_takes_unfinished_trials_only_once_they_have_left_the_plan(folder: Path) -> None:
    sweep, home = loaded_tiny(folder), folder / "home"
    train(sweep, home, brackets=1)
    for outcome in home.rglob("outcome.json"):
        outcome.unlink()
    assert "no checkpoints to drop" in printed("gc", "tiny.yaml")
    text = printed("gc", "tiny.yaml", "axes.lr=[0.03,0.06]")
    assert "not in the plan" in text
    assert "5 checkpoints" in text


def test_gc_deletes_nothing_while_a_driver_is_at_work(folder: Path) -> None:
    train(loaded_tiny(folder), folder / "home", brackets=1)
    lease = Lease.acquire(SweepStore(folder / "home", "tiny").folder, holder="a test")
    try:
        result = invoke("gc", "tiny.yaml", "--delete")
        assert result.exit_code == 1
        assert f"pid {os.getpid()}" in result.stderr
    finally:
        lease.release()
    assert list((folder / "home").rglob("*.safetensors"))


# -- laws -----------------------------------------------------------------------------------------------------------


def test_predict_prints_the_learning_rate_with_its_interval(folder: Path) -> None:
    drawn_law().save(folder / "law.json")
    text = printed("predict", "law.json", "--tokens", "2e6", "--batch-tokens", "1024")
    assert text.startswith("lr 0.0084")
    assert "95 % interval" in text
    assert "inside the range fitted" in text


def test_predict_says_where_it_extrapolates(folder: Path) -> None:
    drawn_law().save(folder / "law.json")
    found = json.loads(printed("predict", "law.json", "--tokens", "1e7", "--batch-tokens", "1024", "--json"))
    assert found["prediction"]["place"] == "reach"
    assert found["prediction"]["low"] < found["prediction"]["lr"] < found["prediction"]["high"]


def test_predict_refuses_beyond_reach_and_shows_the_estimate(folder: Path) -> None:
    drawn_law().save(folder / "law.json")
    arguments = ["predict", "law.json", "--tokens", "1e12", "--batch-tokens", "1024"]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "beyond the law's reach" in result.stderr
    assert result.stdout.startswith("The estimate it refuses: lr ")
    assert json.loads(invoke(*arguments, "--json").stdout)["estimate"]["place"] == "beyond"


def test_predict_finds_the_law_of_a_sweep_by_its_name(folder: Path) -> None:
    drawn_law().save(SweepStore(folder / "home", "tiny").folder / "law.json")
    assert printed("predict", "tiny", "--tokens", "2e6", "--batch-tokens", "1024").startswith("lr 0.0084")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.json", "--tokens", "1", "--batch-tokens", "1"], "LAW: no file nowhere.json"),
        (
            ["tinny", "--tokens", "1", "--batch-tokens", "1"],
            "LAW: no file or fitted sweep 'tinny' (did you mean 'tiny'?)",
        ),
        (["bad.json", "--tokens", "1", "--batch-tokens", "1"], "bad.json"),
        (["tiny", "--tokens", "-1", "--batch-tokens", "1"], "--tokens: must be above 0 and finite, got -1"),
        (["tiny", "--tokens", "nan", "--batch-tokens", "1"], "--tokens: must be above 0 and finite, got nan"),
        (["tiny", "--tokens", "10", "--batch-tokens", "20"], "--batch-tokens: must be at most --tokens (10), got 20"),
    ],
)
def test_predict_refuses_what_is_no_law_or_no_number(arguments: list[str], message: str, folder: Path) -> None:
    drawn_law().save(SweepStore(folder / "home", "tiny").folder / "law.json")
    (folder / "bad.json").write_text("{}")
    result = invoke("predict", *arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr


def test_fit_prints_the_law_of_what_has_ended(folder: Path) -> None:
    train(loaded_tiny(folder), folder / "home")
    result = invoke("fit", "tiny.yaml", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (1 if found["refusals"] else 0)
    assert found["laws"].keys() == {""}


def test_fit_of_a_sweep_that_never_ran_is_refused(folder: Path) -> None:
    result = invoke("fit", "tiny.yaml")
    assert result.exit_code == 1
    assert "law: none." in result.stdout


# -- data -----------------------------------------------------------------------------------------------------------


def test_export_writes_curves_and_trials_as_parquet(folder: Path) -> None:
    assert "no trial of tiny has ended" in invoke("export", "tiny.yaml").stderr
    count = train(loaded_tiny(folder), folder / "home", brackets=1)
    text = printed("export", "tiny.yaml", "--out", "out")
    assert text.startswith(f"{count} trials")
    trials = pq.read_table(folder / "out" / "trials.parquet").to_pylist()
    curves = pq.read_table(folder / "out" / "curves.parquet").to_pylist()
    assert {trial["outcome"] for trial in trials} == {"finished"}
    assert {row["key"] for row in curves} == {trial["key"] for trial in trials}
    assert trials[0]["workload.dimensions"] == "8"
    last = max((row for row in curves if row["key"] == trials[0]["key"]), key=lambda row: row["tokens"])
    assert last["validation/loss"] == trials[0]["final_loss"]


def test_prepare_makes_a_corpus_that_a_sweep_can_name(folder: Path) -> None:
    (folder / "book.txt").write_text("It was the best of times, it was the worst of times. " * 500)
    text = printed("prepare", "book.txt", "--out", "corpus")
    assert "there already" in printed("prepare", "book.txt", "--out", "corpus")
    assert f"path: {folder / 'corpus'}" in text
    overrides = ["workload={name: gpt, validation_tokens: 64, data: {name: tokens, path: corpus}}"]
    shape = ["axes.batch_tokens=[64,128]", "axes.tokens=[1024,2048]"]
    plan = json.loads(printed("plan", "tiny.yaml", *overrides, *shape, "--no-time", "--json"))
    assert plan["unit"] == "byte"


def test_status_knows_the_trials_of_a_corpus_that_has_moved(folder: Path) -> None:
    (folder / "book.txt").write_text("It was the best of times, it was the worst of times. " * 500)
    printed("prepare", "book.txt", "--out", "corpus")
    gpt = (
        "{name: gpt, width: 8, depth: 1, heads: 1, context: 16, validation_tokens: 64, data: {name: tokens, path: %s}}"
    )
    shape = ["axes.batch_tokens=[64]", "axes.tokens=[128,256]", "law.variables=[tokens]"]
    here, moved = ([f"workload={gpt % path}", *shape] for path in ("corpus", "moved"))
    count = train(load_sweep("tiny.yaml", here, cwd=folder, environ={}).sweep, folder / "home")
    (folder / "corpus").rename(folder / "moved")
    assert json.loads(printed("status", "tiny.yaml", *moved, "--json"))["done"] == count > 0
    other = [*moved, "workload.width=16"]
    assert json.loads(printed("status", "tiny.yaml", *other, "--json"))["done"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["book.txt"], "prepare: --out is required"),
        (["nothing.txt", "--out", "x"], "nothing.txt"),
        (["book.txt", "--out", "x", "--held-out", "2"], "held_out: must be between 0 and 1, got 2.0"),
        (["book.txt", "--out", "x", "--documents", "lines"], "documents: must be one of file, blank line"),
        (["book.txt", "--out", "x", "--tokenizer", "nothing.json"], "nothing.json"),
    ],
)
def test_prepare_refuses_in_one_line(arguments: list[str], message: str, folder: Path) -> None:
    (folder / "book.txt").write_text("text " * 100)
    result = invoke("prepare", *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr


def test_ui_says_that_there_is_nothing_to_show_yet(folder: Path) -> None:
    result = invoke("ui")
    assert result.exit_code == 2
    assert "there are no curves yet" in result.stderr


def test_ui_points_to_the_server_of_a_sweep(folder: Path) -> None:
    text = printed("ui", "tiny.yaml", "tracking.uri='http://user:secret@host:5000'")
    assert text == "The curves are on a server: open http://***@host:5000\n"
