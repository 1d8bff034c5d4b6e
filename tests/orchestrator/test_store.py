"""The sweep's folder: what is there is there whole, and a zombie cannot write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orchestrator.store import SweepStore, TrialStore, home
from orchestrator.store.lease import FencedError, Lease
from sweeps.errors import StoreError

KEY = "a" * 64


def trial_store(root: Path, fence: int = 1) -> TrialStore:
    return SweepStore(root, "exp").trial(KEY, fence=fence)


def names(store: TrialStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def save(store: TrialStore, tokens: int) -> Path:
    return store.save_checkpoint({"x": torch.full((3,), float(tokens))}, {"tokens": tokens, "curve": [tokens]})


def test_home_is_the_same_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home({"POWERSWEEP_HOME": str(tmp_path)}) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home({}) == tmp_path / ".powersweep"
    monkeypatch.chdir(tmp_path)
    assert home({"POWERSWEEP_HOME": "here"}) == tmp_path / "here"


def test_a_checkpoint_is_read_back_equal(tmp_path: Path) -> None:
    store = trial_store(tmp_path)
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "part": whole[1], "turned": whole.T, "bytes": torch.arange(5, dtype=torch.uint8)}
    store.save_checkpoint(tensors, {"tokens": 8, "rng": [1, 2], "none": None})
    saved = store.newest_checkpoint()
    assert saved is not None
    assert saved[1] == {"tokens": 8, "rng": [1, 2], "none": None}
    assert saved[0].keys() == tensors.keys()
    assert all(torch.equal(saved[0][name], tensor) for name, tensor in tensors.items())


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert trial_store(tmp_path).newest_checkpoint() is None


def test_the_two_newest_checkpoints_stay(tmp_path: Path) -> None:
    store = trial_store(tmp_path)
    for tokens in (900, 1000, 20000):
        save(store, tokens)
    assert [int(name.split(".")[0]) for name in names(store)] == [1000, 20000]
    saved = store.newest_checkpoint()
    assert saved is not None
    assert saved[1]["tokens"] == 20000


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_a_corrupt_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = trial_store(tmp_path)
    save(store, 10)
    newest = save(store, 20)
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes({"cut": data[:-5], "bit": data, "empty": b""}[harm])
    saved = store.newest_checkpoint()
    assert saved is not None
    assert saved[1]["tokens"] == 10
    assert "is corrupt" in caplog.text


def test_a_write_that_was_killed_leaves_the_last_checkpoint_and_is_tidied_away(tmp_path: Path) -> None:
    code = (
        "import os, sys, torch; from pathlib import Path; from orchestrator.store import folders as store; "
        "trial = store.TrialStore(Path(sys.argv[1]), fence=1); "
        "trial.save_checkpoint({'x': torch.ones(3)}, {'tokens': 1}); "
        "store._land = lambda *_: os.kill(os.getpid(), 9); "
        "trial.save_checkpoint({'x': torch.ones(3)}, {'tokens': 2})"
    )
    store = trial_store(tmp_path)
    done = subprocess.run([sys.executable, "-c", code, str(store.folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(name.startswith(".writing.") for name in names(store))
    saved = store.newest_checkpoint()
    assert saved is not None
    assert saved[1]["tokens"] == 1
    save(store, 3)
    assert not any(name.startswith(".writing.") for name in names(store))


def test_an_outcome_is_read_back_equal_and_the_last_one_counts(tmp_path: Path) -> None:
    store = trial_store(tmp_path)
    assert store.read_outcome() is None
    save(store, 5)
    store.write_outcome({"key": KEY, "outcome": "failed"})
    store.write_outcome({"key": KEY, "outcome": "finished", "seconds": 0.1 + 0.2})
    store.drop_checkpoints()
    assert store.read_outcome() == {"key": KEY, "outcome": "finished", "seconds": 0.1 + 0.2}
    assert names(store) == ["outcome.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00\x00"])
def test_a_corrupt_outcome_counts_as_none_with_a_warning(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = trial_store(tmp_path)
    store.folder.mkdir(parents=True)
    (store.folder / "outcome.json").write_text(text)
    assert store.read_outcome() is None
    assert "is corrupt" in caplog.text


def test_the_work_log_adds_up_over_processes_and_leaves_out_a_torn_line(tmp_path: Path) -> None:
    store = trial_store(tmp_path)
    assert store.read_work() == []
    store.append_work(0, 100)
    store.append_work(100, 100)
    trial_store(tmp_path, fence=2).append_work(50, 200)
    with (store.folder / "work.log").open("a") as file:
        file.write("200 3")
    assert store.read_work() == [(0, 100), (50, 200)]


def test_a_zombie_of_an_earlier_driver_cannot_write(tmp_path: Path) -> None:
    sweep = SweepStore(tmp_path, "exp")
    Lease.acquire(sweep.folder, holder="ada").release()
    old = sweep.trial(KEY, fence=1)
    save(old, 1)
    lease = Lease.acquire(sweep.folder, holder="bob")
    for write in (
        lambda: save(old, 2),
        lambda: old.write_outcome({"outcome": "finished"}),
        lambda: old.append_work(1, 2),
        old.drop_checkpoints,
    ):
        with pytest.raises(FencedError, match="number 1 must not write"):
            write()
    new = sweep.trial(KEY, fence=lease.fence)
    saved = new.newest_checkpoint()
    assert saved is not None
    assert saved[1]["tokens"] == 1
    save(new, 2)
    lease.release()


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    SweepStore(tmp_path / "home", "exp").check_writable()
    assert list(tmp_path.iterdir()) == []
    store = SweepStore(tmp_path, "exp")
    store.folder.mkdir(parents=True)
    store.check_writable()
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("root", ["under a file", "/proc/powersweep"])
def test_a_store_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" if root == "under a file" else Path(root)
    store = SweepStore(place, "exp")
    trial = store.trial(KEY, fence=1)
    for write in (
        store.check_writable,
        store.request_stop,
        lambda: save(trial, 1),
        lambda: trial.write_outcome({"outcome": "finished"}),
        lambda: trial.append_work(0, 1),
    ):
        with pytest.raises(
            StoreError, match=rf"{place}/sweeps/exp.*: cannot be (written|read): (Not a dir|No such file)"
        ):
            write()


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_an_error_with_its_path(tmp_path: Path) -> None:
    store = trial_store(tmp_path)
    store.folder.mkdir(parents=True)
    (store.folder / "work.log").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"cannot be written: No space left on device"):
        store.append_work(0, 1)


def test_a_stop_is_asked_for_seen_and_forgotten(tmp_path: Path) -> None:
    store = SweepStore(tmp_path, "exp")
    assert not store.stop_requested()
    store.clear_stop()
    store.request_stop()
    assert store.stop_requested()
    store.clear_stop()
    assert not store.stop_requested()


def test_keys_are_the_trials_with_a_folder(tmp_path: Path) -> None:
    store = SweepStore(tmp_path, "exp")
    assert store.keys() == []
    for key in ("b", "a"):
        store.trial(key, fence=1).write_outcome({"outcome": "finished"})
    assert store.keys() == ["a", "b"]
    assert json.loads((store.trials / "a" / "outcome.json").read_text()) == {"outcome": "finished"}
