"""The index: all outcomes, read once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import orchestrator.store.index
from orchestrator.store import SweepStore
from orchestrator.store.index import Index, outcome_of
from sweeps.curves import Curve


def record(key: str, **changes: Any) -> dict[str, Any]:
    curve = {
        "tokens": [10, 20],
        "step": [1, 2],
        "timestamp": [1.5, 2.5],
        "metrics": {"validation/loss": [0.1 + 0.2, None], "grad_norm": [math.inf, 2.0]},
    }
    plain = {"key": key, "outcome": "finished", "reason": "", "tokens": 20, "seconds": 1.25, "curve": curve}
    return plain | {"trial": {"lr": 1e-3, "marks": [10, 20]}} | changes


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    store = SweepStore(tmp_path, "exp")
    for key in ("b", "a"):
        store.trial(key, fence=1).write_outcome(record(key))
    return store


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys whose files are read from here on."""
    keys: list[str] = []
    real = orchestrator.store.index.read_outcome

    def watched(path: Path) -> dict[str, Any] | None:
        keys.append(path.parent.name)
        return real(path)

    monkeypatch.setattr(orchestrator.store.index, "read_outcome", watched)
    return keys


def test_outcomes_are_what_was_written_from_files_and_from_the_cache(store: SweepStore, read: list[str]) -> None:
    for expected in (["a", "b"], []):
        outcomes = Index.open(store).outcomes()
        assert sorted(read) == expected
        assert list(outcomes) == ["a", "b"]
        assert outcomes["a"] == outcome_of(record("a"))
        assert outcomes["a"].curve == Curve.from_json(record("a")["curve"])
        assert outcomes["a"].trial == {"lr": 1e-3, "marks": [10, 20]}
        read.clear()


def test_only_what_changed_is_read(store: SweepStore, read: list[str]) -> None:
    index = Index.open(store)
    index.outcomes()
    read.clear()
    store.trial("b", fence=1).write_outcome(record("b", outcome="stopped"))
    store.trial("c", fence=1).write_outcome(record("c"))
    (store.trials / "a" / "outcome.json").unlink()
    assert index.refresh() == {"a", "b", "c"}
    assert sorted(read) == ["b", "c"]
    assert {key: outcome.outcome for key, outcome in index.outcomes().items()} == {"b": "stopped", "c": "finished"}
    assert Index.open(store).outcomes() == index.outcomes()


def test_a_corrupt_cache_is_built_anew(store: SweepStore) -> None:
    Index.open(store)
    (store.folder / "index.parquet").write_bytes(b"PAR1nonsense")
    assert list(Index.open(store).outcomes()) == ["a", "b"]


def test_a_corrupt_outcome_is_left_out_until_it_is_whole(store: SweepStore) -> None:
    (store.trials / "a" / "outcome.json").write_text("{")
    index = Index.open(store)
    assert list(index.outcomes()) == ["b"]
    store.trial("a", fence=1).write_outcome(record("a"))
    index.refresh()
    assert list(index.outcomes()) == ["a", "b"]


def test_a_trial_under_way_has_no_outcome(store: SweepStore) -> None:
    store.trial("c", fence=1).append_work(0, 1)
    assert list(Index.open(store).outcomes()) == ["a", "b"]


def test_a_sweep_that_never_ran_is_empty_and_nothing_is_written(tmp_path: Path) -> None:
    assert Index.open(SweepStore(tmp_path, "none")).outcomes() == {}
    assert list(tmp_path.iterdir()) == []


def test_an_outcome_without_a_curve_is_read() -> None:
    outcome = outcome_of({"key": "k", "outcome": "failed", "reason": "died", "tokens": 0})
    assert (outcome.reason, len(outcome.curve), outcome.trial) == ("died", 0, {})
