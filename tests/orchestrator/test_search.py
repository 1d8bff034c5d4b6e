"""Optuna chooses learning rates: in range, in waves, the same after a restart, and told the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from orchestrator.results import fit
from orchestrator.search import SAMPLERS, OptunaChooser
from sweeps.plan import Bracket, brackets_of
from sweeps.spec import Axes, Part, Range, Result, Search, Size, Sweep, Variant

SIZE = Size(100, 100, 600.0, 1, "sample", None, "d")
LR = Range(1e-3, 1.0, "log")
GRID = Search()
SEARCH = {"trials": 9, "wave": 4, "seed": 3}


def made_sweep(search: Search = GRID, *, lr: Range = LR, tokens: tuple[int, ...] = (64,), **other: Any) -> Sweep:
    fields = {"variants": (Variant(Part("quadratic"), Part("sgd"), SIZE),), "schedule": Part("wsd"), **other}
    return Sweep("s", axes=Axes(lr=lr, batch_tokens=(4,), tokens=tokens), search=search, **fields)


def bracket() -> Bracket:
    return brackets_of(made_sweep())[0]


def chooser(name: str, journal: Path, *, only_read: bool = False, **options: Any) -> OptunaChooser:
    sweep = made_sweep(Search(name=name, **{**SEARCH, **options}))
    return OptunaChooser(sweep, journal=journal, only_read=only_read)


def bowl(lr: float) -> float | None:
    """A loss with its minimum at 0.03; diverges above 0.3."""
    return None if lr > 0.3 else 1.0 + math.log(lr / 0.03) ** 2


def results(tried: list[float], loss: Callable[[float], float | None] = bowl) -> Mapping[str, list[Result]]:
    found = [Result(f"{lr}", lr, 0, loss(lr), "diverged" if loss(lr) is None else "finished") for lr in tried]
    return {bracket().cells[0].key: found}


def play(made: OptunaChooser, *, waves: int = 99) -> list[list[float]]:
    """Answer a chooser's waves until it has no more."""
    tried: list[float] = []
    asked: list[list[float]] = []
    while len(asked) < waves and (lrs := made.next_lrs(bracket(), tried, results(tried))):
        asked.append(lrs)
        tried += [lr for lr in lrs if lr not in tried]
    return asked


