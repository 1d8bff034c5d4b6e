"""What scoring curve laws on recorded curves promises."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml

from sweeps.errors import ConfigError, FitError
from sweeps.forecast.fitting import fit_curves, known
from sweeps.forecast.forms import Momentum, MultiPower, curve_form
from sweeps.forecast.published import MULTI_POWER_REPOSITORY
from sweeps.forecast.records import LossCurve, LrPath
from sweeps.forecast.running import forecast_final
from sweeps.replay.curve_files import read_curves
from sweeps.replay.curves import CurvesReplay, replay_curves
from sweeps.replay.curves_figure import draw_replay
from sweeps.replay.schedules import recorded_path, scheduled_paths
from sweeps.report.look import png

FACTS = Path(__file__).parents[2] / "benchmarks" / "lr_curves_schedules.yaml"
TRUE = known(Momentum(), {"L0": 3.1, "A": 0.25, "C": 0.4, "alpha": 0.5})
TREE: dict[str, Any] = {
    "warmup": {"steps": 200, "lr": 3e-4},
    "curves": {
        "constant": [{"until": 2400}],
        "dropped": [{"until": 1200}, {"until": 2400, "lr": 1e-4}],
        "cosine": [{"until": 2400, "to": 3e-5, "shape": "cosine"}],
        "wsd": [{"until": 1800}, {"until": 2400, "to": 3e-5, "shape": "linear"}],
    },
}
PATHS = scheduled_paths(TREE, place="TREE")
CURVES = {
    name: LossCurve(name, path, step_P := np.arange(240, 2401, 40), TRUE.predict(path, step_P))
    for name, path in PATHS.items()
}


def public(size: str) -> dict[str, LossCurve]:
    root = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if not root:
        pytest.skip("POWERSWEEP_PUBLIC_DATA is not set: no public curves here")
    paths = scheduled_paths(yaml.safe_load(FACTS.read_text()), place=FACTS.name)
    return read_curves(Path(root) / "lr_curves" / size, paths=paths, warmup_steps=None).curves


def replayed(law: str, fit: list[str], *, prior: str | None = None, size: str = "25") -> CurvesReplay:
    return replay_curves(public(size), fit, form=curve_form(law, prior=prior), law_name=law)


CHEAP = ["constant_24000", "wsdcon_9"]


# scores


def test_a_law_that_is_right_has_no_error_and_ranks_as_it_was() -> None:
    result = replay_curves(CURVES, ["constant", "dropped"], form=Momentum(), law_name="momentum")
    assert [score.name for score in result.held_out] == ["cosine", "wsd"]
    assert result.mean("mae") == pytest.approx(0.0, abs=1e-6)
    assert result.mean("r2_after") == pytest.approx(1.0, abs=1e-6)
    assert result.spearman == pytest.approx(1.0)
    assert result.rankings[0].predicted == result.rankings[0].true


def test_scores_are_what_their_names_say() -> None:
    shifted = {**CURVES, "wsd": LossCurve("wsd", PATHS["wsd"], CURVES["wsd"].step, CURVES["wsd"].loss + 0.01)}
    score = replay_curves(shifted, ["constant", "dropped"], form=Momentum(), law_name="momentum").held_out[1]
    loss_P, step_P = shifted["wsd"].loss, shifted["wsd"].step
    assert score.name == "wsd"
    assert score.mae == pytest.approx(0.01, abs=1e-5)
    assert score.mape == pytest.approx(100 * float(np.mean(0.01 / loss_P)), abs=1e-3)
    assert score.r2 == pytest.approx(1 - 1e-4 / float(np.var(loss_P)), abs=1e-4)
    after_P = loss_P[step_P > score.leaves_step]
    assert score.r2_after == pytest.approx(1 - 1e-4 / float(np.var(after_P)), abs=1e-3)
    assert score.final_error == pytest.approx(0.01, abs=1e-5)


def test_after_begins_where_the_lr_leaves_that_of_every_fitted_curve() -> None:
    result = replay_curves(CURVES, ["constant", "dropped"], form=Momentum(), law_name="momentum")
    leaves = {score.name: score.leaves_step for score in result.scores}
    assert leaves == {"constant": None, "dropped": None, "cosine": 200, "wsd": 1800}
    longer = {"long": scheduled_paths({**TREE, "curves": {"long": [{"until": 4800}]}}, place="")["long"]}
    step_P = np.arange(240, 4801, 40)
    curves = {**CURVES, "long": LossCurve("long", longer["long"], step_P, TRUE.predict(longer["long"], step_P))}
    scores = replay_curves(curves, ["constant", "dropped"], form=Momentum(), law_name="momentum").scores
    assert next(s.leaves_step for s in scores if s.name == "long") == 2400


def test_curves_that_end_a_few_rows_apart_are_ranked_together() -> None:
    short = LossCurve("wsd", LrPath(PATHS["wsd"].lr[:2380], 200), CURVES["wsd"].step[:-1], CURVES["wsd"].loss[:-1])
    half = LossCurve("half", LrPath(PATHS["constant"].lr[:1200], 200), np.array([300, 1200]), np.array([4.0, 3.5]))
    curves = {**CURVES, "wsd": short, "half": half}
    result = replay_curves(curves, ["constant", "dropped"], form=Momentum(), law_name="momentum")
    assert [(ranking.steps, len(ranking.true)) for ranking in result.rankings] == [(2400, 4)]


def test_losses_that_do_not_vary_have_no_r2_and_no_rank() -> None:
    flat = {n: LossCurve(n, CURVES[n].path, CURVES[n].step, np.full(len(CURVES[n]), 3.0)) for n in ("cosine", "wsd")}
    result = replay_curves(
        {"constant": CURVES["constant"], "dropped": CURVES["dropped"], **flat},
        ["constant", "dropped"],
        form=Momentum(),
        law_name="momentum",
    )
    assert result.mean("r2") is None
    assert result.mean("r2_after") is None


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (["constnat"], r"--fit: no curve 'constnat' \(did you mean 'constant'\?\)"),
        ([], "--fit: must name some of the curves and leave one to predict"),
        (list(CURVES), "--fit: must name some of the curves and leave one to predict"),
    ],
)
def test_curves_that_cannot_be_fitted_on_are_refused(fit: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        replay_curves(CURVES, fit, form=Momentum(), law_name="momentum")


def test_a_figure_of_all_curves_is_drawn() -> None:
    result = replay_curves(CURVES, ["constant", "dropped"], form=Momentum(), law_name="momentum")
    figure = draw_replay(result, CURVES)
    assert {axes.get_title(loc="left") for axes in figure.axes} >= {"constant, fitted", "cosine", "wsd"}
    assert png(figure) == png(draw_replay(result, CURVES))


# schedules


def test_a_schedule_is_its_phases() -> None:
    dropped, cosine, wsd = PATHS["dropped"].lr, PATHS["cosine"].lr, PATHS["wsd"].lr
    assert dropped[[0, 99, 199, 1198]] == pytest.approx([1.5e-6, 1.5e-4, 3e-4, 3e-4])  # LR of steps 1, 100, 200, 1199
    assert dropped[[1199, 2399]] == pytest.approx([1e-4, 1e-4])  # and of steps 1200 and 2400
    assert cosine[[199, 1299, 2399]] == pytest.approx([3e-4, 1.65e-4, 3e-5])
    assert wsd[[1799, 2099, 2399]] == pytest.approx([3e-4, 1.65e-4, 3e-5])
    assert PATHS["wsd"].warmup_steps == 200


def test_a_curve_may_have_a_warm_up_of_its_own_or_none() -> None:
    own = {"warmup": {"steps": 10, "lr": 1e-3}, "phases": [{"until": 20}]}
    none = {"warmup": {"steps": 0, "lr": 1e-3}, "phases": [{"until": 4, "to": 2e-4}]}
    paths = scheduled_paths({"curves": {"own": own, "none": none}}, place="")
    assert paths["own"].lr[[4, 9, 19]] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert paths["none"].lr == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"curves": None}, "file: curves: must be a mapping of names to phases, got None"),
        ({"warmup": None}, "file: curves.a.warmup: must be a mapping with lr, steps, got None"),
        ({"warm": 1}, "file: no field 'warm'"),
        ({"curves": {"a": []}}, "file: curves.a: must be a list of phases"),
        ({"curves": {"a": [{"until": 1}]}}, r"file: curves.a\[0\].until: must be a whole number above 9, got 1"),
        ({"curves": {"a": [{"until": 20, "lr": -1}]}}, r"file: curves.a\[0\].lr: must be above 0 and finite, got -1"),
        ({"curves": {"a": [{"until": 20, "to": 1.0}]}}, r"file: curves.a\[0\].to: must be at most the LR before it"),
        ({"curves": {"a": [{"until": 20, "shape": "cosine"}]}}, r"file: curves.a\[0\].shape: needs `to`"),
        ({"curves": {"a": [{"until": 20, "to": 1e-5, "shape": "cos"}]}}, r"file: curves.a\[0\].shape: no name 'cos'"),
    ],
)
def test_a_file_of_schedules_that_cannot_be_is_refused_with_the_place(change: dict[str, Any], message: str) -> None:
    tree = {"warmup": {"steps": 10, "lr": 1e-3}, "curves": {"a": [{"until": 20}]}, **change}
    with pytest.raises(ConfigError, match=f"^{message}"):
        scheduled_paths(tree, place="file")


def test_without_schedules_the_lr_is_drawn_through_its_column() -> None:
    path = recorded_path(np.array([100, 200, 400]), np.array([1.0, 1.0, 0.5]), warmup_steps=50)
    assert path.lr[[24, 49, 99, 199, 299, 399]] == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.75, 0.5])
    assert path.warmup_steps == 50
    held = recorded_path(np.array([100, 200]), np.array([1.0, 0.5]), warmup_steps=0)
    assert held.lr[[0, 99, 149]] == pytest.approx([1.0, 1.0, 0.75])
    assert held.warmup_steps == 0


@pytest.mark.parametrize(
    ("steps", "lrs", "warmup"),
    [
        ([10, 20, 30], [1.0, 1.0, 0.5], 0),  # a log from the beginning, of a run without warm-up
        ([10, 20, 30, 40], [0.5, 1.0, 1.0, 0.5], 20),  # the LR stops rising at step 20
        ([100, 110, 120], [1.0, 1.0, 0.5], 100),  # rows of the warm-up are missing
        ([10, 20, 30], [0.5, 0.75, 1.0], 30),
        ([100], [1.0], 0),
    ],
)
def test_a_warm_up_is_read_off_the_rows(steps: list[int], lrs: list[float], warmup: int) -> None:
    path = recorded_path(np.array(steps), np.array(lrs), warmup_steps=None)
    assert path.warmup_steps == min(warmup, steps[-1] - 1)
    assert path.lr[np.array(steps) - 1] == pytest.approx(lrs)
    if warmup:
        assert path.lr[4] == pytest.approx(lrs[0] * 5 / steps[0])


# files


def write(folder: Path, name: str, columns: dict[str, Any]) -> None:
    table = pa.table(columns)
    (pq.write_table if name.endswith(".parquet") else pacsv.write_csv)(table, folder / name)


def test_curves_are_read_from_csv_and_parquet_in_the_order_of_steps(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", {"step": [30, 10, 20], "lr": [1e-3] * 3, "loss": [3.0, 5.0, 4.0], "more": [1, 2, 3]})
    write(tmp_path, "b.parquet", {"step": [0, 10, 20], "lr": [0.0, 1e-3, 1e-3], "loss": [11.0, 5.0, 4.0]})
    found = read_curves(tmp_path, paths=None, warmup_steps=5)
    assert (found.curves["a"].step.tolist(), found.curves["a"].loss.tolist()) == ([10, 20, 30], [5.0, 4.0, 3.0])
    assert found.curves["b"].step.tolist() == [10, 20]
    assert found.notes == (
        "a, b: the LR of each step is drawn straight between the rows of the lr column, after a linear warm-up of 5 "
        "steps, as --warmup-steps says",
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"step": [10], "loss": [3.0]}, "a.csv: no column lr; it has step, loss"),
        ({"step": [10], "lr": ["fast"], "loss": [3.0]}, "a.csv: column lr must hold numbers"),
        ({"step": [10, 10], "lr": [1e-3] * 2, "loss": [3.0] * 2}, "a.csv: column step must hold whole numbers, each"),
        ({"step": [10, 20], "lr": [1e-3] * 2, "loss": [3.0, -1.0]}, "a.csv: loss must be above 0, got -1 at step 20"),
        ({"step": [0], "lr": [1e-3], "loss": [3.0]}, "a.csv: has no rows"),
    ],
)
def test_a_file_that_holds_no_curve_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write(tmp_path, "a.csv", columns)
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_curves(tmp_path, paths=None, warmup_steps=None)


def test_a_schedule_that_the_lr_column_contradicts_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", {"step": [1, 2, 3], "lr": [1e-3, 1e-3, 9e-4], "loss": [3.0, 2.9, 2.8]})
    with pytest.raises(ConfigError, match=r"^a: at step 3 its schedule says lr 0.001, its lr column 0.0009"):
        read_curves(tmp_path, paths={"a": LrPath(np.full(3, 1e-3))}, warmup_steps=None)
    with pytest.raises(ConfigError, match=r"^a: its points go to step 3, its schedule ends at step 2"):
        read_curves(tmp_path, paths={"a": LrPath(np.full(2, 1e-3))}, warmup_steps=None)


def test_folders_without_curves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FOLDER: no CSV or Parquet files in"):
        read_curves(tmp_path, paths=None, warmup_steps=None)
    with pytest.raises(ConfigError, match="FOLDER: no folder"):
        read_curves(tmp_path / "none", paths=None, warmup_steps=None)


# public curves


@pytest.mark.parametrize("size", ["25", "100"])
def test_the_schedules_of_the_public_curves_are_their_lr_columns_to_the_digits(size: str) -> None:
    for name, curve in public(size).items():
        file = Path(os.environ["POWERSWEEP_PUBLIC_DATA"]) / "lr_curves" / size / f"{name}.csv"
        lr_P = pacsv.read_csv(file).column("lr").to_numpy()
        assert curve.path.lr[curve.step - 1] == pytest.approx(lr_P, rel=1e-12), name


def test_the_default_law_from_two_cheap_runs_meets_its_known_scores() -> None:
    result = replayed("momentum", CHEAP)
    found = result.law.parameters
    assert [round(found[name], 3) for name in ("L0", "A", "alpha", "C")] == pytest.approx(
        [3.157, 0.516, 0.514, 0.389], abs=1.5e-3
    )
    assert (result.mean("r2") or 0) >= 0.998
    assert (result.mean("mae") or 1) <= 0.0045
    assert (result.mean("r2_after") or 0) >= 0.90
    assert max(score.final_error for score in result.held_out) <= 0.008


def test_the_multi_power_law_from_two_cheap_runs_is_better_still() -> None:
    result = replayed("multi-power", CHEAP, prior="repository without 25M")
    assert (result.mean("mae") or 1) <= 0.0039
    assert (result.mean("r2_after") or 0) >= 0.97


def test_published_multi_power_parameters_have_their_published_scores() -> None:
    curves = public("25")
    law = known(MultiPower(prior=None), MULTI_POWER_REPOSITORY["25M"])
    unseen = [c for name, c in curves.items() if name not in ("constant_24000", "cosine_24000", "wsdcon_9")]
    off = [c.loss - law.predict(c.path, c.step) for c in unseen]
    r2 = [1 - float(np.sum(e**2) / np.sum((c.loss - c.loss.mean()) ** 2)) for e, c in zip(off, unseen, strict=True)]
    assert np.mean(r2) == pytest.approx(0.9988, abs=1e-4)
    assert np.mean([np.abs(e).mean() for e in off]) == pytest.approx(0.00376, abs=3e-5)


@pytest.mark.parametrize("fit", ["cosine_24000", "wsdld_20000_24000"])
def test_the_default_law_does_not_collapse_on_one_curve(fit: str) -> None:
    assert (replayed("momentum", [fit]).mean("r2") or 0) >= 0.985


@pytest.mark.parametrize("law", ["momentum", "multi-power"])
def test_the_public_schedules_of_one_length_are_ranked_as_they_ended(law: str) -> None:
    result = replayed(law, CHEAP)
    assert len(result.rankings[0].true) == 4
    assert result.spearman == pytest.approx(1.0)


def test_a_law_of_another_size_says_its_cosine() -> None:
    score = replayed("momentum", CHEAP, size="100").held_out[0]
    assert score.name == "cosine_24000"
    assert score.mae <= 0.0045
    assert score.final_error <= 0.008


def test_final_losses_are_forecast_from_a_fifth_of_the_run() -> None:
    curves = public("25")
    law = fit_curves([curves[name] for name in CHEAP], Momentum())
    off = []
    for name in sorted(set(curves) - set(CHEAP)):
        curve = curves[name]
        last = LossCurve(name, LrPath(curve.path.lr[: curve.step[-1]], 2160), curve.step, curve.loss)
        found = forecast_final(law, last.until(len(curve.path) // 5))
        assert found.low < curve.loss[-1] < found.high
        off.append(abs(found.final - curve.loss[-1]))
    assert np.mean(off) <= 0.012


def test_the_winner_that_trails_at_five_sixths_is_forecast_first() -> None:
    curves = public("25")
    law = fit_curves([curves[name] for name in CHEAP], Momentum())
    for mark in (18_000, 20_000):
        wsd, cosine = curves["wsd_20000_24000"].until(mark), curves["cosine_24000"].until(mark)
        assert 0.04 < wsd.loss[-1] - cosine.loss[-1] < 0.05
        assert forecast_final(law, wsd).final < forecast_final(law, cosine).final
    assert curves["wsd_20000_24000"].loss[-1] < curves["cosine_24000"].loss[-1]


def test_a_law_cannot_be_fitted_on_a_constant_alone() -> None:
    with pytest.raises(FitError, match="in none of them does the LR fall"):
        replayed("momentum", ["constant_24000"])
