from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeps.choose import Target
from sweeps.errors import ConfigError, FitError
from sweeps.replay.expressions import pairs_of, rows_where, values_of
from sweeps.replay.gaps import GapSurface
from sweeps.replay.laws import leave_out, score_law, score_sampler, to_json
from sweeps.replay.laws_figure import draw_gaps
from sweeps.replay.picking import Oracle, pick_at_random, pick_for_law
from sweeps.replay.table import Table, read_table
from sweeps.report.look import png

COLUMNS = {"lr": np.array([1e-3, 2e-3]), "bs": np.array([16.0, 32.0]), "smooth loss": np.array([2.5, 3.0])}
TEXT = 'lr=lr,batch_tokens=bs*2048,tokens=D,parameters=N,loss="smooth loss"'


def drawn_table(*, noise: float = 0.0005, seed: int = 0) -> Table:
    """Return runs on a grid of a surface whose best LR is 2e-3 (T/1e10)^0.2 and best batch 2^17 (T/1e10)^0.5."""
    rng = np.random.default_rng(seed)
    lines = []
    for tokens in (5e9, 1e10, 2e10, 8e10):
        for lr in np.geomspace(3e-4, 2e-2, 11):
            for batch in 2.0 ** np.arange(15, 21):
                u = math.log(lr / (2e-3 * (tokens / 1e10) ** 0.2)) - 0.3 * math.log(
                    batch / (2**17 * (tokens / 1e10) ** 0.5)
                )
                v = math.log(batch / (2**17 * (tokens / 1e10) ** 0.5))
                level = math.log(1.7 + 0.5 * (tokens / 1e10) ** -0.3)
                loss = math.exp(level + 0.015 * u * u + 0.012 * v * v + noise * rng.standard_normal())
                lines.append((lr, batch, tokens, 1e8, loss))
    return Table(*np.array(lines).T)


# -- expressions ----------------------------------------------------------------------------------------------------


def test_an_expression_is_columns_and_arithmetic() -> None:
    assert values_of("bs*2048", COLUMNS, where="x").tolist() == [32768.0, 65536.0]
    assert values_of("-(bs + 16) / 2 ** 2", COLUMNS, where="x").tolist() == [-8.0, -12.0]
    assert values_of("'smooth loss'", COLUMNS, where="x").tolist() == [2.5, 3.0]
    assert values_of("log(exp(lr))", COLUMNS, where="x") == pytest.approx([1e-3, 2e-3])
    assert values_of("7", COLUMNS, where="x").tolist() == [7.0, 7.0]


def test_a_filter_is_comparisons_joined() -> None:
    assert rows_where("bs <= 16", COLUMNS, where="x").tolist() == [True, False]
    assert rows_where("bs > 16 and 'smooth loss' > 2.9 or lr == 1e-3", COLUMNS, where="x").tolist() == [True, True]
    assert rows_where("not 1e-3 < lr <= 2e-3", COLUMNS, where="x").tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bsz*2", r"columns.lr: no column 'bsz' \(did you mean 'bs'\?\)"),
        ("__import__('os').system('true')", "is not understood|no function"),
        ("lr.__class__", "is not understood"),
        ("[x for x in (1,2)]", "is not understood"),
        ("lambda: 1", "is not understood"),
        ("sqrt(lr)", "no function 'sqrt'"),
        ("lr +", "is no expression"),
        ("lr if lr else bs", "is not understood"),
        ("bs[0]", "is not understood"),
    ],
)
def test_nothing_else_is_an_expression(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        values_of(text, COLUMNS, where="columns.lr")


def test_a_filter_that_compares_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="train: must be a comparison"):
        rows_where("bs", COLUMNS, where="train")


def test_columns_are_parted_at_commas_outside_quotes_and_brackets() -> None:
    assert pairs_of('a=x, b="p, q",c=f(1, 2)', where="columns") == {"a": "x", "b": '"p, q"', "c": "f(1, 2)"}
    for text, said in (("a", "must be name=expression"), ("a=1,a=2", "given twice"), ("a=", "must be name=expression")):
        with pytest.raises(ConfigError, match=said):
            pairs_of(text, where="columns")


