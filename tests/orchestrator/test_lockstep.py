"""Rows whose runs train in lockstep: the same law as one by one, and bits that do not depend on who trained with whom."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.results import fit
from orchestrator.rows.lockstep import most_of
from orchestrator.rows.trainable import Row
from sweeps.agenda import Outcome
from sweeps.plan import brackets_of, grid_lrs, trials_of
from workloads.base import stable_seed
from workloads.pack import Pack

SEEN = ("validation/loss", "train/loss", "lr", "grad_norm")
GPT = "workload={name: gpt, width: 16, depth: 1, heads: 1, context: 16, validation_tokens: 256}"
IMAGE = "workload={name: image, width: 4, validation_examples: 50}"
SEEDS = "axes.seed=[0,1]"
FEW = ("search.grow=0", "axes.tokens=[64,128,256]")
AUTO = "resources.lockstep=null"  # the sweep of these tests trains run by run


def told(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return how each trial ended, and its curve but for speeds and times."""
    return {
        key: (o.outcome, o.tokens, {name: o.curve.metrics[name].tolist() for name in SEEN if name in o.curve.metrics})
        for key, o in outcomes.items()
        if not o.is_trunk
    }


def trained(lab: Any, home: str, *overrides: str) -> dict[str, Any]:
    lab.home = lab.folder / home
    lab.train(*overrides)
    return told(lab.outcomes())


def rows(lab: Any, *overrides: str, most: int, size: int) -> list[dict[str, str]]:
    """Return the configs of rows of `size` trials of one batch."""
    sweep = lab.load(*overrides).sweep
    trials = [t for b in brackets_of(sweep) for t in trials_of(sweep, b, grid_lrs(sweep))]
    trials.sort(key=lambda t: (t.lr, t.seed, t.tokens))
    configs = []
    for start in range(0, len(trials), size):
        made = lab.row([t.to_json() for t in trials[start : start + size]], lab.load(*overrides), fence=0)
        configs.append({"row": json.dumps({**json.loads(made["row"]), "lockstep": most})})
    return configs


def finish(row: Row) -> None:
    while not row.step()["done"]:
        pass


