"""The gate: a law is checked at a larger scale by runs; and two recipes are compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.results import fit, held_out_trials, with_checks
from sweeps.agenda import Outcome
from sweeps.curves import Curve
from sweeps.laws.law import Law
from sweeps.laws.records import Verdict
from sweeps.spec import Trial

TEACHER = """
name: small
workload: {name: teacher, inputs: 16, classes: 16}
optimizer: {name: sgd}
schedule: {name: constant}
axes:
  lr: {log: [0.5, 32], points: 7}
  batch_tokens: [16, 64]
  steps: [128, 256, 512]
  seed: [0, 1]
resources: {cpus: 1, concurrent: 2}
"""
CHECK = ("validate.tokens=512", "validate.batch_tokens=4")


def command(lab: Any, *arguments: str) -> Result:
    return CliRunner(env={"POWERSWEEP_HOME": str(lab.home)}).invoke(main, [str(x) for x in arguments])


def ended(trial: Trial, loss: float | None) -> Outcome:
    """Return how a trial ended, without having trained it."""
    curve = Curve([trial.tokens], [1], [0.0], {"validation/loss": [math.nan if loss is None else loss]})
    return Outcome(trial.key, "diverged" if loss is None else "finished", trial.tokens, curve)


@pytest.fixture
def fitted(lab: Any) -> Any:
    """A lab whose tiny sweep has been trained, and has a law."""
    lab.train()
    return lab


def checked(lab: Any, best: float, *, wrong: float = 1.0, sure: float = 1.0) -> tuple[list[float], Verdict]:
    """Return the LRs that a held-out check asks for one after another, and its verdict, where `best` is the best LR.

    The law's lr* is multiplied by `wrong`, and its interval divided by `sure`.
    """
    loaded = lab.load(*CHECK)
    findings = fit(loaded, home=lab.home, environ={})
    law = findings.laws[""]
    assert law is not None
    covariance = tuple(tuple(value / sure**2 for value in row) for row in law.covariance)
    findings.laws[""] = replace(law, covariance=covariance)
    findings.laws[""].coefficients["log_a"] += math.log(wrong)
    outcomes: dict[str, Outcome] = {}
    asked: list[float] = []
    while new := [t for t in held_out_trials(loaded.sweep, findings, outcomes) if t.key not in outcomes]:
        asked += sorted({t.lr for t in new})
        for t in new:
            loss = 1.0 + 0.2 * math.log(t.lr / best) ** 2 + 0.01 * t.seed + 1e-4 * ((t.seed * 7 + len(asked)) % 3)
            outcomes[t.key] = ended(t, loss)
    return asked, with_checks(loaded.sweep, findings, outcomes).verdicts[""]


def test_a_check_that_brackets_its_best_lr_asks_for_no_more(fitted: Any) -> None:
    law = fit(fitted.load(*CHECK), home=fitted.home, environ={}).laws[""]
    lr = law.predict(batch_tokens=4, tokens=512).lr
    asked, verdict = checked(fitted, 1.02 * lr, sure=10.0)
    assert asked == pytest.approx([lr / 2, lr, 2 * lr], rel=1e-5)
    assert verdict.status == "validated"


def test_a_law_that_says_nothing_is_not_validated(fitted: Any) -> None:
    law = fit(fitted.load(*CHECK), home=fitted.home, environ={}).laws[""]
    _, verdict = checked(fitted, 1.02 * law.predict(batch_tokens=4, tokens=512).lr)
    assert verdict.status == "cannot tell"
    assert "the law's interval is as wide as the LRs tried" in verdict.reason


def test_a_check_whose_best_lr_is_on_an_edge_goes_on_beyond_it_and_rejects(fitted: Any) -> None:
    law = fit(fitted.load(*CHECK), home=fitted.home, environ={}).laws[""]
    lr = law.predict(batch_tokens=4, tokens=512).lr
    for wrong in (3.0, 1 / 3):
        asked, verdict = checked(fitted, lr, wrong=wrong)
        assert verdict.status == "rejected"
        assert min(asked) < lr < max(asked)
        assert 4 <= len(asked) <= 5
    assert len(checked(fitted, lr, wrong=1e3)[0]) == 5  # bounded


def test_a_verdict_stays_in_the_file_of_the_same_law(fitted: Any) -> None:
    assert command(fitted, "report", "tiny.yaml").exit_code == 0
    path = fitted.store().folder / "law.json"
    law = json.loads(path.read_text())
    path.write_text(json.dumps(law | {"status": "rejected", "validation": {"status": "rejected"}}))
    assert command(fitted, "report", "tiny.yaml").exit_code == 0
    assert json.loads(path.read_text())["status"] == "rejected"
    assert command(fitted, "report", "tiny.yaml", "axes.tokens=[64,128,256,512]").exit_code == 0
    path.write_text(json.dumps(law | {"status": "rejected", "dof": law["dof"] + 1}))
    assert command(fitted, "report", "tiny.yaml").exit_code == 0
    assert json.loads(path.read_text())["status"] == "fitted"  # another law


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["law.json"], "powersweep validate SWEEP --law law.json"),
        (["tiny.yaml", "--tokens", "0"], "--tokens: must be at least 1 and finite, got 0"),
        (["tiny.yaml", "--tokens", "inf"], "--tokens: must be at least 1 and finite, got inf"),
        (["tiny.yaml", "--tokens", "0.3"], "--tokens: must be at least 1 and finite, got 0.3"),
        (["tiny.yaml", "--tokens", "64", "--batch-tokens", "128"], "--batch-tokens: must be at most --tokens (64)"),
        (["tiny.yaml", "--seeds", "1000000000"], "--seeds: must be at most 1,000"),
        (["tiny.yaml", "--law", "none.json"], "no law can be read"),
        (["tiny.yaml", "--seeds", "0"], "--seeds: must be at least 1"),
    ],
)
def test_a_gate_asked_wrongly_says_so_in_one_line(lab: Any, arguments: list[str], said: str) -> None:
    done = command(lab, "validate", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_sweep_without_a_law_has_nothing_to_check(lab: Any) -> None:
    done = command(lab, "validate", "tiny.yaml")
    assert done.exit_code == 1
    assert "there is no law to check" in done.output


@pytest.mark.parametrize("law", [(), ("--law", "checked.json")])
def test_a_target_beyond_the_reach_is_refused_and_a_law_keeps_its_mark(fitted: Any, law: tuple[str, ...]) -> None:
    assert command(fitted, "report", "tiny.yaml").exit_code == 0
    content = json.loads((fitted.store().folder / "law.json").read_text())
    marked = json.dumps(content | {"status": "validated", "validation": {"status": "validated"}})
    (fitted.folder / "checked.json").write_text(marked)
    before = sorted(fitted.home.rglob("*"))
    done = command(fitted, "validate", "tiny.yaml", *law, "--tokens", "1e6")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "tokens 1,000,000 is beyond the law's reach" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (fitted.folder / "checked.json").read_text() == marked
    assert sorted(fitted.home.rglob("*")) == before


def test_a_sweep_compared_with_itself_cannot_tell(fitted: Any) -> None:
    done = command(fitted, "compare", "tiny.yaml", "tiny.yaml", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["better"] == "cannot tell"
    assert told["loss"]["value"] == 0.0
    assert len(told["cells"]) == 3


def test_a_recipe_that_is_worse_by_its_noise_is_told_from_a_better_one(fitted: Any) -> None:
    noisy = (fitted.folder / "tiny.yaml").read_text().replace("name: tiny", "name: noisy")
    (fitted.folder / "noisy.yaml").write_text(noisy.replace("noise: 4.0", "noise: 8.0"))
    fitted.train(sweep="noisy.yaml")
    done = command(fitted, "compare", "tiny.yaml", "noisy.yaml")
    assert done.exit_code == 0, done.output
    assert "A (tiny.yaml) is better" in done.output
    assert "for A's loss B needs x" in done.output
    apart = fitted.folder / "apart.yaml"
    apart.write_text(noisy.replace("[64, 128, 256]", "[96, 192, 384]").replace("noisy", "apart"))
    fitted.train(sweep="apart.yaml")
    done = command(fitted, "compare", "tiny.yaml", "apart.yaml")
    assert done.exit_code == 1
    assert "they share no token counts" in done.output


@pytest.mark.slow
@pytest.mark.ray
def test_a_wrong_law_is_rejected_on_the_teacher_and_the_right_one_passes(
    lab: Any, ray_here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (lab.folder / "small.yaml").write_text(TEACHER)
    lab.train(sweep="small.yaml")
    right = command(lab, "validate", "small.yaml")
    assert right.exit_code == 0, right.output
    assert "held-out check: validated" in right.output
    own = lab.store("small").folder / "law.json"
    assert Law.load(own).status == "validated"
    assert "worth" in right.output

    law = json.loads(own.read_text())
    law["coefficients"]["log_a"] += math.log(3.0)
    Path("wrong.json").write_text(json.dumps(law))
    wrong = command(lab, "validate", "small.yaml", "--law", "wrong.json")
    assert wrong.exit_code == 1, wrong.output
    assert "held-out check: rejected" in wrong.output
    assert Law.load("wrong.json").status == "rejected"
    assert Law.load(own).status == "validated"  # another law's check leaves the sweep's own alone

    again = command(lab, "validate", "small.yaml", "--law", "wrong.json", "--json")
    assert json.loads(again.stdout)["laws"][""]["status"] == "rejected"
    assert not lab.statuses("small").get("RUNNING")
