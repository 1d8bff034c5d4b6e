from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import main

STEP = ["--tokens", "4e10", "--parameters", "429260800"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POWERSWEEP_HOME", str(tmp_path / "home"))


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["predict", *arguments])


def test_a_published_law_prints_its_lr_batch_source_and_convention() -> None:
    result = asked("--law", "step-law", *STEP)
    assert result.exit_code == 0
    assert result.stdout.startswith("lr 0.002252  at its best batch of 656,4")
    assert "batch free" in result.stdout
    assert "arXiv:2503.04715; published" in result.stdout
    assert result.stderr == ""


def test_a_published_law_may_be_named_in_the_place_of_a_file() -> None:
    assert asked("step-law", *STEP).stdout == asked("--law", "step-law", *STEP).stdout


def test_a_file_of_the_name_of_a_published_law_wins() -> None:
    Path("step-law").write_text("{}")
    result = asked("step-law", *STEP, "--batch-tokens", "1e6")
    assert result.exit_code == 2
    assert "must be a law.json" in result.stderr


def test_a_published_law_for_a_program_is_json_with_its_warnings() -> None:
    found = json.loads(asked("--law", "step-law", "--tokens", "1.4e12", "--parameters", "7e9", "--json").stdout)
    assert (found["law"], found["convention"], found["trust"]) == ("step-law", "batch free", "published")
    assert found["lr"] == pytest.approx(9.166e-4, rel=1e-4)
    assert len(found["warnings"]) == 2


def test_a_ratio_rule_takes_its_anchor_from_the_command_line() -> None:
    anchor = ["--anchor-lr", "0.001", "--anchor-tokens", "2.5e10"]
    assert asked("--law", "bjorck", "--tokens", "8e11", *anchor).stdout.startswith("lr 0.0003299")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--law", "step-low", *STEP], "no published law 'step-low' (did you mean 'step-law'?)"),
        (["--law", "power-scheduler", *STEP], "power-scheduler: needs batch_tokens and sequence_tokens"),
        (["--law", "bjorck", *STEP], "bjorck: needs an anchor"),
        (["--law", "bjorck", *STEP, "--anchor-lr", "1"], "give --anchor-lr and --anchor-tokens"),
        (["--law", "step-law", "step-law", *STEP], "LAW: name one law"),
        (STEP, "LAW: name one law"),
        (["mine", *STEP], "--batch-tokens: a fitted law needs it"),
        (["mine", *STEP, "--sequence-tokens", "8"], "--sequence-tokens: only a published law asks for it"),
        (["step-law", *STEP, "--sequence-tokens", "0"], "--sequence-tokens: must be above 0 and finite, got 0"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(arguments: list[str], message: str) -> None:
    result = asked(*arguments)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr
