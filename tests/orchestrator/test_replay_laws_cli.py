from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.search.recorded import PICKERS, picker_of
from sweeps.choose import Target
from sweeps.errors import ConfigError
from sweeps.replay.picking import Oracle
from sweeps.replay.table import Table

COLUMNS = "lr=lr,batch_tokens=batch,tokens=T,loss=loss"
SPLIT = ["--train", "tokens<=2e9", "--target", "tokens>=8e9"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table whose best LR is 2e-3 and whose best batch is 64 Ki tokens, everywhere."""
    lines = ["lr,batch,T,loss"]
    for tokens in (1e9, 2e9, 8e9):
        for lr in np.geomspace(5e-4, 8e-3, 7):
            for batch in 2.0 ** np.arange(13, 20):
                rise = 0.02 * np.log(lr / 2e-3) ** 2 + 0.01 * np.log(batch / 2**16) ** 2
                lines.append(f"{lr},{batch},{tokens},{2.0 * (1 + rise) * (tokens / 1e9) ** -0.05}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def said(*words: str) -> Any:
    return CliRunner().invoke(main, ["replay", "laws", *words])


def test_replay_laws_prints_what_it_recommends_and_the_gap(table: Path, tmp_path: Path) -> None:
    figure = tmp_path / "gaps.png"
    found = said(str(table), "--columns", COLUMNS, *SPLIT, "--figure", str(figure))
    assert found.exit_code == 0, found.output
    assert "8,000,000,000" in found.output
    assert "law joint, 98 runs, 100.0 % of the training FLOPs" in found.output
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_replay_laws_of_a_sampler_tells_programs_the_same(table: Path) -> None:
    found = said(
        str(table), "--columns", COLUMNS, *SPLIT, "--sampler", "law", "--trials", "16", "--seeds", "2", "--json"
    )
    told = json.loads(found.output)
    assert (told["trials"], told["seeds"], told["sampler"], len(told["gaps"])) == (16, 2, "law", 2)
    assert told["mean_gap_per_mille"] < 2.0
    assert 0.0 < told["flops_share"] < 0.4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "tokens<=2e9"], "target: must say whose cells"),
        (["--train", "tokens<=8e9", "--target", "tokens>=8e9"], "target: shares 1 cells with train"),
        ([*SPLIT, "--law", "stepl"], "law: no law 'stepl'"),
        ([*SPLIT, "--sampler", "gpp"], "sampler: no sampler 'gpp' (did you mean 'gp'?)"),
        (["--leave-out", "tokens", "--sampler", "gp"], "leave-out: stands instead"),
        (["--leave-out", "token"], "leave-out: no column 'token' (did you mean 'tokens'?)"),
        (["--train", "os.system('x')", "--target", "tokens>1"], "train: must be a comparison"),
    ],
)
def test_replay_laws_asked_wrongly_is_one_line(table: Path, words: list[str], message: str) -> None:
    found = said(str(table), "--columns", COLUMNS, *words)
    assert found.exit_code == 2
    assert found.stderr.startswith("powersweep: ")
    assert message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", sorted(PICKERS))
def test_a_sampler_on_recorded_runs_takes_each_run_once_and_repeats_by_its_seed(name: str) -> None:
    rng = np.random.default_rng(0)
    count = 80
    lr, batch = np.exp(rng.uniform(-7, -5, count)), np.exp(rng.uniform(9, 13, count))
    loss = 2.0 + 0.1 * (np.log(lr) + 6) ** 2 + 0.05 * (np.log(batch) - 11) ** 2
    loss[3] = np.nan
    runs = Table(lr, batch, np.repeat([1e9, 2e9], count // 2), np.full(count, 1e8), loss)
    taken = []
    for _ in range(2):
        oracle = Oracle(runs)
        picker_of(name)(oracle, [Target(tokens=8e9, parameters=1e8)], 12, 5)
        taken.append(oracle.taken)
    assert taken[0] == taken[1]
    assert len(set(taken[0])) == 12
    assert {runs.tokens[i] for i in taken[0]} == {1e9, 2e9}


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        picker_of("randm")
