"""The samplers of Optuna that a search may name."""

from __future__ import annotations

import warnings

import optuna
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler


def _random(seed: int, startup: int) -> BaseSampler:
    del startup
    return RandomSampler(seed=seed)


def _qmc(seed: int, startup: int) -> BaseSampler:
    del startup
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


def _tpe(seed: int, startup: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=startup)


def _gp(seed: int, startup: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=startup)


SAMPLERS = {"random": _random, "qmc": _qmc, "tpe": _tpe, "gp": _gp}