def near(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, (outcome, tokens, metrics) in one.items():
        assert (outcome, tokens) == other[key][:2]
        for name, values in metrics.items():
            assert values == pytest.approx(other[key][2][name], rel=1e-4, abs=1e-7), (key[:8], name)


def test_what_pays_in_lockstep_is_told_by_its_shape(lab: Any) -> None:
    for overrides, most in (
        ((), 16),
        ((GPT, "axes.batch_tokens=[32]"), 16),
        ((IMAGE,), 1),
        (("precision=bfloat16",), 1),
    ):
        loaded = lab.load(AUTO, *overrides)
        trial = trials_of(loaded.sweep, brackets_of(loaded.sweep)[0], [0.1])[0]
        resources = json.loads(lab.row([], loaded, fence=0)["row"])["resources"]
        assert most_of(trial, resources=resources, cwd=Path.cwd()) == most
        assert most_of(trial, resources={**resources, "lockstep": 3}, cwd=Path.cwd()) == 3


@pytest.mark.parametrize("overrides", [(SEEDS,), ("schedule={name: constant}", SEEDS), (GPT, "axes.batch_tokens=[32]")])
def test_a_sweep_in_lockstep_has_the_curves_and_the_law_of_one_run_by_run(lab: Any, overrides: tuple[str, ...]) -> None:
    packed = trained(lab, "packed", AUTO, *overrides)
    plain = trained(lab, "plain", *overrides)
    near(packed, plain)
    laws = [fit(lab.load(*overrides), home=lab.folder / home, environ={}).laws[""] for home in ("packed", "plain")]
    if laws[0] is not None and laws[1] is not None:
        for name, value in laws[0].coefficients.items():
            assert value == pytest.approx(laws[1].coefficients[name], abs=1e-3)


def test_a_script_trains_by_itself_whatever_is_asked(lab: Any) -> None:
    (lab.folder / "train.py").touch()
    loaded = lab.load("workload={name: script, path: train.py}", "resources.lockstep=4")
    trial = trials_of(loaded.sweep, brackets_of(loaded.sweep)[0], [0.1])[0]
    resources = json.loads(lab.row([], loaded, fence=0)["row"])["resources"]
    assert most_of(trial, resources=resources, cwd=Path.cwd()) == 1


def test_how_rows_are_grouped_changes_no_bit(lab: Any) -> None:
    found = []
    for number, (most, size) in enumerate(((16, 30), (2, 30), (3, 7), (16, 1))):
        lab.home = lab.folder / str(number)
        for config in rows(lab, SEEDS, most=most, size=size):
            finish(Row(config=config))
        found.append(told(lab.outcomes()))
    assert found[0] == found[1] == found[2] == found[3]


def test_a_row_killed_and_regrouped_gives_the_same_curves_to_the_bit(lab: Any) -> None:
    sweep = (SEEDS, "axes.tokens=[2048,4096]", "axes.lr=[0.05,0.1,0.2]")
    sweep += ("resources.report_seconds=0.02", "resources.checkpoint_seconds=0.000001")
    for reports in (2, 1, 3):
        for config in rows(lab, *sweep, most=4, size=5):
            row = Row(config=config)
            for _ in range(reports):
                if row.step()["done"]:
                    break  # and then it is dropped: killed
    for config in rows(lab, *sweep, most=16, size=12):
        finish(Row(config=config))
    killed = told(lab.outcomes())
    lab.home = lab.folder / "straight"
    for config in rows(lab, *sweep, most=16, size=12):
        finish(Row(config=config))
    assert told(lab.outcomes()) == killed


def test_a_stopped_row_in_lockstep_saves_each_run_and_goes_on(lab: Any) -> None:
    sweep = (SEEDS, "axes.tokens=[4096,8192]", "axes.lr=[0.05,0.1]", "resources.report_seconds=0.02")
    (config,) = rows(lab, *sweep, most=16, size=99)
    row = Row(config=config)
    row.step()
    lab.store().request_stop()
    assert row.step()["done"]
    lab.store().clear_stop()
    finish(Row(config=config))
    work = [lab.store().trial(key, fence=0).read_work() for key in lab.outcomes()]
    assert all(a[1] == b[0] for spans in work for a, b in itertools.pairwise(spans))  # nothing twice
    assert {o.outcome for o in lab.outcomes().values()} == {"finished"}


@pytest.mark.parametrize("fitting", [2, 1])
def test_where_memory_ends_the_row_goes_on_with_half_as_many_runs_at_a_time(
    lab: Any, monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    sweep = (SEEDS, "axes.tokens=[256,512]", "axes.lr=[0.05,0.1,0.2,0.4]")
    whole, sizes = Pack.advance, []

    def advance(pack: Pack, **given: Any) -> None:
        sizes.append(len(pack.members))
        if len(pack.members) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(pack, **given)

    monkeypatch.setattr(Pack, "advance", advance)
    (config,) = rows(lab, *sweep, most=16, size=99)
    finish(Row(config=config))
    assert sizes[:2] == [8, 4]
    assert max(sizes[4 // fitting :]) == fitting
    split = told(lab.outcomes())
    monkeypatch.undo()
    lab.home = lab.folder / "whole"
    finish(Row(config=rows(lab, *sweep, most=16, size=99)[0]))
    assert told(lab.outcomes()) == split


def test_memory_that_one_run_does_not_find_either_ends_the_row(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(pack: Pack, **given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pack, "advance", advance)
    (config, *_) = rows(lab, most=16, size=2)
    row = Row(config=config)
    with pytest.raises(torch.OutOfMemoryError):
        finish(row)
    row.cleanup()
    assert not lab.outcomes()


@pytest.mark.ray
def test_a_sweep_in_lockstep_on_ray_is_the_same_sweep(lab: Any, ray_here: None) -> None:
    lab.train()
    plain = told(lab.outcomes())
    lab.home = lab.folder / "ray"
    ended = lab.run(AUTO)
    assert ended.exit_code == 0, ended.lines
    assert ended.lines[0].startswith("17 trials ended")
    near(told(lab.outcomes()), plain)
    assert set(lab.statuses()) == {"FINISHED", "parent FINISHED"}


BAD = """
from dataclasses import dataclass

from workloads.quadratic import Quadratic

@dataclass(frozen=True)
class Bad(Quadratic):
    def init_model_fn(self, rng):
        if rng.initial_seed() == BAD_SEED:
            raise ArithmeticError("bad luck")
        return Quadratic.init_model_fn(self, rng)
"""


@pytest.mark.ray
def test_one_bad_trial_of_a_row_fails_alone(lab: Any, ray_here: None) -> None:
    bad = stable_seed("init", stable_seed("run", 1, 4))  # seed 1 at batch 4
    (lab.folder / "bad_bowl.py").write_text(BAD.replace("BAD_SEED", str(bad)))
    ended = lab.run("workload.name='bad_bowl:Bad'", AUTO, SEEDS, "resources.retries=0", "axes.lr=[0.1,0.2,0.4]", *FEW)
    assert ended.exit_code == 1
    outcomes = [o for o in lab.outcomes().values() if not o.is_trunk]
    assert {o.trial["seed"] for o in outcomes} == {0}
    assert len(outcomes) == 9
    assert len([line for line in ended.lines if line.startswith("failed: ")]) >= 1
    assert any("bad luck" in line for line in ended.lines)
