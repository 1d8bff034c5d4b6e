from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from workloads.optim import AdamW
from workloads.run import RunSpec
from workloads.script import Script, ScriptError, ScriptRun

TRAIN = """
    import json, os, time
    from workloads.script import checkpoint_folder, report, resume_folder, trial

    t = trial()
    done = int((resume_folder() / "tokens").read_text()) if resume_folder() else 0
    with open(t.settings["log"], "a") as log:
        log.write(f"{os.getpid()} {done}\\n")
    while done < t.tokens:
        done += t.batch_tokens
        time.sleep(t.settings.get("seconds", 0))
        report(tokens=done, loss=1 + 1 / done, train_loss=2 / done, accuracy=0.5)
        temporary = checkpoint_folder() / "tokens.new"
        temporary.write_text(str(done))
        os.replace(temporary, checkpoint_folder() / "tokens")
"""


def a_run(workload, folder, *, tokens=100, batch=10, **fields):
    spec = RunSpec(
        workload=workload,
        optimizer=AdamW(weight_decay=0.25),
        lr_at=lambda seen: 0.5 * (1 - seen / 200),
        peak_lr=0.5,
        batch_tokens=batch,
        tokens=tokens,
        marks=(tokens,),
        seed=7,
        **fields,
    )
    return ScriptRun(spec, folder=folder / "trial", schedule={"name": "linear"})


def a_script(folder, code, **settings):
    path = folder / "train.py"
    path.write_text(textwrap.dedent(code))
    return Script(path=str(path), settings={"log": str(folder / "log"), **settings})


def to_the_end(run):
    while run.status == "running":
        run.advance(deadline=time.monotonic() + 20)
    return run


def alive(pid):
    if not Path(f"/proc/{pid}/stat").exists():
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid, seconds=10):
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


def test_a_script_reports_its_curve_and_finishes(tmp_path):
    run = to_the_end(a_run(a_script(tmp_path, TRAIN), tmp_path))
    assert run.status == "finished"
    assert [p.tokens for p in run.points] == list(range(10, 101, 10))
    last = run.points[-1]
    assert last.step == 10
    assert last.metrics["validation/loss"] == 1.01
    assert last.metrics["train/loss"] == 0.02
    assert last.metrics["validation/accuracy"] == 0.5
    assert last.metrics["lr"] == pytest.approx(0.5 * (1 - 90 / 200))
    assert run.advance() is None


def test_a_function_is_called_with_its_trial(tmp_path, monkeypatch):
    code = """
        import json
        def train(trial, report, checkpoint_folder):
            (checkpoint_folder / "trial.json").write_text(json.dumps(
                [trial.lr, trial.batch_tokens, trial.tokens, trial.seed, trial.marks, trial.steps,
                 dict(trial.optimizer)["name"], trial.optimizer["weight_decay"], trial.schedule["name"],
                 trial.settings["depth"], trial.lr_at(0), trial.lr_at(90), trial.lr_at(15)]))
            report(tokens=trial.tokens, loss=1.0)
    """
    (tmp_path / "my_training.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    run = to_the_end(a_run(Script(target="my_training:train", settings={"depth": 3}), tmp_path))
    assert run.status == "finished"
    seen = json.loads((tmp_path / "trial/checkpoint/trial.json").read_text())
    assert seen[:10] == [0.5, 10, 100, 7, [100], 10, "adamw", 0.25, "linear", 3]
    assert seen[10:] == pytest.approx([0.5, 0.275, 0.4625])


def test_a_closed_run_goes_on_from_its_checkpoint(tmp_path):
    workload = a_script(tmp_path, TRAIN, seconds=0.05)
    run = a_run(workload, tmp_path)
    while run.tokens < 40:
        run.advance()
    tensors, meta = run.state()
    run.close()
    again = a_run(workload, tmp_path)
    again.load(tensors, json.loads(json.dumps(meta)))
    to_the_end(again)
    assert [p.tokens for p in again.points] == list(range(10, 101, 10))
    assert again.points[:4] == run.points[:4]
    starts = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()]
    assert starts[0] == 0
    assert starts[1] >= 30


def test_reports_outlive_a_run_that_was_killed_before_it_saved(tmp_path):
    workload = a_script(tmp_path, TRAIN, seconds=0.05)
    run = a_run(workload, tmp_path)
    while run.tokens < 50:
        run.advance()
    os.kill(run._process.pid, signal.SIGKILL)
    again = to_the_end(a_run(workload, tmp_path))
    assert [p.tokens for p in again.points] == list(range(10, 101, 10))
    assert again.points[:5] == run.points[:5]
    run.close()


def test_a_script_that_starts_over_repeats_no_point(tmp_path):
    code = """
        from workloads.script import report, trial
        import time
        for tokens in range(10, 101, 10):
            report(tokens=tokens, loss=1.0)
            time.sleep(0.05)
    """
    workload = a_script(tmp_path, code)
    run = a_run(workload, tmp_path)
    while run.tokens < 50:
        run.advance()
    run.close()
    again = to_the_end(a_run(workload, tmp_path))
    assert [p.tokens for p in again.points] == list(range(10, 101, 10))


