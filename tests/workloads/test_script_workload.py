from __future__ import annotations

import subprocess
import sys

import pytest

from workloads.base import DataError
from workloads.optim import AdamW
from workloads.run import RunSpec
from workloads.script import Script, ScriptRun


def test_facts_are_those_declared():
    facts = Script(target="json:dumps", parameters=1000, tokens_per_example=4, unit="sample").facts()
    assert (facts.parameters, facts.flops_per_token, facts.tokens_per_example, facts.unit) == (
        1000,
        6000.0,
        4,
        "sample",
    )
    assert facts.data_fingerprint != Script(target="json:dumps", revision="2").facts().data_fingerprint


def test_a_script_that_cannot_be_found_is_refused_before_it_runs(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def train(:\n")
    (tmp_path / "fine_module.py").write_text("def train(trial, report, checkpoint_folder): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for workload, word in (
        (Script(path=str(tmp_path / "no.py")), "path: no such file"),
        (Script(path=str(tmp_path / "broken.py")), "path: cannot read"),
        (Script(target="no_such_module:train"), "target: no module 'no_such_module'"),
        (Script(target="no_such.module:train"), "target: cannot find the module"),
        (Script(target="fine_module:trane"), "has no 'trane'. It has: train"),
    ):
        with pytest.raises(DataError, match=word):
            workload.facts()
    Script(target="fine_module:train").facts()


@pytest.mark.parametrize(
    ("fields", "opening"),
    [
        ({}, "target: must be given"),
        ({"target": "a:b", "path": "c.py"}, "target: must be given"),
        ({"target": "train"}, "target: must be 'module:function'"),
        ({"target": "a:b:c"}, "target: must be 'module:function'"),
        ({"path": "c.py", "tokens_per_example": 0}, "tokens_per_example: must"),
        ({"path": "c.py", "parameters": 0}, "parameters: must"),
    ],
)
def test_a_malformed_script_is_refused(fields, opening):
    with pytest.raises(ValueError, match=f"^{opening}"):
        Script(**fields)


def test_the_script_api_loads_nothing_heavy():
    code = "import sys, workloads.script.api as a; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


def test_outside_a_run_the_api_says_so():
    code = "from workloads.script import trial; trial()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "must be started by powersweep" in done.stderr


def test_long_runs_sample_the_schedule_and_interpolate(tmp_path):
    spec = RunSpec(Script(path="t.py"), AdamW(), lambda seen: 1 - seen / 200_000, 1.0, 10, 100_000, (100_000,), 0)
    trial = ScriptRun(spec, folder=tmp_path)._trial()
    assert len(trial.lr_samples) == 4096
    for seen in (0, 10, 55, 12_340, 99_990, 99_999):
        assert trial.lr_at(seen) == pytest.approx(1 - min(seen, 99_990) / 200_000)
