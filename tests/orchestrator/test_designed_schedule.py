"""A schedule by design is a schedule that a sweep runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import load_sweep, object_of
from sweeps.forecast.design import design_schedule
from sweeps.forecast.fitting import known
from sweeps.forecast.forms import MultiPower
from sweeps.forecast.published import MULTI_POWER_REPOSITORY
from sweeps.forecast.records import LrPath
from sweeps.plan import brackets_of, grid_lrs, trials_of
from sweeps.schedules import SCHEDULES, learning_rate

SWEEP = """
name: designed
workload: {name: quadratic, dimensions: 8}
optimizer: {name: sgd}
axes: {lr: [0.01, 0.02, 0.04], batch_tokens: [8], tokens: [4096]}
"""


def test_the_yaml_of_a_designed_schedule_is_a_sweeps_and_its_runs_follow_it(tmp_path: Path) -> None:
    law = known(MultiPower(prior=None), MULTI_POWER_REPOSITORY["25M"])
    designed = design_schedule(law, peak=3e-4, steps=2000, warmup_steps=200, knots=8)
    (tmp_path / "designed.yaml").write_text(SWEEP + designed.yaml())
    sweep = load_sweep("designed.yaml", cwd=tmp_path, environ={}).sweep
    (bracket,) = brackets_of(sweep)
    trial = trials_of(sweep, bracket, grid_lrs(sweep))[0]
    schedule = object_of(SCHEDULES, trial.schedule, "schedule")
    assert schedule == designed.schedule()
    lr = learning_rate(schedule, peak=trial.lr, batch_tokens=trial.batch_tokens, total=trial.tokens)
    path = LrPath.of_schedule(lr, batch_tokens=8, tokens=4096, warmup_tokens=round(0.1 * 4096))
    assert (len(path), path.warmup_steps) == (512, 51)
    assert path.lr.max() == pytest.approx(trial.lr, rel=1e-5)
    assert path.lr[-1] < 0.1 * trial.lr