def test_a_finished_script_is_not_run_again(tmp_path):
    workload = a_script(tmp_path, TRAIN)
    first = to_the_end(a_run(workload, tmp_path))
    again = to_the_end(a_run(workload, tmp_path))
    assert again.points == first.points
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_longer_horizon_goes_on_from_a_finished_run(tmp_path):
    workload = a_script(tmp_path, TRAIN)
    first = to_the_end(a_run(workload, tmp_path))
    longer = a_run(workload, tmp_path, tokens=150)
    longer.load(*first.state())
    to_the_end(longer)
    assert longer.status == "finished"
    assert [p.tokens for p in longer.points] == list(range(10, 151, 10))
    assert (tmp_path / "log").read_text().splitlines()[1].split()[1] == "100"


def test_a_torn_last_line_is_dropped(tmp_path):
    workload = a_script(tmp_path, TRAIN)
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial/reports.jsonl").write_text('{"tokens": 10, "st')
    assert [p.tokens for p in to_the_end(a_run(workload, tmp_path)).points] == list(range(10, 101, 10))


@pytest.mark.parametrize(
    ("loss", "word"), [("math.nan", "not finite"), ("math.inf", "not finite"), ("30.5", "above 30")]
)
def test_a_sick_loss_is_divergence_and_ends_the_script(tmp_path, loss, word):
    code = f"""
        import math, time
        from workloads.script import report
        report(tokens=10, loss=10.0)
        report(tokens=20, loss={loss})
        time.sleep(60)
    """
    run = a_run(a_script(tmp_path, code), tmp_path)
    to_the_end(run)
    assert run.status == "diverged"
    assert word in run.reason
    assert [p.tokens for p in run.points] == [10]
    assert all(math.isfinite(v) for v in run.points[0].metrics.values())


def test_a_crash_raises_the_last_lines_of_the_script(tmp_path):
    code = """
        from workloads.script import report
        report(tokens=10, loss=1.0)
        raise ArithmeticError("the flux is out of phase")
    """
    run = a_run(a_script(tmp_path, code), tmp_path)
    with pytest.raises(ScriptError, match=r"(?s)train.py ended with exit code 1 after 10 of 100.*flux is out of phase"):
        to_the_end(run)
    assert run.status == "running"


def test_an_early_end_is_an_error_that_says_what_was_due(tmp_path):
    run = a_run(a_script(tmp_path, "from workloads.script import report\nreport(tokens=60, loss=1.0)\n"), tmp_path)
    with pytest.raises(ScriptError, match=r"(?s)after 60 of 100 tokens.*last report must be at trial\(\).tokens = 100"):
        to_the_end(run)


def test_a_killed_script_is_named_with_its_signal(tmp_path):
    run = a_run(a_script(tmp_path, "import os\nos.kill(os.getpid(), 9)\n"), tmp_path)
    with pytest.raises(ScriptError, match="was killed by signal 9"):
        to_the_end(run)


@pytest.mark.parametrize(
    "call", ["tokens=110, loss=1.0", "tokens=0, loss=1.0", "tokens=10, loss=1.0, accuracy=float('nan')"]
)
def test_a_report_outside_the_run_is_refused_in_the_script(tmp_path, call):
    run = a_run(a_script(tmp_path, f"from workloads.script import report\nreport({call})\n"), tmp_path)
    with pytest.raises(ScriptError, match="ValueError"):
        to_the_end(run)


def test_a_passed_deadline_pauses_the_wait_and_not_the_script(tmp_path):
    run = a_run(a_script(tmp_path, TRAIN, seconds=0.1), tmp_path)
    assert run.advance(deadline=time.monotonic()) is None
    assert run.status == "running"
    assert to_the_end(run).status == "finished"


def test_closing_leaves_no_process(tmp_path):
    code = """
        import subprocess, sys, time
        from workloads.script import checkpoint_folder, report
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (checkpoint_folder() / "child").write_text(str(child.pid))
        report(tokens=10, loss=1.0)
        time.sleep(60)
    """
    run = a_run(a_script(tmp_path, code), tmp_path)
    run.advance()
    pid, child = run._process.pid, int((tmp_path / "trial/checkpoint/child").read_text())
    assert alive(pid)
    assert alive(child)
    run.close()
    assert gone(pid)
    assert gone(child)


def test_a_script_dies_with_its_parent_however_the_parent_dies(tmp_path):
    workload = a_script(tmp_path, TRAIN, seconds=60)
    parent = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from workloads.optim import AdamW
        from workloads.run import RunSpec
        from workloads.script import Script, ScriptRun
        script = Script(path={workload.path!r}, settings={dict(workload.settings)!r})
        spec = RunSpec(script, AdamW(), lambda seen: 0.1, 0.1, 10, 100, (100,), 0)
        ScriptRun(spec, folder=Path({str(tmp_path)!r}) / "trial").advance()
    """)
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        until = time.monotonic() + 40
        while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        pid = int((tmp_path / "log").read_text().split()[0])
        assert alive(pid)
        process.kill()
    assert gone(pid)


def test_two_processes_never_run_one_trial_at_once(tmp_path):
    code = """
        import os, time
        from workloads.script import report, trial
        with open(trial().settings["log"], "a") as log:
            log.write(f"in {os.getpid()}\\n")
            log.flush()
            time.sleep(0.5)
            log.write(f"out {os.getpid()}\\n")
        report(tokens=100, loss=1.0)
    """
    workload = a_script(tmp_path, code)
    runs = [a_run(workload, tmp_path), a_run(workload, tmp_path)]
    for run in runs:
        run.advance(deadline=time.monotonic())
    for run in runs:
        to_the_end(run)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [line[0] for line in lines] == ["in", "out"] * (len(lines) // 2)
