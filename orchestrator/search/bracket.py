"""Optuna chooses the learning rates of a bracket, in waves, from a journal that survives its driver."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.samplers import SAMPLERS
from sweeps.agenda import LAW, Chooser, LawPlanner, Planner, grid_chooser
from sweeps.errors import ConfigError, unknown_name
from sweeps.plan import Bracket, is_open_ended, mean_losses
from sweeps.spec import Range, Result, Sweep, content_key, six_digits

WAVE = "powersweep:wave"  # user attribute of a trial: which wave asked for it
ASKED = "powersweep:lr"  # the LR as it is trained: six digits


class OptunaChooser:
    """One Optuna study a bracket; a wave is asked when the one before it is complete.

    What was asked is in the journal before it is trained, so a new driver goes on with the same LRs. A diverged LR
    is told as pruned, never as finished.

    A study belongs to all that decides which LR is best, and to the search (`_study_name`). Under an open-ended
    schedule the horizons are not part of it: a bracket that is given a longer one keeps its LRs, trains them on, and
    asks for no more unless `search.trials` has been raised. A loss once told stays that of the horizon it was told at.

    Args:
        sweep: its search is the sampler, its seed, LRs in all and in a wave; its `axes.lr` must be a range.
        journal: file of the journal storage; one writer, the driver.
        only_read: ask and tell nothing, and make no file: the waves are those that the driver has asked for.

    Raises:
        ConfigError: no such search, or no range to search.
    """

    def __init__(self, sweep: Sweep, *, journal: Path, only_read: bool = False) -> None:
        search, lr = sweep.search, sweep.axes.lr
        if search.name not in SAMPLERS:
            raise unknown_name("search.name", search.name, ["grid", *SAMPLERS])
        if not isinstance(lr, Range):
            raise ConfigError(f"axes.lr: search {search.name!r} needs a range, {{log: [low, high]}}, got a list")
        self._sweep = sweep
        self._search = search
        self._lr = lr
        self._open_ended = is_open_ended(sweep)
        self._only_read = only_read
        self._studies: dict[str, optuna.Study] = {}
        self._storage: JournalStorage | None = None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if not only_read:
            journal.parent.mkdir(parents=True, exist_ok=True)
        if not only_read or journal.exists():
            self._storage = JournalStorage(JournalFileBackend(str(journal)))

    def next_lrs(
        self, bracket: Bracket, tried: Sequence[float], results: Mapping[str, Sequence[Result]]
    ) -> list[float]:
        """Return the next wave: from the journal if it was asked before, else asked now."""
        study = self._study(bracket)
        if study is None:
            return []
        for wave, start in enumerate(range(0, self._search.trials, self._search.wave)):
            self._tell(study, bracket, results)
            size = min(self._search.wave, self._search.trials - start)
            lrs = self._wave(study, bracket, wave, size)
            if any(lr not in tried for lr in lrs):  # a sampler may ask for an LR again
                return lrs
        self._tell(study, bracket, results)
        return []

    def _study(self, bracket: Bracket) -> optuna.Study | None:
        """Return the study of a bracket, made if need be; None where there is none and none may be made."""
        if bracket.key not in self._studies and self._storage is not None:
            name = self._study_name(bracket)
            if not self._only_read:
                optuna.create_study(study_name=name, storage=self._storage, direction="minimize", load_if_exists=True)
            with contextlib.suppress(KeyError):
                self._studies[bracket.key] = optuna.load_study(study_name=name, storage=self._storage)
        return self._studies.get(bracket.key)

    def _study_name(self, bracket: Bracket) -> str:
        """Return what tells the bracket's study from those of all other recipes and searches; it seeds the sampler."""
        variant, lr = bracket.variant, self._lr
        what = {
            "workload": variant.workload.identity(),
            "optimizer": variant.optimizer.identity(),
            "batch_tokens": bracket.batch_tokens,
            "tokens": None if self._open_ended else [cell.tokens for cell in bracket.cells],
            "schedule": self._sweep.schedule.identity(),
            "precision": self._sweep.precision,
            "data": variant.size.data_fingerprint,
            "search": [self._search.name, self._search.seed],
            "range": [lr.low, lr.high, lr.scale],
        }
        return f"powersweep-{content_key(what)}"

    def _wave(self, study: optuna.Study, bracket: Bracket, wave: int, size: int) -> list[float]:
        """Return the wave's LRs, asking for those the journal does not hold."""
        asked = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(WAVE) == wave]
        lrs = [float(t.user_attrs[ASKED]) for t in asked if ASKED in t.user_attrs]
        while len(lrs) < size and not self._only_read:
            place = content_key([self._study_name(bracket), wave, len(lrs)])
            stateful = self._search.name == "qmc"  # a sequence: one seed for all of it, the index is in the storage
            seed = int(content_key(self._study_name(bracket)) if stateful else place, 16) % 2**31
            study.sampler = SAMPLERS[self._search.name](seed, self._search.wave)
            trial = study.ask()
            value = trial.suggest_float("lr", self._lr.low, self._lr.high, log=self._lr.scale == "log")
            trial.set_user_attr(WAVE, wave)
            trial.set_user_attr(ASKED, six_digits(value))
            lrs.append(six_digits(value))
        return list(dict.fromkeys(lrs))

    def _tell(self, study: optuna.Study, bracket: Bracket, results: Mapping[str, Sequence[Result]]) -> None:
        """Tell every complete LR once: the loss at the bracket's furthest cell, the mean over seeds."""
        if self._only_read:
            return
        furthest = max(bracket.cells, key=lambda cell: cell.tokens)
        loss = mean_losses(results.get(furthest.key, ()))
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            lr = trial.user_attrs.get(ASKED)
            if lr in loss:
                _tell_one(study, trial, loss[lr])
            elif lr is None:  # asked, but its driver died before it was written down: never trained
                study.tell(trial.number, state=TrialState.FAIL)


def _tell_one(study: optuna.Study, trial: FrozenTrial, loss: float) -> None:
    if math.isfinite(loss):
        study.tell(trial.number, loss)
    else:
        study.tell(trial.number, state=TrialState.PRUNED)


def chooser_of(sweep: Sweep, *, journal: Path, only_read: bool = False) -> Chooser | Planner:
    """Return what chooses the trials of a sweep; `only_read`: for everyone but its driver."""
    if sweep.search.name == LAW:
        return LawPlanner(sweep)
    if sweep.search.name == "grid":
        return grid_chooser(sweep)
    return OptunaChooser(sweep, journal=journal, only_read=only_read)
