"""The lease: one driver at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store.lease import FencedError, Lease, check_fence, newest_fence, read_lease
from sweeps.errors import LeaseError, StoreError


def acquire(folder: Path, **changes: Any) -> Lease:
    return Lease.acquire(folder, holder="powersweep test", **changes)


RACER = """
import sys
from pathlib import Path
from orchestrator.store.lease import Lease
from sweeps.errors import LeaseError
print("ready", flush=True)
sys.stdin.readline()
try:
    lease = Lease.acquire(Path(sys.argv[1]), holder="racer")
    print(lease.fence, flush=True)
except LeaseError:
    print(0, flush=True)
sys.stdin.readline()  # holds what it won until all have tried
"""


def test_a_second_driver_is_told_who_holds_the_sweep(tmp_path: Path) -> None:
    lease = acquire(tmp_path)
    with pytest.raises(
        LeaseError, match=rf"powersweep test of .+@.+, pid {os.getpid()}, since \d{{4}}-.+last heartbeat \d+ s ago"
    ):
        acquire(tmp_path)
    lease.release()


def test_a_released_lease_goes_to_the_next_driver_under_a_higher_number(tmp_path: Path) -> None:
    fences = []
    for _ in range(3):
        lease = acquire(tmp_path)
        fences.append(lease.fence)
        lease.release()
        lease.release()
    assert fences == [1, 2, 3]
    claim = read_lease(tmp_path)
    assert claim is not None
    assert claim.released


def test_exactly_one_of_many_racing_drivers_wins(tmp_path: Path) -> None:
    acquire(tmp_path).release()
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(3)
    ]

    def each(say: str | None) -> list[str]:
        """Tell all racers at once, then hear all of them."""
        for racer in racers:
            if say is not None:
                racer.stdin.write(say)  # type: ignore[union-attr]
        return [racer.stdout.readline().strip() for racer in racers]  # type: ignore[union-attr]

    assert each(None) == ["ready"] * 3
    won = each("go\n")
    for racer in racers:
        racer.communicate("end\n")
    assert sorted(won) == ["0", "0", "2"]


def test_a_killed_driver_is_succeeded_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.store.lease import Lease; "
        "Lease.acquire(Path(sys.argv[1]), holder='bob'); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"held\n"
        with pytest.raises(LeaseError, match="bob of "):
            acquire(tmp_path)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    lease = acquire(tmp_path)
    assert lease.fence == 2
    lease.release()


@pytest.mark.parametrize("name", ["1.json", "7", "000009", "000009.txt", "²³.json", "0000009.json", "9000001.json.old"])
def test_a_file_that_is_no_claim_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / name).write_text("{}")
    assert read_lease(tmp_path) is None
    lease = acquire(tmp_path)
    assert lease.fence == 1
    lease.release()
    claim = read_lease(tmp_path)
    assert claim is not None
    assert claim.fence == 1


def test_a_claim_that_cannot_be_read_is_an_error_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "lease" / "000001.json").mkdir(parents=True)
    with pytest.raises(StoreError, match=rf"{tmp_path}/lease: cannot be read: Is a directory"):
        read_lease(tmp_path)


def test_a_silent_driver_elsewhere_is_succeeded_only_after_its_time(tmp_path: Path) -> None:
    acquire(tmp_path).release()
    file = tmp_path / "lease" / "000001.json"
    claim = json.loads(file.read_text()) | {"machine": "another", "released": False, "heartbeat": 1000.0}
    file.write_text(json.dumps(claim))
    with pytest.raises(LeaseError, match="last heartbeat 59 s ago"):
        acquire(tmp_path, clock=lambda: 1059.0)
    lease = acquire(tmp_path, clock=lambda: 1061.0)
    assert lease.fence == 2
    lease.release()


def test_heartbeats_keep_a_lease(tmp_path: Path) -> None:
    lease = acquire(tmp_path, heartbeat_seconds=0.02)
    first = read_lease(tmp_path)
    time.sleep(0.3)
    later = read_lease(tmp_path)
    assert first is not None
    assert later is not None
    assert later.heartbeat > first.heartbeat
    lease.release()


def test_a_driver_that_was_succeeded_is_fenced_and_cannot_harm_its_successor(tmp_path: Path) -> None:
    old = acquire(tmp_path, heartbeat_seconds=0.02)
    new = acquire(tmp_path, clock=lambda: time.time() + 100)
    with pytest.raises(FencedError, match="driver number 2 has taken over"):
        old.check()
    time.sleep(0.1)
    old.release()
    claim = read_lease(tmp_path)
    assert claim is not None
    assert (claim.fence, claim.released) == (2, False)
    new.check()
    new.release()


def test_a_number_once_given_is_never_given_again_though_its_claim_is_lost(tmp_path: Path) -> None:
    acquire(tmp_path).release()
    (tmp_path / "lease" / "000001.json").write_text("")
    assert read_lease(tmp_path) is None
    lease = acquire(tmp_path)
    assert lease.fence == newest_fence(tmp_path) == 2
    lease.release()


def test_a_sweep_that_never_ran_fences_nobody(tmp_path: Path) -> None:
    check_fence(tmp_path / "none", 0)
    assert read_lease(tmp_path / "none") is None


def test_a_folder_that_cannot_be_made_is_a_store_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/sweep/lease: cannot be written"):
        acquire(tmp_path / "file" / "sweep")
