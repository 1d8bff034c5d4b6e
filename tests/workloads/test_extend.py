"""What docs/extend.md shows runs as it stands there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from workloads import WORKLOADS
from workloads.base import Workload, generator
from workloads.optim import SGD
from workloads.run import Run, RunSpec
from workloads.script import Script, ScriptRun

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FILES = {match[1]: body for lang, body in BLOCKS if lang == "python" and (match := re.match(r"# (\w+\.py)\n", body))}
SNIPPETS = [body for lang, body in BLOCKS if lang == "python" and body not in FILES.values()]
YAML = [body for lang, body in BLOCKS if lang == "yaml"]


def a_spec(workload, batch=8, tokens=64):
    return RunSpec(workload, SGD(), lambda seen: 0.01, 0.01, batch, tokens, (tokens // 2, tokens), 0)


def to_the_end(run):
    while run.status == "running":
        run.advance()
    return run


@pytest.mark.parametrize("name", ["train.py", "train_resumable.py"])
def test_the_scripts_shown_reach_their_horizon(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    run = to_the_end(ScriptRun(a_spec(Script(path=str(tmp_path / name))), folder=tmp_path / "trial"))
    assert run.status == "finished"
    assert [p.tokens for p in run.points] == [32, 64]
    assert run.points[1].metrics["validation/loss"] < run.points[0].metrics["validation/loss"]


def test_the_function_shown_reaches_its_horizon(tmp_path, monkeypatch):
    (tmp_path / "my_training.py").write_text(FILES["my_training.py"])
    monkeypatch.syspath_prepend(tmp_path)
    run = to_the_end(ScriptRun(a_spec(Script(target="my_training:train")), folder=tmp_path / "trial"))
    assert run.status == "finished"
    assert run.tokens == 64


def test_the_class_shown_is_a_workload_that_learns(tmp_path, monkeypatch):
    (tmp_path / "my_workload.py").write_text(FILES["my_workload.py"])
    monkeypatch.syspath_prepend(tmp_path)
    workload = importlib.import_module("my_workload").Sine()
    assert isinstance(workload, Workload)
    model, _ = workload.init_model_fn(generator("init", 0))
    assert workload.facts().parameters == sum(p.numel() for p in model.parameters())
    run = to_the_end(Run(a_spec(workload, tokens=640)))
    assert run.status == "finished"
    assert run.points[-1].metrics["validation/loss"] < run.initial_loss


@pytest.mark.parametrize("body", SNIPPETS)
def test_the_other_python_shown_runs(body):
    exec(compile(body, str(PAGE), "exec"), {"__name__": "extend"})


@pytest.mark.parametrize("body", YAML)
def test_the_yaml_shown_names_fields_that_exist(body):
    workload = yaml.safe_load(body)["workload"]
    if ":" not in workload["name"]:
        known = WORKLOADS[workload["name"]].__dataclass_fields__
        assert set(workload) - {"name"} <= set(known)
