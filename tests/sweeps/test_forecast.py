"""What curve laws promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.curves import Curve
from sweeps.errors import ConfigError, FitError
from sweeps.forecast.features import MOST_GROUPS, WARMUPS, falls_of, momentum_sum, steps_of
from sweeps.forecast.fitting import FittedCurveLaw, fit_curves, known
from sweeps.forecast.forms import CURVE_LAWS, Momentum, MultiPower, NoAnnealing, curve_form
from sweeps.forecast.published import MOMENTUM_MAIN, MULTI_POWER_PAPER, MULTI_POWER_REPOSITORY, PRIORS
from sweeps.forecast.records import Floats, LossCurve, LrPath
from sweeps.schedules import SCHEDULES, learning_rate

PEAK, WARM = 3e-4, 200
STEPS = 2400

PLANTED: dict[str, dict[str, float]] = {
    "momentum": {"L0": 3.1, "A": 0.25, "C": 0.4, "alpha": 0.5},
    "multi-power": MULTI_POWER_REPOSITORY["100M"],
    "fsl": {"L0": 3.1, "c1": 0.25, "c2 c3": 200.0, "c2": 60.0, "s": 0.5, "c4": 60.0, "gamma": 0.5},
    "no-annealing": {"L0": 3.1, "A": 0.25, "alpha": 0.5},
    "linear-drop": {"L0": 3.1, "A": 0.25, "C": 300.0, "alpha": 0.5},
}


def lr_of(shape: str, steps: int = STEPS) -> Floats:
    t = np.clip((np.arange(1, steps + 1) - WARM) / (steps - WARM), 0.0, 1.0)
    after: dict[str, Floats] = {
        "constant": np.ones_like(t),
        "cosine": 0.1 + 0.9 * (1 + np.cos(np.pi * t)) / 2,
        "drop": np.where(t < 0.5, 1.0, 0.3),
        "wsd": np.where(t < 0.8, 1.0, 1.0 - 0.9 * (t - 0.8) / 0.2),
        "cycles": 0.5 + 0.5 * np.cos(6 * np.pi * t) ** 2,
    }
    return np.asarray(PEAK * np.minimum(np.arange(1, steps + 1) / WARM, 1.0) * after[shape])


def path_of(shape: str, steps: int = STEPS) -> LrPath:
    return LrPath(lr_of(shape, steps), WARM)


def planted_law(name: str) -> FittedCurveLaw:
    return known(curve_form(name, prior="none" if name in ("multi-power", "fsl") else None), PLANTED[name])


def drawn(name: str, shape: str, *, noise: float = 0.0, seed: int = 0) -> LossCurve:
    path = path_of(shape)
    step_P = np.arange(WARM + 20, STEPS + 1, 20)
    loss_P = planted_law(name).predict(path, step_P)
    return LossCurve(shape, path, step_P, loss_P * np.exp(np.random.default_rng(seed).normal(0, noise, len(step_P))))


every_law = pytest.mark.parametrize("name", CURVE_LAWS)


# conformance


@every_law
def test_a_law_predicts_what_it_was_planted_with(name: str) -> None:
    # FSL's prior is of other numbers than the planted ones; that of the multi-power law, its default, is no hindrance
    form = curve_form(name, prior="none" if name == "fsl" else None)
    law = fit_curves([drawn(name, "constant"), drawn(name, "drop"), drawn(name, "wsd")], form)
    for shape in ("cosine", "wsd", "drop"):
        held_out = drawn(name, shape)
        assert law.predict(held_out.path, held_out.step) == pytest.approx(held_out.loss, abs=1e-3)


@every_law
def test_a_law_is_the_same_in_any_order_of_its_curves(name: str) -> None:
    curves = [drawn(name, shape, noise=1e-4, seed=i) for i, shape in enumerate(("constant", "drop"))]
    one, other = fit_curves(curves, curve_form(name)), fit_curves(curves[::-1], curve_form(name))
    assert one.parameters == other.parameters
    assert one.fitted_on == other.fitted_on


@every_law
def test_points_of_the_warm_up_change_no_law(name: str) -> None:
    curves = [drawn(name, "constant", noise=1e-3), drawn(name, "drop", noise=1e-3, seed=1)]
    early = [
        LossCurve(c.name, c.path, np.concatenate([[50, 100], c.step]), np.concatenate([[9.0, 8.0], c.loss]))
        for c in curves
    ]
    form = curve_form(name)
    assert fit_curves(early, form).parameters == fit_curves(curves, form).parameters


@every_law
def test_a_law_predicts_any_steps_in_any_order(name: str) -> None:
    law, path = planted_law(name), path_of("cosine")
    forwards = law.predict(path, np.array([500, 1500, STEPS]))
    assert law.predict(path, np.array([STEPS, 500, 1500])) == pytest.approx(forwards[[2, 0, 1]], rel=1e-12)
    assert law.predict(path)[0] == pytest.approx(forwards[2], rel=1e-12)
    with pytest.raises(ConfigError, match="step: must be between 1 and the path's 2400 steps"):
        law.predict(path, np.array([STEPS + 1]))


@every_law
def test_too_few_points_are_refused(name: str) -> None:
    with pytest.raises(FitError, match="say too little"):
        fit_curves([drawn(name, "wsd").until(WARM + 60)], curve_form(name))


@pytest.mark.parametrize("name", [name for name, form in CURVE_LAWS.items() if form.reads_falls])
def test_a_law_of_falls_refuses_curves_without_one_and_hands_over_what_is_left(name: str) -> None:
    with pytest.raises(FitError, match="in none of them does the LR fall") as refused:
        fit_curves([drawn("no-annealing", "constant")], curve_form(name))
    assert isinstance(refused.value.estimate, FittedCurveLaw)
    assert refused.value.estimate.parameters["alpha"] == pytest.approx(0.5, abs=1e-3)


# the prior of the multi-power law is of published LRs and knows their unit; FSL's parameters are so badly told apart
# that its fits end where they end
@pytest.mark.parametrize("name", ["momentum", "no-annealing", "linear-drop"])
@given(unit=st.floats(1e-3, 1e4))
@settings(max_examples=5, deadline=None)
def test_the_unit_of_the_lr_changes_no_prediction(name: str, unit: float) -> None:
    curves = [drawn(name, shape, noise=1e-3, seed=i) for i, shape in enumerate(("constant", "drop", "cosine"))]
    scaled = [LossCurve(c.name, LrPath(c.path.lr * unit, WARM), c.step, c.loss) for c in curves]
    one, other = fit_curves(curves, curve_form(name)), fit_curves(scaled, curve_form(name))
    held_out = path_of("wsd")
    assert other.predict(LrPath(held_out.lr * unit, WARM)) == pytest.approx(one.predict(held_out), rel=1e-6)


# known answers


def test_the_sums_of_a_tiny_schedule_are_its_closed_form() -> None:
    steps = steps_of(LrPath(np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.25])), "area")
    assert steps.total[-1] == 4.25
    momentum = momentum_sum(steps.fall, 0.5)
    assert momentum[-1] - momentum[-2] == 0.375
    assert momentum[-1] == 1.125
    lags = np.array([6 - k + 1 for k in (4, 6)])
    assert float(np.array([0.5, 0.25]) @ ((1 - 0.5**lags) / 0.5)) == 1.125


def test_the_main_equation_of_the_momentum_law_has_its_published_value() -> None:
    law = known(Momentum(warmup="constant"), MOMENTUM_MAIN)
    assert law.predict(LrPath(np.full(20_000, 2e-4)))[0] == pytest.approx(2.82814, abs=5e-6)


@pytest.mark.parametrize("shape", ["cosine", "drop", "wsd", "cycles"])
@pytest.mark.parametrize(("steps", "tolerance"), [(STEPS, 1e-9), (24_000, 3e-5)])
@pytest.mark.parametrize("name", ["multi-power", "fsl"])
def test_falls_in_groups_are_the_plain_sum(name: str, shape: str, steps: int, tolerance: float) -> None:
    law, path = planted_law(name), path_of(shape, steps)
    step_P = np.array([300, 900, 1001, steps // 2 + 200, steps])
    exact = [plain_sum(law, path, warmup=law.form.warmup, step=int(s)) for s in step_P]
    assert law.predict(path, step_P) == pytest.approx(exact, abs=tolerance)
    groups = falls_of(path, step_P, warmup=law.form.warmup)
    assert len(groups.fall) <= 2 * max(MOST_GROUPS, STEPS)


def plain_sum(law: FittedCurveLaw, path: LrPath, *, warmup: str, step: int) -> float:
    """The sum as the paper writes it, one term a step."""
    steps, p = steps_of(path, warmup), law.parameters
    upto, total = steps.total[:step], float(steps.total[step - 1])
    if "B" in p:
        since = total - (upto - steps.lr[:step])
        gain = 1 - (1 + math.exp(p["ln C"]) * steps.lr[:step] ** -p["gamma"] * since) ** -p["beta"]
        return float(p["L0"] + p["A"] * total ** -p["alpha"] - p["B"] * steps.fall[:step] @ gain)
    late = p["c2 c3"] + p["c2"] * upto ** -p["s"]
    gain = late * (1 - (1 + math.exp(p["ln c4"]) * (total - upto)) ** -p["gamma"])
    return float(p["L0"] + p["c1"] * total ** -p["s"] - steps.fall[:step] @ gain)


def test_a_fall_counts_by_the_convention_of_its_warm_up() -> None:
    path = LrPath(np.array([0.25, 0.5, 0.75, 1.0, 1.0, 0.5]), 4)
    area, constant, ramp = (steps_of(path, name) for name in WARMUPS)
    assert area.total[-1] == ramp.total[-1] == 4.0  # with peak * W / 2, and half a step more as the ramp ends at 1
    assert constant.total[-1] == 5.5
    assert area.fall.tolist() == constant.fall.tolist() == [0, 0, 0, 0, 0, 0.5]
    assert ramp.fall.tolist() == [-0.25, -0.25, -0.25, -0.25, 0, 0.5]


def test_conventions_of_a_warm_up_are_never_mixed() -> None:
    with pytest.raises(
        ConfigError, match="prior: must be of multi-power under the convention 'area', got 'repository'"
    ):
        MultiPower(warmup="area")
    assert curve_form("multi-power", warmup="area") == MultiPower(warmup="area", prior=PRIORS["paper"])
    assert curve_form("multi-power") == MultiPower(warmup="ramp", prior=PRIORS["repository"])
    with pytest.raises(ConfigError, match="no published parameters of multi-power under the convention 'constant'"):
        curve_form("multi-power", warmup="constant")


def test_published_parameters_of_two_conventions_are_far_apart_on_one_path() -> None:
    path = path_of("cosine")
    right = known(MultiPower(prior=None), MULTI_POWER_REPOSITORY["25M"]).predict(path)[0]
    mixed = known(MultiPower(prior=None, warmup="area"), MULTI_POWER_REPOSITORY["25M"]).predict(path)[0]
    assert 0.09 < right - mixed < 0.18
    paper = known(MultiPower(prior=None, warmup="area"), MULTI_POWER_PAPER["25M"]).predict(path)[0]
    assert abs(paper - right) < 0.05


def test_planted_multi_power_parameters_are_recovered_as_predictions() -> None:
    curves = [drawn("multi-power", "constant", noise=1e-3), drawn("multi-power", "drop", noise=1e-3, seed=1)]
    law = fit_curves(curves, MultiPower(prior=PRIORS["repository without 100M"]))
    for shape in ("cosine", "wsd"):
        held_out = drawn("multi-power", shape)
        assert law.predict(held_out.path, held_out.step) == pytest.approx(held_out.loss, abs=5e-3)
        assert np.mean(np.abs(law.predict(held_out.path, held_out.step) - held_out.loss)) < 1.5e-3


# records


def test_a_path_is_the_lr_of_every_step_of_a_schedule() -> None:
    schedule = SCHEDULES["wsd"](warmup_tokens=1024, cooldown_fraction=0.5)
    lr = learning_rate(schedule, peak=0.01, batch_tokens=256, total=8192)
    path = LrPath.of_schedule(lr, batch_tokens=256, tokens=8192, warmup_tokens=1024)
    assert (len(path), path.warmup_steps) == (32, 4)
    assert path.lr.tolist() == [lr(k * 256) for k in range(32)]


def test_a_loss_curve_is_what_a_recorded_curve_holds_of_a_metric() -> None:
    curve = Curve(
        np.array([256, 512, 1024]),
        np.array([1, 2, 4]),
        np.zeros(3),
        {"validation/loss": np.array([4.0, math.nan, 3.0])},
    )
    found = LossCurve.of_curve("a", curve, path=LrPath(np.ones(8)), metric="validation/loss")
    assert (found.step.tolist(), found.loss.tolist()) == ([1, 4], [4.0, 3.0])
    assert len(LossCurve.of_curve("a", curve, path=LrPath(np.ones(8)), metric="train/loss")) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LrPath(np.array([])), "lr: must be one LR a step"),
        (lambda: LrPath(np.array([1.0, math.nan])), "lr: must be finite and at least 0"),
        (lambda: LrPath(np.ones(3), 3), "warmup_steps: must be at least 0 and below 3 steps, got 3"),
        (lambda: LossCurve("c", LrPath(np.ones(3)), np.array([1, 2]), np.ones(3)), "c: must have one loss a step"),
        (lambda: LossCurve("c", LrPath(np.ones(3)), np.array([2, 1]), np.ones(2)), "c: steps must ascend"),
        (lambda: LossCurve("c", LrPath(np.ones(3)), np.array([4]), np.ones(1)), "c: steps must ascend from 1 to at"),
        (lambda: LossCurve("c", LrPath(np.ones(3)), np.array([1]), np.zeros(1)), "c: losses must be finite and above"),
        (lambda: Momentum(decay=1.0), "decay: must be at least 0 and below 1, got 1.0"),
        (lambda: NoAnnealing(warmup="peak"), "warmup: must be one of area, constant, ramp, got 'peak'"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "momentun"}, r"--law: no curve law 'momentun' \(did you mean 'momentum'\?\)"),
        ({"name": "momentum", "warmup": "peak"}, "--warmup: no convention 'peak'"),
        (
            {"name": "momentum", "prior": "paper"},
            "--prior: only multi-power and fsl have one, got 'paper' with momentum",
        ),
        ({"name": "multi-power", "prior": "mine"}, "--prior: no prior 'mine'"),
        (
            {"name": "multi-power", "prior": "paper"},
            "prior: must be of multi-power under the convention 'ramp', got 'paper'",
        ),
    ],
)
def test_a_law_that_is_not_there_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        curve_form(**arguments)


def test_known_parameters_must_be_complete() -> None:
    with pytest.raises(ConfigError, match="parameters: must have L0, A, C, alpha; missing C"):
        known(Momentum(), {"L0": 3.0, "A": 0.5, "alpha": 0.5})