# -- tables ---------------------------------------------------------------------------------------------------------


def written(path: Path) -> Path:
    table = drawn_table()
    rows = zip(table.lr, table.batch_tokens / 2048, table.loss, table.tokens, table.parameters, strict=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lr", "bs", "smooth loss", "D", "N"])
        writer.writerows([[repr(float(x)) for x in row] for row in rows])
    return path


def test_a_csv_and_a_parquet_file_are_the_same_table(tmp_path: Path) -> None:
    one = read_table(written(tmp_path / "runs.csv"), TEXT)
    pq.write_table(pa.csv.read_csv(tmp_path / "runs.csv"), tmp_path / "runs.parquet")
    other = read_table(tmp_path / "runs.parquet", TEXT)
    for name in one.columns:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])
    assert len(one) == len(drawn_table())


def test_a_table_at_fault_says_where(tmp_path: Path) -> None:
    path = written(tmp_path / "runs.csv")
    for file, columns, said in (
        (tmp_path / "none.csv", TEXT, "no such file"),
        (path, TEXT.replace("lr=lr,", ""), "columns: lr is missing"),
        (path, TEXT + ",lrr=lr", "no column of a law 'lrr'"),
        (path, TEXT.replace("tokens=D", "tokens=D-5e9"), "tokens must be positive in every run, got 0 in row 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_table(file, columns)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "broken.parquet", TEXT)
    with pytest.raises(ConfigError, match="keeps none of"):
        read_table(path, TEXT).where("tokens > 1e15", name="target")


# -- gaps and laws --------------------------------------------------------------------------------------------------


def test_the_gap_is_nothing_at_the_best_place_and_grows_away_from_it() -> None:
    cell = drawn_table(noise=0.0).cell(1e8, 1e10)
    surface = GapSurface.of(cell)
    assert surface.gap_per_mille(2e-3, 2**17) == pytest.approx(0.0, abs=0.1)
    assert surface.gap_per_mille(4e-3, 2**17) == pytest.approx(1000 * 0.015 * math.log(2) ** 2, rel=0.15)
    assert surface.gap_per_mille(1.0, 2**17) == surface.gap_per_mille(float(cell.lr.max()), 2**17)


def test_a_cell_of_few_runs_has_no_gap() -> None:
    with pytest.raises(ConfigError, match="a loss gap needs 10"):
        GapSurface.of(drawn_table().cell(1e8, 1e10).of(np.arange(5)))


def parts() -> tuple[Table, Table]:
    table = drawn_table()
    return table.where("tokens<=2e10", name="train"), table.where("tokens>=8e10", name="target")


@pytest.mark.parametrize("law", ["joint", "recipe", "recipe-0.5%"])
def test_a_law_fitted_on_smaller_runs_is_right_about_larger_ones(law: str) -> None:
    score = score_law(law, *parts())
    (cell,) = score.cells
    # on a grid of spacing 1.5 in lr and 2 in batch, a recipe that averages grid points is off by a part of a step
    assert cell.lr == pytest.approx(2e-3 * 8**0.2, rel=0.15 if law == "joint" else 0.4)
    assert score.mean < (0.6 if law == "joint" else 2.5)


def test_a_published_law_needs_no_fit_and_one_without_a_batch_is_refused() -> None:
    train, target = parts()
    assert score_law("step-law", train, target).cells[0].lr_interval is None
    with pytest.raises(ConfigError, match=r"law: no law 'jont'.*did you mean 'joint'"):
        score_law("jont", train, target)
    with pytest.raises((FitError, ConfigError)):
        score_law("power-scheduler", train, target)


def test_every_value_left_out_is_predicted_from_the_others() -> None:
    score = leave_out("joint", drawn_table(), "tokens")
    assert [cell.tokens for cell in score.cells] == [5e9, 1e10, 2e10, 8e10]
    assert score.mean < 0.5
    with pytest.raises(ConfigError, match="parameters has one value only"):
        leave_out("joint", drawn_table(), "parameters")


def test_a_sampler_sees_no_loss_it_has_not_asked_for() -> None:
    train, _ = parts()
    blind = Table(train.lr, train.batch_tokens, train.tokens, train.parameters, train.loss.copy())
    oracle = Oracle(train)
    pick_for_law(oracle, [Target(tokens=8e10, parameters=1e8)], 14, 0)
    hidden = np.setdiff1d(np.arange(len(train)), oracle.taken)
    blind.loss[hidden] = np.nan
    again = Oracle(blind)
    pick_for_law(again, [Target(tokens=8e10, parameters=1e8)], 14, 0)
    assert again.taken == oracle.taken
    assert len(set(oracle.taken)) == 14


def test_two_dozen_chosen_runs_are_nearly_as_good_as_all_of_them() -> None:
    train, target = parts()
    score = score_sampler("joint", pick_for_law, train, target, sampler="law", trials=24, seed=0, steps=[12])
    assert score.trials == 24
    assert score.flops_share < 0.2
    (cell,) = score.cells
    assert cell.lr_interval is not None
    assert cell.lr_interval[0] < 2e-3 * 8**0.2 < cell.lr_interval[1]
    assert score.mean < 1.5
    assert [n for n, _ in score.steps] == [12]


def test_the_json_of_scores_holds_means_over_seeds() -> None:
    train, target = parts()
    scores = [
        score_sampler("joint", pick_at_random, train, target, sampler="random", trials=24, seed=s) for s in range(2)
    ]
    told = to_json(scores)
    assert told["mean_gap_per_mille"] == pytest.approx((scores[0].mean + scores[1].mean) / 2)
    assert {"max_gap_per_mille", "cells", "flops_share", "trials", "seeds", "law"} <= told.keys()
    assert told["cells"][0].keys() >= {"params", "tokens", "lr", "batch_tokens", "gap_per_mille"}


def test_figures_are_drawn_of_laws_and_of_samplers() -> None:
    train, target = parts()
    laws = {name: [score_law(name, train, target)] for name in ("joint", "recipe")}
    picked = score_sampler("joint", pick_at_random, train, target, sampler="random", trials=24, seed=0, steps=[8, 16])
    for figure in (draw_gaps(laws), draw_gaps({"random": [picked, picked]}, reference=0.5)):
        assert png(figure).startswith(b"\x89PNG")


# -- published runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_runs() -> Table:
    folder = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if folder is None:
        pytest.skip("POWERSWEEP_PUBLIC_DATA is not set: the folder of Step Law's published runs")
    return read_table(Path(folder) / "steplaw" / "dense_lr_bs_loss_small.csv", TEXT)


def test_the_gaps_of_known_laws_on_step_laws_runs_are_those_on_record(published_runs: Table) -> None:
    found = {name: leave_out(name, published_runs, "parameters").mean for name in ("step-law", "recipe", "recipe-0.5%")}
    # published law 1.28; its recipe refitted 1.21 to 1.30 at thresholds 0.5 to 0.25 %
    assert found == pytest.approx({"step-law": 1.28, "recipe": 1.30, "recipe-0.5%": 1.21}, abs=0.02)


def test_the_joint_surrogate_beats_the_published_law_on_sizes_it_has_not_seen(published_runs: Table) -> None:
    assert leave_out("joint", published_runs, "parameters").mean <= 1.0


def test_the_joint_surrogate_is_within_one_per_mille_at_token_counts_it_has_not_seen(published_runs: Table) -> None:
    train = published_runs.where("tokens<=2.6e10", name="train")
    assert len(train) == 951
    assert score_law("joint", train, published_runs.where("tokens>=4e10", name="target")).mean <= 1.0
