"""What LR schedules promise."""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.schedules import SCHEDULES, Schedule, learning_rate, power_knee
from sweeps.schedules.base import COOLDOWNS
from sweeps.schedules.fixed_horizon import Cosine, Linear, OneCycle, Rex, Step
from sweeps.schedules.horizon_free import Constant, InverseSqrt, Power, Wsd
from sweeps.schedules.table import Table

TOTAL = 1 << 20
REQUIRED: dict[str, dict[str, Any]] = {
    "power": {"n0_tokens": TOTAL / 8},
    "inverse_sqrt": {"timescale_tokens": TOTAL / 8},
    "table": {"fractions": (0.0, 0.125, 0.75, 1.0), "factors": (0.0, 1.0, 0.5, 0.0)},
}

# one of each name with its defaults, one of each with all phases, and each shape of cooldown
EXAMPLES: dict[str, Schedule] = {
    **{name: kind(**REQUIRED.get(name, {})) for name, kind in SCHEDULES.items()},
    "constant, warm": Constant(warmup_tokens=TOTAL // 16),
    "linear, warm, floor": Linear(warmup_fraction=0.1, end_lr=1e-5),
    "cosine, warm, floor": Cosine(warmup_fraction=0.1, end_fraction=0.1),
    "power, warm": Power(n0_tokens=TOTAL / 16, warmup_tokens=TOTAL // 8, cooldown="1-sqrt"),
    "inverse_sqrt, warm": InverseSqrt(timescale_tokens=TOTAL / 16, warmup_tokens=TOTAL // 16, cooldown_fraction=0.2),
    "rex, samples": Rex(samples=10, warmup_fraction=0.1),
    "rex, milestones": Rex(sample_fractions=(0.5, 0.75)),
    "step, warm": Step(warmup_fraction=0.05),
    **{
        f"wsd, {shape}": Wsd(warmup_tokens=TOTAL // 16, cooldown_fraction=0.25, cooldown=shape, end_fraction=0.01)
        for shape in COOLDOWNS
    },
}
CONTINUOUS = [n for n in EXAMPLES if n.split(",")[0] != "step" and n not in ("rex, samples", "rex, milestones")]
PIECEWISE_LINEAR = ["constant", "constant, warm", "linear", "wsd", "wsd, linear", "step", "table"]
# warm-up and knee are absolute: only these names may change when the run is stretched
ABSOLUTE = {"constant", "wsd", "power", "inverse_sqrt"}


def every(names: Any = EXAMPLES) -> Any:
    return pytest.mark.parametrize("name", list(names))


@every(SCHEDULES)
def test_every_schedule_in_the_table_has_an_example_and_a_version(name: str) -> None:
    assert isinstance(EXAMPLES[name], SCHEDULES[name])
    assert EXAMPLES[name].version >= 1


@every()
def test_a_factor_is_between_zero_and_one(name: str) -> None:
    schedule = EXAMPLES[name]
    factors = [schedule(x, TOTAL, schedule.floor(1e-3)) for x in np.linspace(0, TOTAL, 1001)]
    assert min(factors) >= 0
    assert max(factors) <= 1 + 1e-15


@every()
@given(x=st.integers(0, TOTAL), scale=st.integers(1, 1000))
@settings(max_examples=30, deadline=None)
def test_stretching_a_run_stretches_its_schedule(name: str, x: int, scale: int) -> None:
    schedule = EXAMPLES[name]
    if name.split(",")[0] in ABSOLUTE:
        assert schedule.horizon_free
        return
    assert not schedule.horizon_free
    assert schedule(x, TOTAL) == schedule(x * scale, TOTAL * scale)


@every(n for n in EXAMPLES if n.split(",")[0] in ABSOLUTE)
@given(share=st.floats(0, 0.74), stretch=st.floats(1, 8))
@settings(max_examples=30, deadline=None)
def test_a_horizon_free_schedule_does_not_know_the_horizon_before_its_cooldown(
    name: str, share: float, stretch: float
) -> None:
    schedule = EXAMPLES[name]
    assert schedule(share * TOTAL, TOTAL) == schedule(share * TOTAL, stretch * TOTAL)


@every()
def test_an_open_ended_schedule_is_the_same_to_every_horizon(name: str) -> None:
    schedule = EXAMPLES[name]
    floor = schedule.floor(1e-3)
    same = all(schedule(x, TOTAL, floor) == schedule(x, 2 * TOTAL, floor) for x in np.linspace(0, TOTAL, 101))
    assert same == schedule.open_ended


def mean_factor(schedule: Schedule, batch_tokens: int) -> float:
    lr = learning_rate(schedule, peak=1.0, batch_tokens=batch_tokens, total=TOTAL)
    return math.fsum(lr(s) for s in range(0, TOTAL, batch_tokens)) * batch_tokens / TOTAL


@pytest.mark.parametrize(
    ("schedule", "mean"),
    [
        (Constant(), 1.0),
        (Constant(warmup_tokens=TOTAL // 16), 1 - 1 / 32),
        (Linear(warmup_fraction=0.25), 0.5),
        (Linear(end_fraction=0.1), 0.55),
        (Wsd(warmup_tokens=TOTAL // 8, cooldown_fraction=0.25), 1 - 1 / 16 - 1 / 8),
        (Step(milestone_fractions=(0.5, 0.75), factors=(0.5, 0.25)), 0.6875),
        (Rex(sample_fractions=(0.5, 0.75)), 0.5 + (2 / 3) / 4 + 0.4 / 4),
        (Table(fractions=(0.0, 0.25, 0.5, 1.0), factors=(0.0, 1.0, 1.0, 0.5)), 1 / 8 + 1 / 4 + 3 / 8),
    ],
    ids=str,
)
def test_the_area_under_a_piecewise_linear_schedule_is_exact_at_every_batch_size(
    schedule: Schedule, mean: float
) -> None:
    for batch_tokens in (256, 4096, TOTAL // 32, TOTAL // 16):
        assert mean_factor(schedule, batch_tokens) == pytest.approx(mean, abs=1e-12)


@every(n for n in EXAMPLES if n not in PIECEWISE_LINEAR)
def test_the_area_under_a_schedule_depends_little_on_the_batch_size(name: str) -> None:
    fine = mean_factor(EXAMPLES[name], 256)
    # the midpoint rule errs by 1/steps^2 where the curve is smooth; a jump or a square root inside a step by 1/steps
    smooth = name in CONTINUOUS and "sqrt" not in name and "power" not in name
    for steps in (64, 256):
        assert mean_factor(EXAMPLES[name], TOTAL // steps) == pytest.approx(
            fine, abs=8 / steps**2 if smooth else 0.5 / steps
        )


@every(CONTINUOUS)
def test_the_phases_of_a_schedule_join(name: str) -> None:
    schedule = EXAMPLES[name]
    floor = schedule.floor(1e-3)
    grid = np.linspace(0, TOTAL, 20_001)
    factors = np.array([schedule(x, TOTAL, floor) for x in grid])
    # steepest piece: 1-sqrt at the start of a 10 % cooldown, sqrt(1 / 2000) of the range in one of these steps
    assert np.max(np.abs(np.diff(factors))) < 0.023


@every()
def test_a_schedule_and_its_learning_rate_survive_pickling(name: str) -> None:
    lr = learning_rate(EXAMPLES[name], peak=1e-3, batch_tokens=1024, total=TOTAL)
    again = pickle.loads(pickle.dumps(lr))
    assert again == lr
    assert [again(s) for s in range(0, TOTAL, 65536)] == [lr(s) for s in range(0, TOTAL, 65536)]


CLOSED_FORMS: dict[str, tuple[Schedule, Callable[[float], float]]] = {
    "constant": (Constant(), lambda t: 1.0),
    "linear": (Linear(), lambda t: 1 - t),
    "linear with floor": (Linear(end_fraction=0.1), lambda t: 0.1 + 0.9 * (1 - t)),
    "cosine": (Cosine(end_fraction=0.1), lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2),
    "rex": (Rex(), lambda t: (1 - t) / (1 - t / 2)),
    "rex of d": (Rex(d=0.9), lambda t: (1 - t) / (0.1 + 0.9 * (1 - t))),
    "rex sampled": (Rex(samples=4), lambda t: (1 - math.floor(4 * t) / 4) / (1 - math.floor(4 * t) / 8)),
    "step": (Step(), lambda t: 1.0 if t < 0.8 else 10**-0.5 if t < 0.9 else 0.1),
    "inverse_sqrt": (InverseSqrt(timescale_tokens=TOTAL / 8), lambda t: math.sqrt(0.125 / max(t, 0.125))),
    "power": (
        Power(n0_tokens=TOTAL / 8, cooldown_fraction=0.0, exponent=-0.4),
        lambda t: min(1.0, (t / 0.125) ** -0.4) if t else 1.0,
    ),
    "wsd": (Wsd(), lambda t: min(1.0, (1 - t) / 0.2)),
    "table": (
        Table(fractions=(0.0, 0.1, 0.8, 1.0), factors=(0.0, 1.0, 1.0, 0.0)),
        lambda t: min(t / 0.1, 1.0, (1 - t) / 0.2),
    ),
    "wsd 1-sqrt": (Wsd(cooldown_fraction=1.0, cooldown="1-sqrt"), lambda t: 1 - math.sqrt(t)),
    "wsd sqrt-cube": (Wsd(cooldown_fraction=1.0, cooldown="sqrt-cube"), lambda t: (1 - t) ** 1.5),
    "wsd exponential": (
        Wsd(cooldown_fraction=1.0, cooldown="exponential", end_fraction=1e-3),
        lambda t: math.exp(math.log(1e-3) * t),
    ),
    "onecycle": (
        OneCycle(),
        lambda t: (
            0.04 + 0.96 * (1 - math.cos(math.pi * t / 0.3)) / 2
            if t < 0.3
            else 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * (t - 0.3) / 0.7)) / 2
        ),
    ),
}


@every(CLOSED_FORMS)
@given(t=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_schedule_agrees_with_its_formula(name: str, t: float) -> None:
    schedule, formula = CLOSED_FORMS[name]
    x = round(t * TOTAL)
    assert schedule(x, TOTAL) == pytest.approx(formula(x / TOTAL), abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Rex(), (0.857, 0.667, 0.400, 0.182)),
        (Cosine(), (0.854, 0.500, 0.146, 0.0245)),
        (Wsd(cooldown_fraction=1.0, cooldown="1-sqrt"), (0.500, 0.293, 0.134, 0.0513)),
        (Wsd(cooldown_fraction=1.0, cooldown="sqrt-cube"), (0.650, 0.354, 0.125, 0.0316)),
        (Wsd(cooldown_fraction=1.0, cooldown="square"), (0.9375, 0.75, 0.4375, 0.19)),
    ],
    ids=str,
)
def test_published_samples_are_met_to_their_digits(schedule: Schedule, values: tuple[float, ...]) -> None:
    got = [schedule(t, 1.0) for t in (0.25, 0.5, 0.75, 0.9)]
    assert [float(f"{x:.3g}") for x in got] == [float(f"{x:.3g}") for x in values]
    assert got == pytest.approx(values, abs=5.01e-4)


@pytest.mark.parametrize(("beta", "tokens", "lr"), [(128, 2e9, 0.0092415), (1024, 1e12, 0.0031071)])
def test_power_meets_the_values_of_its_paper(beta: float, tokens: float, lr: float) -> None:
    n0, peak = power_knee(a=4.0, beta=beta, eta_max=0.02)
    assert n0 == pytest.approx({128: 0.44e9, 1024: 26.0e9}[beta], rel=0.01)  # where the paper's cap stops binding
    schedule = Power(n0_tokens=n0, cooldown_fraction=0.0)
    assert peak * schedule(tokens, 2e12) == pytest.approx(lr, abs=5e-8)


def test_power_warms_up_to_its_own_value_and_cools_down_from_it() -> None:
    schedule = Power(n0_tokens=1e6, warmup_tokens=4_000_000, exponent=-0.5, cooldown_fraction=0.1)
    assert schedule(2e6, 1e8) == pytest.approx(0.25)
    assert schedule(4e6, 1e8) == pytest.approx(0.5)
    assert schedule(95e6, 1e8) == pytest.approx(0.5 * schedule(90e6, 1e8))
    assert schedule(1e8, 1e8) == 0


@pytest.mark.parametrize("total_steps", [10, 100, 1000])
def test_onecycle_is_that_of_torch_up_to_where_its_steps_begin_and_end(total_steps: int) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=total_steps, cycle_momentum=False
    )
    ours = OneCycle()
    top, last = 0.3 * total_steps - 1, total_steps - 1  # torch counts its phases from step 0 to these
    for step in range(total_steps):
        t = 0.3 * step / top if step <= top else 0.3 + 0.7 * (step - top) / (last - top)
        assert 0.1 * ours(t, 1.0) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants an optimizer step between two of the schedule
            if step < last:
                scheduler.step()


def test_a_step_uses_the_value_at_its_middle() -> None:
    lr = learning_rate(Linear(), peak=0.01, batch_tokens=100, total=1000)
    assert [lr(s) for s in (0, 100, 900)] == pytest.approx([0.0095, 0.0085, 0.0005])


def test_an_absolute_floor_is_the_same_lr_at_every_peak() -> None:
    for peak in (1e-4, 1e-2):
        schedule = Cosine(end_lr=1e-5)
        assert peak * schedule(1000, 1000, schedule.floor(peak)) == pytest.approx(1e-5)


def test_a_floor_above_power_never_raises_the_lr() -> None:
    schedule = Power(n0_tokens=1.0, exponent=-1.0, cooldown_fraction=0.5, end_fraction=0.9)
    assert schedule(100, 100) == schedule(50, 100) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(warmup_tokens=-1), "warmup_tokens: must be at least 0, got -1"),
        (lambda: Wsd(cooldown="liner"), "cooldown: must be one of 1-sqrt, cosine, exponential, "),
        (lambda: Wsd(cooldown_fraction=1.5), "cooldown_fraction: must be between 0 and 1, got 1.5"),
        (lambda: Wsd(cooldown_fraction=math.nan), "cooldown_fraction: must be between 0 and 1, got nan"),
        (lambda: Wsd(cooldown="exponential"), "end_lr: must be above 0 "),
        (lambda: Linear(warmup_fraction=1.0), "warmup_fraction: must be at least 0 and below 1, got 1.0"),
        (lambda: Cosine(end_lr=-1e-5), "end_lr: must be at least 0 and finite, got -1e-05"),
        (lambda: Cosine(end_lr=1e-5, end_fraction=0.1), "end_lr: must be 0 where end_fraction is given, got 1e-05"),
        (lambda: Cosine(end_lr=1e-2).floor(1e-3), "end_lr: must be below the lowest lr (0.001), got 0.01"),
        (lambda: Power(n0_tokens=0.0), "n0_tokens: must be positive and finite, got 0.0"),
        (lambda: Power(n0_tokens=1.0, exponent=0.5), "exponent: must be negative and finite, got 0.5"),
        (lambda: InverseSqrt(timescale_tokens=0.0), "timescale_tokens: must be positive, got 0.0"),
        (lambda: Rex(d=1.0), "d: must be at least 0 and below 1, got 1.0"),
        (lambda: Rex(samples=0), "samples: must be positive, got 0"),
        (lambda: Rex(samples=2, sample_fractions=(0.5,)), "samples: must be absent where sample_fractions"),
        (lambda: Step(milestone_fractions=(0.9, 0.8)), "milestone_fractions: must be fractions that rise"),
        (lambda: Step(factors=(0.5,)), "factors: must be as many as the milestones (2), got [0.5]"),
        (lambda: Step(factors=(0.5, 2.0)), "factors: must be between 0 and 1, got [0.5, 2.0]"),
        (lambda: Step(warmup_fraction=0.85), "milestone_fractions: must come after the warm-up"),
        (lambda: Table(fractions=(0.0, 0.5), factors=(1.0, 0.5)), "fractions: must rise strictly from 0 to 1, got"),
        (
            lambda: Table(fractions=(0.0, 1.0), factors=(1.0,)),
            "factors: must be as many as the fractions (2), got [1.0]",
        ),
        (
            lambda: Table(fractions=(0.0, 1.0), factors=(0.5, 0.0)),
            "factors: must be between 0 and 1, the highest 1, got",
        ),
        (lambda: OneCycle(div_factor=0.5), "div_factor: must be at least 1 and finite, got 0.5"),
        (
            lambda: Constant(warmup_tokens=200_000).check(131_072),
            "warmup_tokens: must be below the shortest horizon (131072), got 200000",
        ),
        (
            lambda: Wsd(warmup_tokens=900, cooldown_fraction=0.2).check(1000),
            "warmup_tokens: must end before the cooldown of the shortest horizon (1000) begins at 800, got 900",
        ),
        (lambda: learning_rate(Constant(), peak=math.nan, batch_tokens=1, total=2), "lr: must be positive and finite"),
        (
            lambda: learning_rate(Constant(), peak=1.0, batch_tokens=3, total=2),
            "batch_tokens: must be positive and at most",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make()
