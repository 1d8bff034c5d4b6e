"""MLflow by a server: what a real one does when it is killed and comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.tracking import Tracker
from sweeps.errors import StoreError

Starter = Callable[[], "subprocess.Popen[bytes]"]
POINT = {"tokens": 4, "timestamp": 1e9, "metrics": {"validation/loss": 0.5}}


@pytest.fixture
def address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def start(address: str, tmp_path: Path) -> Iterator[Starter]:
    """Starts the server, or starts it again, and waits until it answers."""
    servers: list[subprocess.Popen[bytes]] = []

    def starter() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", address.rpartition(":")[2]]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
        command += ["--artifacts-destination", str(tmp_path / "artifacts")]
        with (tmp_path / "server.log").open("ab") as output:
            servers.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                return servers[-1]
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise AssertionError((tmp_path / "server.log").read_text())

    yield starter
    for server in servers:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_that_is_killed_and_comes_back_gets_everything_once(
    start: Starter, address: str, tmp_path: Path
) -> None:
    server = start()
    tracker = Tracker.open(address, tmp_path / "home", "exp", environ={})
    tracker.parent("sweep", sweep_key="k", params={"a": "1"})
    (tmp_path / "law.json").write_text("{}")
    tracker.log_report([tmp_path / "law.json"])
    for key in ("a", "b"):
        tracker.begin(key, key, {"lr": "1"})
    tracker.log("a", [POINT])
    tracker.flush()
    kill(server)
    tracker.log("a", [POINT, POINT | {"tokens": 8}])
    tracker.end("a", "finished")
    tracker.begin("c", "c", {})
    tracker.end("b", "stopped")
    tracker.end("c", "finished")
    with pytest.raises(StoreError, match=r"lacks 3 trials .*their outcomes are safe on disk"):
        tracker.flush(timeout_seconds=30)
    start()
    tracker.flush(timeout_seconds=60)
    tracker.end_parent("finished")
    tracker.close()
    reader = Tracker.open(address, tmp_path / "home", "exp", environ={}, create=False)
    statuses = {run.run.name: run.run.status for run in reader.read_curves()}
    assert statuses == {"a": "FINISHED"}
    assert reader.finished().keys() == {"a", "c"}
    assert reader.read_curves()[0].curve["tokens"] == [4, 8]
    assert len(reader.orphans(set())) == 3
    assert [path.name for path in (tmp_path / "artifacts").rglob("*.json")] == ["law.json"]
    assert not (tmp_path / "home").exists()
