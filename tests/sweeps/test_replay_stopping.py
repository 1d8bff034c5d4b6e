"""What replaying a stopper on recorded curves promises."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml

from sweeps.curves import Curve, write_parquet
from sweeps.errors import ConfigError
from sweeps.forecast.fitting import fit_curves
from sweeps.forecast.forms import Momentum
from sweeps.forecast.records import LossCurve
from sweeps.replay.curve_files import read_curves
from sweeps.replay.schedules import scheduled_paths
from sweeps.replay.stopping.figure import draw_stopping
from sweeps.replay.stopping.lockstep import replay_stopping
from sweeps.replay.stopping.recorded import cells_of_curves, read_cells
from sweeps.report.look import png
from sweeps.schedules import learning_rate
from sweeps.schedules.horizon_free import Wsd
from sweeps.stopping import RULES, CellSoFar, Known, RunSoFar, Stop
from sweeps.stopping.dominated import Dominated
from sweeps.stopping.plain import NoStopper
from sweeps.stopping.ranked import Asha, Median
from workloads.quadratic import Quadratic

FACTS = Path(__file__).parents[2] / "benchmarks" / "lr_curves_schedules.yaml"
CHEAP = ["constant_24000", "wsdcon_9"]
REPORTS = 40


class StopAt:
    """Ends named runs at a share of the horizon, to see how it is counted."""

    version = 1
    biased = False

    def __init__(self, *keys: str, share: float) -> None:
        self.keys, self.share = keys, share

    def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
        del known
        there = [run for run in cell.running if run.key in self.keys and cell.share(run) >= self.share - 1e-9]
        return tuple(Stop(run.key, "asked") for run in there)


def run(key: str, final: float, *, lr: float = 1e-3, until: float = 100.0, outcome: str = "finished") -> RunSoFar:
    tokens = np.arange(1.0, until + 1)
    return RunSoFar(key, lr, 0, tokens, final + 1.0 - tokens / until, outcome)


def cell(*runs: RunSoFar, name: str = "cell", parameters: float = 1.0) -> CellSoFar:
    return CellSoFar(name, runs, 100.0, parameters=parameters)


# counting


@pytest.mark.parametrize("name", RULES)
def test_every_rule_trains_no_run_past_its_stop_and_loses_no_more_than_it_stops(name: str) -> None:
    cells = [quadratic(tokens) for tokens in (128, 256, 512, 1024)]
    result = replay_stopping(cells, RULES[name](), rule=name)
    assert 0.0 <= result.saved < 1.0
    for score, left, full in zip(result.scores, result.cells, cells, strict=True):
        ends = {stop.key: stop.share for stop in score.stopped}
        for short, whole in zip(left.runs, full.runs, strict=True):
            assert short.done_tokens <= ends.get(short.key, 1.0) * full.horizon_tokens * (1 + 1e-6)
            assert short.loss.tolist() == whole.loss[: len(short.loss)].tolist()
        assert not score.lost or score.winner in ends


def test_the_rule_that_stops_nothing_changes_nothing() -> None:
    result = replay_stopping([quadratic(128), quadratic(512)], NoStopper(), rule="none")
    found = result.to_json()
    assert (found["saved"], found["winners_lost"], found["lr_bias"], found["lr_bias_basin"]) == (0.0, 0, 0.0, 0.0)


def test_saved_is_the_share_of_tokens_times_parameters_that_was_not_trained() -> None:
    cells = [cell(run("a", 1.0), run("b", 2.0), name="small"), cell(run("c", 1.0), run("d", 2.0), parameters=3.0)]
    result = replay_stopping(cells, StopAt("d", share=0.25), rule="asked")
    assert result.saved == pytest.approx(0.75 * 100 * 3 / (200 + 600))
    assert [score.winner for score in result.scores] == ["a", "c"]


def test_a_lost_winner_moves_the_best_lr_by_the_ratio_of_the_two() -> None:
    lost = cell(run("best", 1.0, lr=1e-3), run("next", 2.0, lr=4e-3), name="lost")
    kept = cell(run("best two", 1.0, lr=1e-3), run("next two", 2.0, lr=4e-3), name="kept")
    result = replay_stopping([lost, kept], StopAt("best", share=0.5), rule="asked")
    found = result.to_json()
    assert found["winners_lost"] == 1
    assert [score.lost for score in result.scores] == [False, True]  # in the order of names, as they cost the same
    assert found["lr_bias"] == pytest.approx(100.0)  # the geometric mean of 4 and 1 is 2
    assert found["regret"] == pytest.approx(0.5)


def test_stopped_runs_are_censored_in_the_fitted_optimum() -> None:
    runs = [run(f"{k}", math.exp(0.1 * k**2), lr=2.0**k) for k in range(-3, 4)]
    result = replay_stopping([cell(*runs)], StopAt("-3", "3", share=0.5), rule="asked")
    assert result.to_json()["lr_bias_basin"] == pytest.approx(0.0, abs=1.0)
    few = replay_stopping([cell(*runs)], StopAt(*[f"{k}" for k in range(-3, 4) if k], share=0.5), rule="asked")
    assert (few.winners_lost, few.basins_lost, few.to_json()["lr_bias_basin"]) == (0, 1, None)


def test_a_run_that_failed_cannot_win() -> None:
    result = replay_stopping(
        [cell(run("a", 1.0, until=50.0, outcome="failed"), run("b", 2.0), run("c", 3.0))], NoStopper(), rule="none"
    )
    assert result.scores[0].winner == "b"
    assert result.scores[0].total == 250.0


def test_small_cells_are_ended_before_large_ones_and_taught_as_the_rule_left_them() -> None:
    seen: list[list[str]] = []

    class Watching(StopAt):
        def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
            seen.append([f"{e.name} {sorted(str(r.outcome) for r in e.runs)}" for e in known.earlier])
            return super().stops(cell, known)

    small = replace(cell(run("a", 1.0), run("b", 2.0), name="small"))
    large = CellSoFar("large", (run("c", 1.0, until=200.0), run("d", 2.0, until=200.0)), 200.0)
    replay_stopping([large, small], Watching("b", share=0.5), rule="asked")
    assert seen[0] == []
    assert seen[-1] == ["small ['finished', 'stopped']"]


def test_a_rule_never_sees_what_is_still_to_come() -> None:
    class Honest(StopAt):
        def stops(self, cell: CellSoFar, known: Known) -> tuple[Stop, ...]:
            shares = {cell.share(r) for r in cell.running}
            assert len(shares) == 1
            assert all(r.done_tokens <= max(shares) * 100.0 + 1e-9 for r in cell.runs if r.outcome != "diverged")
            assert max(shares) < 1.0
            return super().stops(cell, known)

    replay_stopping([cell(run("a", 1.0), run("b", 2.0), run("c", 3.0))], Honest("c", share=0.5), rule="asked")


def test_cells_of_one_run_leave_nothing_to_stop() -> None:
    with pytest.raises(ConfigError, match="no cell has two runs"):
        replay_stopping([cell(run("a", 1.0))], NoStopper(), rule="none")


# known answer: the noisy quadratic without noise in its curves


@functools.cache
def quadratic(tokens: int, *, dimensions: int = 64, batch_tokens: int = 1) -> CellSoFar:
    """Return a cell of expected losses under WSD, exactly, at LRs a factor 1.5 apart about the best."""
    bowl = Quadratic(dimensions=dimensions, noise=4.0)
    rate = learning_rate(Wsd(), peak=1.0, batch_tokens=batch_tokens, total=tokens)
    factors = np.array([rate(step * batch_tokens) for step in range(tokens // batch_tokens)])
    best = bowl.best_lr(batch_tokens=batch_tokens, tokens=tokens, factors=factors)
    lrs = best * 1.5 ** np.arange(-4.0, 5.0)
    losses_SL = expected(bowl, np.outer(factors, lrs), batch_tokens=batch_tokens)
    for i in (0, 4, 8):
        assert losses_SL[-1, i] == pytest.approx(bowl.expected_loss(factors * lrs[i], batch_tokens=batch_tokens))
    steps = np.unique(np.round(np.linspace(1, len(factors), REPORTS + 1)[1:]).astype(int))
    runs = tuple(
        RunSoFar(f"{lr / best:.2f}", float(lr), 0, steps.astype(float), losses_SL[steps - 1, i], "finished")
        for i, lr in enumerate(lrs)
    )
    return CellSoFar(f"{tokens}", runs, float(tokens))


def expected(bowl: Quadratic, lr_SL: np.ndarray[Any, Any], *, batch_tokens: int) -> np.ndarray[Any, Any]:
    """Return `Quadratic.expected_loss` after every step, for several LRs at once."""
    h_D = bowl.curvature()
    second_LD = np.tile(bowl.start() ** 2, (lr_SL.shape[1], 1))
    losses = []
    for lr_L in lr_SL:
        second_LD = (1 - lr_L[:, None] * h_D) ** 2 * second_LD + lr_L[
            :, None
        ] ** 2 * bowl.noise_variance() / batch_tokens
        losses.append(0.5 * second_LD @ h_D)
    return np.array(losses)


def test_on_a_noisy_quadratic_under_wsd_asha_picks_another_lr_and_ours_loses_no_winner() -> None:
    cells = [quadratic(tokens) for tokens in (128, 256, 512, 1024, 2048)]
    asha = replay_stopping(cells, Asha(), rule="asha").to_json()
    ours = replay_stopping(cells, Dominated(), rule="dominated").to_json()
    assert asha["winners_lost"] >= 4
    assert asha["lr_bias"] > 100.0
    assert ours["winners_lost"] == 0
    assert ours["lr_bias"] == 0.0
    assert abs(ours["lr_bias_basin"]) < 10.0
    assert ours["saved"] > 0.1


# tables


def test_the_table_that_a_sweep_exports_needs_no_columns(tmp_path: Path) -> None:
    curves, about = {}, {}
    ended = {"outcome": "finished", "final_loss": 2.0, "seconds": 1.0, "workload": "gpt", "workload.width": "64"}
    for tokens in (64, 128):
        for lr in (1e-3, 2e-3):
            key = f"{tokens} {lr}"
            marks = np.arange(1, 5) * tokens // 4
            curves[key] = Curve(marks, marks // 8, marks.astype(float), {"validation/loss": 3.0 - marks / tokens + lr})
            about[key] = {"lr": lr, "batch_tokens": 8, "tokens": tokens, "seed": 0, "parameters": 10, **ended}
    write_parquet(tmp_path / "curves.parquet", curves, about=about)
    cells = sorted(read_cells(tmp_path / "curves.parquet", None), key=lambda c: c.horizon_tokens)
    assert [(c.horizon_tokens, c.batch_tokens, c.parameters, len(c.runs)) for c in cells] == [
        (64.0, 8.0, 10.0, 2),
        (128.0, 8.0, 10.0, 2),
    ]
    first = cells[0].runs[0]
    assert (first.key, first.lr, first.outcome, first.tokens.tolist()) == (
        "64 0.001",
        1e-3,
        "finished",
        [16, 32, 48, 64],
    )
    assert first.final_loss == pytest.approx(2.001)
    assert {c.recipe for c in cells} == {"gpt/64"}


def write(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    table = pa.table({name: list(values) for name, values in columns.items()})
    (pacsv.write_csv if path.suffix == ".csv" else pq.write_table)(table, path)
    return path


LONG = {
    "task": ["x"] * 6 + ["y"] * 6,
    "study": [0] * 12,
    "trial": [1, 1, 1, 2, 2, 2] * 2,
    "step": [10, 20, 30] * 4,
    "accuracy": [0.1, 0.2, 0.5, 0.3, 0.3, 0.3, 0.1, 0.2, 0.3, 0.3, None, None],
}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_other_tables_are_read_by_expressions_and_labels_joined_by_strokes(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"long.{suffix}", LONG)
    cells = read_cells(path, "run=trial,cell=task/study,recipe=task,tokens=step*2,loss=-accuracy,lr=trial/100")
    assert [(c.name, c.recipe, c.horizon_tokens) for c in cells] == [("x/0", "x", 60.0), ("y/0", "y", 60.0)]
    assert [(r.key, r.lr, r.outcome, r.final_loss) for r in cells[0].runs] == [
        ("1", 0.01, "finished", -0.5),
        ("2", 0.02, "finished", -0.3),
    ]
    assert [r.outcome for r in cells[1].runs] == ["finished", "failed"]


def test_runs_whose_loss_is_absurd_at_the_end_have_diverged(tmp_path: Path) -> None:
    rows = {"run": ["a", "a", "b", "b", "c"], "t": [1, 2, 1, 2, 1], "l": [1.0, 3.1, 1.0, 2.9, math.inf]}
    (found,) = read_cells(write(tmp_path / "t.parquet", rows), "run=run,tokens=t,loss=l")
    assert [r.outcome for r in found.runs] == ["diverged", "finished", "diverged"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("run=trial,tokens=step", "columns: loss is missing; needed are run, tokens, loss"),
        ("run=trial,tokens=step,loss=-accuracy,rate=step", "columns: no column of a replay 'rate'"),
        ("run=trail,tokens=step,loss=accuracy", r"columns.run: no column 'trail' \(did you mean 'trial'\?\)"),
        ("run=trial,tokens=stepp,loss=accuracy", r"columns.tokens: no column 'stepp' \(did you mean 'step'\?\)"),
        ("run=task,tokens=step,loss=accuracy", r"columns: run 'x' of cell '' has two rows at tokens 10"),
        ("run=trial,cell=task,tokens=step,loss=accuracy,lr=0-trial", "lr must be positive and finite, got -1 in row 1"),
        ("run=trial,cell=task,tokens=step,loss=accuracy*log(-1)", "no row has both tokens and a loss"),
        (None, "no column key, tokens, validation/loss"),
    ],
)
def test_a_table_that_holds_no_such_runs_is_refused(tmp_path: Path, columns: str | None, message: str) -> None:
    path = write(tmp_path / "long.csv", LONG)
    with pytest.raises(ConfigError, match=message):
        read_cells(path, columns)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_cells(tmp_path / "none.csv", "run=a")
    (tmp_path / "bad.parquet").write_text("no table")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cells(tmp_path / "bad.parquet", "run=a")


# public curves


def public() -> tuple[dict[str, LossCurve], tuple[CellSoFar, ...]]:
    root = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if not root:
        pytest.skip("POWERSWEEP_PUBLIC_DATA is not set: no public curves here")
    paths = scheduled_paths(yaml.safe_load(FACTS.read_text()), place=FACTS.name)
    curves = read_curves(Path(root) / "lr_curves" / "25", paths=paths, warmup_steps=None).curves
    return curves, cells_of_curves(curves)


def test_of_wsd_and_cosine_the_winner_that_trails_is_kept_and_the_leader_that_loses_is_stopped() -> None:
    curves, cells = public()
    assert [(c.name, len(c.runs)) for c in cells] == [("72,000 steps", 2), ("24,000 steps", 4), ("16,000 steps", 3)]
    law = fit_curves([curves[name] for name in CHEAP], Momentum())
    result = replay_stopping(cells, Dominated(), rule="dominated", law=law, given=CHEAP)
    assert result.winners_lost == 0
    assert result.saved > 0.2
    middle = next(score for score in result.scores if score.cell == "24,000 steps")
    assert (middle.winner, [stop.key for stop in middle.stopped]) == ("wsd_20000_24000", ["cosine_24000"])


def test_rules_that_rank_late_in_the_run_lose_the_winner_of_wsd_and_cosine() -> None:
    _, cells = public()
    for rule in (Median(grace_share=0.75), Asha(first_share=0.75)):
        result = replay_stopping(cells, rule, rule="late")
        assert any(score.lost and score.winner == "wsd_20000_24000" for score in result.scores)


# figure


def test_a_figure_is_drawn_of_cells_with_and_without_a_winner() -> None:
    cells = [
        cell(run("a", 1.0), run("b", 2.0), run("c", 3.0), name="one"),
        cell(run("a", 1.0, until=30.0, outcome="failed"), run("b", 2.0, until=30.0, outcome="failed"), name="two"),
        *(cell(run("a", -1.0), run("b", 2.0), name=f"more {k}") for k in range(14)),
    ]
    result = replay_stopping(cells, StopAt("a", share=0.5), rule="asked")
    figure = draw_stopping(result, tuple(cells))
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == 12
    assert "4 smaller cells not drawn" in figure.get_suptitle()
    assert png(figure).startswith(b"\x89PNG")