def studies(journal: Path) -> list[optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return [optuna.load_study(study_name=s.study_name, storage=storage) for s in storage.get_all_studies()]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_search_asks_in_waves_within_its_range(name: str, tmp_path: Path) -> None:
    asked = play(chooser(name, tmp_path / "journal"))
    assert [len(lrs) for lrs in asked] == [4, 4, 1]
    assert all(LR.low <= lr <= LR.high for lrs in asked for lr in lrs)
    assert len({lr for lrs in asked for lr in lrs}) == 9


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_search_is_a_function_of_its_seed(name: str, tmp_path: Path) -> None:
    one, again, other = (play(chooser(name, tmp_path / f"journal{i}", seed=seed)) for i, seed in enumerate((3, 3, 4)))
    assert one == again
    assert one != other


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_search_cut_anywhere_goes_on_with_the_same_lrs(name: str, tmp_path: Path) -> None:
    whole = play(chooser(name, tmp_path / "whole"))
    for waves in (1, 2):
        journal = tmp_path / f"cut{waves}"
        play(chooser(name, journal), waves=waves)
        assert play(chooser(name, journal)) == whole  # a new chooser: a new driver


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_a_search_that_learns_comes_near_the_minimum(name: str, tmp_path: Path) -> None:
    asked = play(chooser(name, tmp_path / "journal", trials=16))
    best = min((bowl(lr) or math.inf for lrs in asked for lr in lrs), default=math.inf)
    assert best < 1.0 + math.log(1.5) ** 2  # within a factor 1.5 of the best LR, in a range of a thousand


def test_every_trial_is_told_and_a_diverged_one_as_pruned(tmp_path: Path) -> None:
    play(chooser("qmc", tmp_path / "journal"))
    (study,) = studies(tmp_path / "journal")
    states = {trial.params["lr"]: trial.state for trial in study.trials}
    assert TrialState.PRUNED in states.values()
    for lr, state in states.items():
        assert state == (TrialState.PRUNED if lr > 0.3 else TrialState.COMPLETE)


def test_what_a_driver_asked_and_did_not_write_down_is_failed_and_asked_again(tmp_path: Path) -> None:
    whole = play(chooser("random", tmp_path / "whole"))
    journal = tmp_path / "journal"
    chooser("random", journal).next_lrs(bracket(), [], results([]))
    (study,) = studies(journal)
    study.ask()  # its driver was killed here
    assert play(chooser("random", journal)) == whole
    states = [trial.state for trial in studies(journal)[0].trials]
    assert states.count(TrialState.FAIL) == 1
    assert TrialState.RUNNING not in states


def test_an_lr_asked_again_is_trained_once_and_the_search_goes_on(tmp_path: Path) -> None:
    narrow = made_sweep(Search(name="random", trials=12, wave=2), lr=Range(0.1, 0.1000003, "log"))
    made = OptunaChooser(narrow, journal=tmp_path / "journal")
    tried: list[float] = []
    while lrs := made.next_lrs(bracket(), tried, results(tried)):
        tried += [lr for lr in lrs if lr not in tried]
    (study,) = studies(tmp_path / "journal")
    assert len(tried) <= 4  # all there are, at six digits
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12


OTHER_DATA = Size(100, 100, 600.0, 1, "sample", None, "other")


@pytest.mark.parametrize(
    "other",
    [
        {"schedule": Part("cosine")},
        {"schedule": Part("wsd", fields={"cooldown_fraction": 0.5})},
        {"precision": "bfloat16"},
        {"lr": Range(LR.low, LR.high, "linear")},
        {"variants": (Variant(Part("quadratic"), Part("sgd"), OTHER_DATA),)},
        {"variants": (Variant(Part("quadratic"), Part("sgd", fields={"momentum": 0.5}), SIZE),)},
        {"tokens": (128,)},
    ],
    ids=str,
)
def test_another_recipe_is_another_search(other: dict[str, Any], tmp_path: Path) -> None:
    search, journal = Search(name="random", **SEARCH), tmp_path / "journal"
    asked = []
    for sweep in (made_sweep(search), made_sweep(search, **other)):
        (its_bracket,) = brackets_of(sweep)
        asked.append(OptunaChooser(sweep, journal=journal).next_lrs(its_bracket, [], {}))
    assert not set(asked[0]) & set(asked[1])
    assert len(studies(journal)) == 2


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_open_ended_bracket_keeps_its_lrs_when_a_longer_horizon_is_added(name: str, tmp_path: Path) -> None:
    search, journal = Search(name=name, **SEARCH), tmp_path / "journal"
    asked = []
    for horizons in ((64,), (64, 128)):
        sweep = made_sweep(search, tokens=horizons, schedule=Part("constant"))
        (its_bracket,) = brackets_of(sweep)
        made = OptunaChooser(sweep, journal=journal)
        tried: list[float] = []
        while lrs := made.next_lrs(
            its_bracket, tried, {cell.key: next(iter(results(tried).values())) for cell in its_bracket.cells}
        ):
            tried += lrs
        asked.append(tried)
    assert asked[0] == asked[1]
    assert len(studies(journal)) == 1


def test_reading_asks_nothing_and_writes_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert play(chooser("tpe", journal, only_read=True)) == []
    assert not journal.exists()
    first = chooser("tpe", journal).next_lrs(bracket(), [], results([]))
    before = journal.read_bytes()
    assert play(chooser("tpe", journal, only_read=True)) == [first]
    assert journal.read_bytes() == before
    assert list(tmp_path.iterdir()) == [journal]  # no lock is left


def test_a_sweep_by_search_ends_with_a_law_which_anyone_can_fit_without_asking(lab: Any) -> None:
    sweep = ["search={name: gp, trials: 8, wave: 4}", "axes.lr={log: [0.02, 1.6]}"]
    assert lab.train(*sweep, limit=5) == 5
    journal = lab.store().folder / "optuna.journal"
    before = journal.read_bytes()
    fit(lab.load(*sweep), home=lab.home, environ={})
    assert journal.read_bytes() == before
    assert lab.train(*sweep) == 3 * 8 - 5
    assert fit(lab.load(*sweep), home=lab.home, environ={}).laws[""] is not None
    ended = lab.run(*sweep)
    assert ended.lines[0] == "Nothing to run: all 24 trials are done."
    states = {trial.state for study in studies(journal) for trial in study.trials}
    assert states <= {TrialState.COMPLETE, TrialState.PRUNED}
