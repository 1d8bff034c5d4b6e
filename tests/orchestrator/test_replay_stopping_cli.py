"""What `powersweep replay stopping` prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.cli.app import App
from sweeps.curves import Curve, write_parquet
from sweeps.forecast.fitting import known
from sweeps.forecast.forms import Momentum
from sweeps.replay.schedules import scheduled_paths
from sweeps.stopping import RULES

TRUE = known(Momentum(), {"L0": 3.1, "A": 0.25, "C": 1.5, "alpha": 0.5})
SCHEDULES = """\
warmup: {steps: 200, lr: 3.0e-4}
curves:
  constant: [{until: 2400}]
  dropped: [{until: 1200}, {until: 2400, lr: 1.0e-4}]
  cosine: [{until: 2400, to: 3.0e-5, shape: cosine}]
  late: [{until: 2000}, {until: 2400, to: 3.0e-5, shape: linear}]
"""
TREE = {
    "warmup": {"steps": 200, "lr": 3e-4},
    "curves": {
        "constant": [{"until": 2400}],
        "dropped": [{"until": 1200}, {"until": 2400, "lr": 1e-4}],
        "cosine": [{"until": 2400, "to": 3e-5, "shape": "cosine"}],
        "late": [{"until": 2000}, {"until": 2400, "to": 3e-5, "shape": "linear"}],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four curves that the momentum law made, and their schedules."""
    made = tmp_path / "curves"
    made.mkdir()
    step_P = np.arange(240, 2401, 40)
    for name, path in scheduled_paths(TREE, place="").items():
        loss_P = TRUE.predict(path, step_P)
        rows = [f"{s},{path.lr[s - 1]:.6g},{y:.6f}" for s, y in zip(step_P, loss_P, strict=True)]
        (made / f"{name}.csv").write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    (made / "schedules.yaml").write_text(SCHEDULES)
    return made


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Curves as a sweep exports them: four horizons, four LRs, the best of which is never the one ahead early."""
    curves, about = {}, {}
    for tokens in (640, 1280, 2560, 5120):
        for k, lr in enumerate((1e-3, 2e-3, 4e-3, 8e-3)):
            marks = np.arange(1, 21) * tokens // 20
            share = marks / tokens
            loss = 3.0 - 0.1 * np.log(tokens) + 0.1 * abs(k - 2) + 0.2 * k * np.minimum((1 - share) / 0.3, 1.0)
            key = f"{tokens}-{lr}"
            curves[key] = Curve(marks, marks // 8, marks.astype(float), {"validation/loss": loss})
            about[key] = {"lr": lr, "batch_tokens": 8, "tokens": tokens, "seed": 0, "outcome": "finished"}
    write_parquet(tmp_path / "curves.parquet", curves, about=about)
    return tmp_path / "curves.parquet"


def ask(*arguments: object) -> Result:
    assert isinstance(main, App)
    return CliRunner().invoke(main, ["replay", "stopping", *map(str, arguments)])


@pytest.mark.parametrize("rule", RULES)
def test_json_of_every_rule_holds_what_it_saved_and_lost(table: Path, rule: str) -> None:
    done = ask(table, "--rule", rule, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"saved", "winners_lost", "lr_bias", "cells", "rule", "biased_rule", "notes"} <= found.keys()
    assert (found["rule"], found["biased_rule"]) == (rule, RULES[rule].biased)
    assert len(found["cells"]) == 4
    assert 0 <= found["saved"] < 1


def test_ranking_early_losses_is_off_by_the_lr_and_predicting_the_end_is_not(table: Path) -> None:
    biased = json.loads(ask(table, "--rule", "median", "--json").stdout)
    assert biased["winners_lost"] == 4
    assert biased["lr_bias"] == pytest.approx(-50.0)
    ours = json.loads(ask(table, "--rule", "dominated", "--json").stdout)
    assert (ours["winners_lost"], ours["lr_bias"]) == (0, 0.0)


def test_a_person_gets_the_cells_and_is_told_of_a_biased_rule(table: Path) -> None:
    done = ask(table, "--rule", "asha")
    assert done.exit_code == 0, done.output
    assert "asha (biased: it ranks raw losses in mid-schedule):" in done.stdout
    assert "winner lost" in done.stdout
    assert "winners lost: 4 of 4 cells" in done.stdout
    assert "biased" not in ask(table, "--rule", "dominated").stdout


def test_a_field_of_the_rule_may_be_given(table: Path) -> None:
    lax = ask(table, "--rule", "median", "--with", "grace_share=0.95", "--json")
    assert json.loads(lax.stdout)["winners_lost"] == 0
    assert json.loads(ask(table, "--rule", "asha", "--with", "eta=2", "--json").stdout)["saved"] < 0.72


def test_columns_say_what_another_table_holds(table: Path) -> None:
    columns = 'run=key,cell="trial.tokens",tokens=step,loss="validation/loss",lr="trial.lr"'
    other = json.loads(ask(table, "--rule", "median", "--columns", columns, "--json").stdout)
    assert other["winners_lost"] == 4
    assert [c["cell"] for c in other["cells"]] == ["640", "1280", "2560", "5120"]


def test_a_folder_with_a_law_keeps_the_schedule_that_falls_late(folder: Path) -> None:
    done = ask(folder, "--rule", "dominated", "--fit", "constant", "dropped", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["winners_lost"], found["lr_bias"]) == (0, pytest.approx(0.0))
    assert found["cells"][0]["winner"] in ("late", "cosine")
    assert {"constant", "dropped"}.isdisjoint(stop["key"] for stop in found["cells"][0]["stopped"])
    same = ask(folder, "--rule", "dominated", "--fit", "constant", "--fit", "dropped", "--json")
    assert same.stdout == done.stdout


def test_a_figure_is_written(table: Path, tmp_path: Path) -> None:
    figure = tmp_path / "new" / "stopping.png"
    done = ask(table, "--rule", "median", "--figure", figure)
    assert done.exit_code == 0, done.output
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "dominted"], "--rule: no stopper 'dominted' (did you mean 'dominated'?)"),
        ([], "--rule"),
        (["--rule", "asha", "--with", "etta=3"], "--rule asha.etta: no field 'etta' (did you mean 'eta'?)"),
        (["--rule", "asha", "--with", "eta=1"], "eta: must be over 1 and finite, got 1.0"),
        (["--rule", "asha", "--with", "eta"], "--with: must be FIELD=NUMBER, such as confidence=0.99, got 'eta'"),
        (["--rule", "asha", "--fit", "constant"], "--fit: only the rule dominated reads a curve law"),
        (["--rule", "dominated", "--fit", "constnat"], "--fit: no curve 'constnat' (did you mean 'constant'?)"),
        (["--rule", "none", "--columns", "run=a"], "--columns: is of a table"),
        (["--rule", "none", "--schedules", "none.yaml"], "--schedules: no file none.yaml"),
    ],
)
def test_wrong_input_of_a_folder_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    refused(ask(folder, *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "dominated", "--fit", "constant"], "--fit: needs a folder of curves"),
        (["--rule", "none", "--schedules", "a.yaml"], "--schedules: is of a folder of curves"),
        (["--rule", "none", "--columns", "run=keys,tokens=step,loss=step"], "no column 'keys' (did you mean 'key'?)"),
        (["--rule", "none", "--columns", "run=key,tokens=step,loss=step,cell=key"], "no cell has two runs"),
    ],
)
def test_wrong_input_of_a_table_is_one_line(table: Path, arguments: list[str], message: str) -> None:
    refused(ask(table, *arguments), message)


def test_a_place_where_nothing_lies_is_refused(tmp_path: Path) -> None:
    refused(ask(tmp_path / "none.parquet", "--rule", "none"), "none.parquet: no such file")
    refused(ask(tmp_path, "--rule", "none"), "FOLDER: no CSV or Parquet files in")


def refused(done: Result, message: str) -> None:
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
