"""What `powersweep replay curves` prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main
from orchestrator.cli.app import App
from sweeps.forecast.fitting import known
from sweeps.forecast.forms import Momentum
from sweeps.replay.schedules import scheduled_paths

TRUE = known(Momentum(), {"L0": 3.1, "A": 0.25, "C": 0.4, "alpha": 0.5})
SCHEDULES = """\
warmup: {steps: 200, lr: 3.0e-4}
curves:
  constant: [{until: 2400}]
  dropped: [{until: 1200}, {until: 2400, lr: 1.0e-4}]
  cosine: [{until: 2400, to: 3.0e-5, shape: cosine}]
"""
TREE = {
    "warmup": {"steps": 200, "lr": 3e-4},
    "curves": {
        "constant": [{"until": 2400}],
        "dropped": [{"until": 1200}, {"until": 2400, "lr": 1e-4}],
        "cosine": [{"until": 2400, "to": 3e-5, "shape": "cosine"}],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three curves that the momentum law made, and their schedules."""
    made = tmp_path / "curves"
    made.mkdir()
    step_P = np.arange(240, 2401, 40)
    for name, path in scheduled_paths(TREE, place="").items():
        loss_P = TRUE.predict(path, step_P)
        rows = [f"{s},{path.lr[s - 1]:.6g},{y:.6f}" for s, y in zip(step_P, loss_P, strict=True)]
        (made / f"{name}.csv").write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    (made / "schedules.yaml").write_text(SCHEDULES)
    return made


def ask(*arguments: object) -> Result:
    assert isinstance(main, App)
    return CliRunner().invoke(main, ["replay", "curves", *map(str, arguments)])


def test_json_holds_the_scores_by_their_names(folder: Path) -> None:
    done = ask(folder, "--fit", "constant", "dropped", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    keys = {"mae", "mape", "r2", "r2_after", "final_error_mean", "final_error_max", "spearman", "curves"}
    assert keys <= found.keys()
    assert found["mae"] < 1e-4
    assert found["fitted_on"] == ["constant", "dropped"]
    assert [c["name"] for c in found["curves"] if not c["fitted"]] == ["cosine"]
    assert found["notes"] == []


def test_fit_may_be_given_once_for_each_curve(folder: Path) -> None:
    one = ask(folder, "--fit", "constant", "dropped", "--json")
    assert ask(folder, "--fit", "constant", "--fit", "dropped", "--json").stdout == one.stdout


def test_a_person_gets_a_table_and_the_ranking(folder: Path) -> None:
    done = ask(folder, "--fit", "constant", "dropped")
    assert done.exit_code == 0, done.output
    assert "momentum (warm-up: area) on constant, dropped: L0 3.1, A 0.25, C 0.4, alpha 0.5" in done.stdout
    assert "mean of 1 held out" in done.stdout
    assert "3 curves of 2,400 steps, best first: Spearman 1.00" in done.stdout


@pytest.mark.parametrize("law", ["momentum", "multi-power", "fsl", "no-annealing", "linear-drop"])
def test_every_law_can_be_named(folder: Path, law: str) -> None:
    done = ask(folder, "--fit", "constant", "dropped", "--law", law, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["law"] == law


def test_without_schedules_a_note_says_what_was_assumed(folder: Path) -> None:
    (folder / "schedules.yaml").unlink()
    done = ask(folder, "--fit", "constant", "dropped", "--warmup-steps", 200)
    assert "note: constant, cosine, dropped: the LR of each step is drawn straight" in done.stdout
    held = ask(folder, "--fit", "constant", "dropped", "--json")
    note = json.loads(held.stdout)["notes"][0]
    assert "a linear warm-up of 240 steps, read off where the rows begin; --warmup-steps says otherwise" in note


def test_schedules_may_lie_elsewhere(folder: Path) -> None:
    with_beside = ask(folder, "--fit", "constant", "dropped", "--json").stdout
    elsewhere = (folder / "schedules.yaml").rename(folder.parent / "mine.yaml")
    assert ask(folder, "--fit", "constant", "dropped", "--schedules", elsewhere, "--json").stdout == with_beside


def test_a_figure_is_written(folder: Path, tmp_path: Path) -> None:
    figure = tmp_path / "new" / "curves.png"
    done = ask(folder, "--fit", "constant", "dropped", "--figure", figure)
    assert done.exit_code == 0, done.output
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fit", "constnat"], 2, "--fit: no curve 'constnat' (did you mean 'constant'?)"),
        (["--fit", "constant", "--law", "momentun"], 2, "--law: no curve law 'momentun' (did you mean 'momentum'?)"),
        (["--fit", "constant", "--prior", "paper"], 2, "--prior: only multi-power and fsl have one"),
        (["--fit", "constant"], 1, "in none of them does the LR fall"),
        (["--fit", "constant", "dropped", "--schedules", "none.yaml"], 2, "--schedules: no file none.yaml"),
        (["--fit", "constant", "dropped", "--warmup-steps", "-1"], 2, "--warmup-steps"),
        ([], 2, "--fit"),
    ],
)
def test_wrong_input_is_one_line_and_an_exit_code(folder: Path, arguments: list[str], code: int, message: str) -> None:
    done = ask(folder, *arguments)
    assert done.exit_code == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_file_of_schedules_that_is_not_one_is_refused(folder: Path) -> None:
    (folder / "schedules.yaml").write_text("curves: {constant: [{until: never}]}\nwarmup: {steps: 1, lr: 1.0e-3}\n")
    done = ask(folder, "--fit", "constant")
    assert done.exit_code == 2
    assert "schedules.yaml: curves.constant[0].until: must be a whole number above 0, got 'never'" in done.stderr
