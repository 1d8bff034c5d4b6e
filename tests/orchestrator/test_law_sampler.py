from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.search import LawSampler
from sweeps.choose import Target
from sweeps.errors import ConfigError
from sweeps.laws.published import Question, published

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "batch_tokens": CategoricalDistribution([2**13, 2**15, 2**17]),
    "tokens": CategoricalDistribution([1e8, 2e8, 4e8]),
}
TARGET = Target(tokens=1.6e9, batch_tokens=2**15)


def best_lr(batch: float, tokens: float) -> float:
    return float(4e-3 * (batch / 2**15) ** 0.4 * (tokens / 2e8) ** -0.3)


def objective(trial: optuna.Trial) -> float:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    batch = trial.suggest_categorical("batch_tokens", SPACE["batch_tokens"].choices)  # type: ignore[attr-defined]
    tokens = trial.suggest_categorical("tokens", SPACE["tokens"].choices)  # type: ignore[attr-defined]
    u = math.log(lr / best_lr(batch, tokens))
    if u > 2.0:
        raise optuna.TrialPruned
    noise = 0.002 * np.random.default_rng(trial.number).standard_normal()
    return float(2.5 * (tokens / 1e8) ** -0.05 * math.exp(0.04 * u * u + noise))


def sampler(seed: int = 0, **more: object) -> LawSampler:
    return LawSampler(SPACE, targets=[TARGET], seed=seed, **more)  # type: ignore[arg-type]


def test_it_finds_the_best_lr_at_a_target_beyond_what_it_trains() -> None:
    made = sampler()
    study = optuna.create_study(sampler=made)
    study.optimize(objective, n_trials=36)
    (said,) = made.law(study)
    truth = best_lr(2**15, 1.6e9)
    assert said.lr_low < truth < said.lr_high
    assert abs(math.log(said.lr / truth)) < 0.25


def test_it_ends_a_study_once_the_interval_at_the_target_is_narrow_enough() -> None:
    made = sampler()
    study = optuna.create_study(sampler=made)
    study.optimize(objective, n_trials=60, callbacks=[made.stop_at(2.0)])
    assert 8 <= len(study.trials) < 60
    (said,) = made.law(study)
    assert math.sqrt(said.lr_high / said.lr_low) <= 2.0


def test_a_study_may_start_from_a_published_law() -> None:
    space = {**SPACE, "parameters": CategoricalDistribution([1e8])}
    made = LawSampler(space, targets=[Target(tokens=1.6e9, parameters=1e8)], law="step-law")
    study = optuna.create_study(sampler=made)
    first = study.ask(space).params
    said = published("step-law").ask(Question(tokens=4e8, parameters=1e8))
    assert first["tokens"] == 4e8
    assert abs(math.log(first["lr"] / said.lr)) < 0.5 * math.log(2)


def test_the_same_seed_asks_for_the_same_trials_and_another_for_others() -> None:
    asked = []
    for seed in (1, 1, 2):
        study = optuna.create_study(sampler=sampler(seed))
        study.optimize(objective, n_trials=12)
        asked.append([t.params for t in study.trials])
    assert asked[0] == asked[1] != asked[2]


def test_a_study_that_is_stored_and_loaded_again_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = optuna.create_study(sampler=sampler())
    whole.optimize(objective, n_trials=14)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    optuna.create_study(study_name="halves", storage=storage, sampler=sampler()).optimize(objective, n_trials=10)
    again = optuna.load_study(study_name="halves", storage=storage, sampler=sampler())
    again.optimize(objective, n_trials=4)
    assert [t.params for t in again.trials] == [t.params for t in whole.trials]


def test_trials_that_run_at_once_are_not_the_same() -> None:
    study = optuna.create_study(sampler=sampler())
    study.optimize(objective, n_trials=10)
    places = [tuple(study.ask(SPACE).params.values()) for _ in range(5)]
    assert len(set(places)) == 5


def test_parameters_of_other_names_are_drawn_at_random() -> None:
    study = optuna.create_study(sampler=sampler())
    drawn = {study.ask({**SPACE, "beta2": FloatDistribution(0.9, 0.99)}).params["beta2"] for _ in range(3)}
    assert len(drawn) == 3
    assert all(0.9 <= x <= 0.99 for x in drawn)


def test_what_it_cannot_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="space: must have lr"):
        LawSampler({"tokens": SPACE["tokens"]}, targets=[TARGET])
    with pytest.raises(ConfigError, match="targets: must name"):
        LawSampler(SPACE, targets=[])
    study = optuna.create_study(sampler=sampler(), direction="maximize")
    with pytest.raises(ConfigError, match="direction must be 'minimize'"):
        study.ask(SPACE)
