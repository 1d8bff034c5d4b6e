"""MLflow: one run a trial, nothing twice, nothing lost, always ended truthfully."""

from __future__ import annotations

import itertools
import logging
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from orchestrator.store.index import outcome_of
from orchestrator.tracking import Tracker, card_of, redact, resolve_uri
from orchestrator.tracking.card import human, short_float
from sweeps.agenda import Outcome
from sweeps.errors import StoreError

KEYS = ["a" * 64, "b" * 64]
PARAMS = {"lr": "0.001", "batch_tokens": "4"}
Opener = Callable[[], Tracker]


@pytest.fixture
def opened(tracking_home: Path, request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens trackers of one experiment, as drivers that come one after another do."""
    made: list[Tracker] = []

    def opener() -> Tracker:
        tracker = Tracker.open(None, tracking_home, request.node.name, environ={})
        made.append(tracker)
        return tracker

    yield opener
    for tracker in made:
        tracker.close()


def points(*tokens: int, later: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"tokens": t, "step": t // 4, "timestamp": 1e9 + t + later, "metrics": {"validation/loss": 1 / t, "lr": 1e-3}}
        for t in tokens
    ]


def outcome(key: str, kind: str = "finished", tokens: tuple[int, ...] = (4, 8)) -> Outcome:
    curve = {
        "tokens": list(tokens),
        "step": [t // 4 for t in tokens],
        "timestamp": [1e9 + t for t in tokens],
        "metrics": {"validation/loss": [1 / t for t in tokens], "lr": [1e-3] * len(tokens)},
    }
    trial = {"lr": 1e-3, "batch_tokens": 4, "workload": {"name": "quadratic", "fields": {"dim": 3}, "source": "s"}}
    return outcome_of({"key": key, "outcome": kind, "tokens": tokens[-1], "curve": curve, "trial": trial, "seconds": 2})


def runs(tracker: Tracker) -> dict[str, Any]:
    """Everything in the experiment: status, outcome and steps by trial, asserting one run a trial and no point twice."""
    client = tracker._at.client
    found = {}
    for run in client.search_runs([tracker.experiment_id]):
        key = run.data.tags.get("trial_key", "parent")
        assert key not in found, "two runs of one trial"
        steps = {}
        for name in run.data.metrics:
            history = [m.step for m in client.get_metric_history(run.info.run_id, name)]
            assert len(history) == len(set(history)), "a point twice"
            steps[name] = sorted(history)
        found[key] = (run.info.status, run.data.tags.get("outcome"), steps.get("validation/loss", []))
    return found


def test_a_trial_is_a_child_run_with_tokens_as_steps_and_the_curves_own_times(opened: Opener) -> None:
    tracker = opened()
    parent = tracker.parent("sweep", sweep_key="k", params={"axes": "lr"})
    tracker.begin(KEYS[0], "lr 1e-3 s0", PARAMS, {"source.workload": "abc"})
    tracker.log(KEYS[0], points(4, 8))
    tracker.end(KEYS[0], "finished")
    tracker.flush()
    client = tracker._at.client
    (run,) = [r for r in client.search_runs([tracker.experiment_id]) if "trial_key" in r.data.tags]
    assert (run.info.run_name, run.info.status, run.data.params) == ("lr 1e-3 s0", "FINISHED", PARAMS)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["source.workload"] == "abc"
    history = client.get_metric_history(run.info.run_id, "validation/loss")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(4, 0.25, 1000000004000), (8, 0.125, 1000000008000)]


@pytest.mark.parametrize(
    ("kind", "status", "tag"),
    [
        ("finished", "FINISHED", None),
        ("diverged", "FINISHED", "diverged"),
        ("stopped", "KILLED", "stopped"),
        ("paused", "KILLED", "paused"),
        ("failed", "FAILED", "failed"),
    ],
)
def test_every_outcome_ends_the_run_truthfully(opened: Opener, kind: str, status: str, tag: str | None) -> None:
    tracker = opened()
    for key, wait in zip(KEYS, (False, True), strict=True):
        tracker.begin(key, "t", PARAMS)
        tracker.log(key, points(4))
        if wait:
            tracker.flush()
        tracker.end(key, kind, {"reason": "why"})
    tracker.flush()
    assert runs(tracker) == {key: (status, tag, [4]) for key in KEYS}
    assert tracker.finished().keys() == (set(KEYS) if status == "FINISHED" else set())


def test_logging_again_writes_only_what_is_missing_in_this_process_and_the_next(opened: Opener) -> None:
    tracker = opened()
    tracker.begin(KEYS[0], "t", PARAMS)
    tracker.log(KEYS[0], points(4, 8))
    tracker.flush()
    tracker.log(KEYS[0], points(4, 8, 12, later=50.0))
    tracker.flush()
    tracker.close()
    second = opened()
    second.begin(KEYS[0], "t", PARAMS | {"new": "1"})
    second.log(KEYS[0], points(4, 8, later=99.0))
    second.log(KEYS[0], points(12, 16, later=99.0))
    second.flush()
    assert runs(second) == {KEYS[0]: ("RUNNING", None, [4, 8, 12, 16])}
    second.end(KEYS[0], "finished")
    second.flush()
    assert runs(second) == {KEYS[0]: ("FINISHED", None, [4, 8, 12, 16])}


def test_an_ended_run_is_opened_again_and_its_outcome_follows(opened: Opener) -> None:
    tracker = opened()
    tracker.begin(KEYS[0], "t", PARAMS)
    tracker.log(KEYS[0], points(4))
    tracker.end(KEYS[0], "stopped")
    tracker.flush()
    tracker.begin(KEYS[0], "t", PARAMS)
    tracker.log(KEYS[0], points(4, 8))
    tracker.flush()
    assert runs(tracker)[KEYS[0]][0] == "RUNNING"
    tracker.end(KEYS[0], "finished")
    tracker.flush()
    assert runs(tracker) == {KEYS[0]: ("FINISHED", "finished", [4, 8])}


def test_there_is_one_parent_a_sweep_name_updated_when_the_sweep_grows(opened: Opener) -> None:
    first = opened()
    run_id = first.parent("sweep", sweep_key="k", params={"axes.lr": "1"}, tags={"note": "a"})
    first.end_parent("interrupted")
    second = opened()
    assert second.parent("sweep", sweep_key="k", params={"axes.lr": "2", "more": "3"}, tags={"note": "b"}) == run_id
    run = second._at.client.get_run(run_id)
    assert (run.info.status, run.data.params) == ("RUNNING", {"axes.lr": "1", "more": "3"})
    assert {k: run.data.tags[k] for k in ("now.axes.lr", "note")} == {"now.axes.lr": "2", "note": "b"}
    second.end_parent("finished")
    run = second._at.client.get_run(run_id)
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "finished")
    assert opened().parent("another", sweep_key="k", params={}) != run_id


def test_reports_and_metrics_land_on_the_parent_once(opened: Opener, tmp_path: Path, tracking_home: Path) -> None:
    tracker = opened()
    run_id = tracker.parent("sweep", sweep_key="k", params={})
    for text in ("old", "new"):
        (tmp_path / "law.json").write_text(text)
        tracker.log_report([tmp_path / "law.json"])
        tracker.set_parent_metrics({"law.p": 0.5}, step=8)
    client = tracker._at.client
    assert [file.path for file in client.list_artifacts(run_id)] == ["law.json"]
    assert [path.read_text() for path in (tracking_home / "artifacts").rglob(f"{run_id}/**/law.json")] == ["new"]
    assert len(client.get_metric_history(run_id, "law.p")) == 1


STEPS: list[Callable[[Tracker], None]] = [
    lambda t: t.begin(KEYS[0], "t", PARAMS),
    lambda t: t.log(KEYS[0], points(4)),
    lambda t: t.log(KEYS[0], points(8)),
    lambda t: t.end(KEYS[0], "finished"),
]


@pytest.mark.parametrize("written", [True, False], ids=["outcome written", "no outcome"])
@pytest.mark.parametrize("killed_after", range(len(STEPS) + 1))
def test_the_next_driver_brings_mlflow_to_the_truth_wherever_the_last_was_killed(
    opened: Opener, killed_after: int, written: bool
) -> None:
    first = opened()
    for step in STEPS[:killed_after]:
        step(first)
    first.flush()
    first.close()
    second = opened()
    second.parent("sweep", sweep_key="k", params={})
    second.settle({KEYS[0]: outcome(KEYS[0])} if written else {})
    second.flush()
    second.end_parent("finished")
    found = runs(second)
    assert all(status != "RUNNING" for status, _, _ in found.values())
    if written:
        assert found[KEYS[0]][0] == "FINISHED"
        assert found[KEYS[0]][2] == [4, 8]
        return
    for step in STEPS:
        step(second)
    second.flush()
    assert runs(second)[KEYS[0]][::2] == ("FINISHED", [4, 8])


def test_settling_twice_is_settling_once_and_a_lost_database_is_written_again(opened: Opener) -> None:
    outcomes = {key: outcome(key, kind) for key, kind in zip(KEYS, ("finished", "diverged"), strict=True)}
    expected = {KEYS[0]: ("FINISHED", None, [4, 8]), KEYS[1]: ("FINISHED", "diverged", [4, 8])}
    for _ in range(2):
        tracker = opened()
        tracker.settle(outcomes)
        tracker.flush()
        assert runs(tracker) == expected
    run = opened().finished()[KEYS[0]]
    assert run.name == "lr1e-3 B4"
    assert run.params == {"lr": "0.001", "batch_tokens": "4", "workload.name": "quadratic", "workload.dim": "3"}
    assert (run.started, run.ended) == (1e9 + 6, 1e9 + 8)


def test_a_trial_that_ended_again_at_a_longer_horizon_gets_its_new_points(opened: Opener) -> None:
    for tokens in ((4, 8), (4, 8, 16)):
        tracker = opened()
        tracker.settle({KEYS[0]: outcome(KEYS[0], tokens=tokens)})
        tracker.flush()
        assert runs(tracker) == {KEYS[0]: ("FINISHED", None, list(tokens))}


KILLED_DRIVER = """
import sys
from pathlib import Path
from orchestrator.tracking import Tracker
tracker = Tracker.open(None, Path(sys.argv[1]), sys.argv[2], environ={})
tracker.parent("sweep", sweep_key="k", params={})
tracker.begin("0", "t", {})
tracker.flush()
print("writing", flush=True)
for i in range(10**6):
    tracker.begin(str(i), "t", {"lr": "1"})
    tracker.log(str(i), [{"tokens": t, "timestamp": 1e9 + t, "metrics": {"validation/loss": 1 / t}} for t in (4, 8)])
    tracker.end(str(i), "finished")
    tracker.flush()
"""


@pytest.mark.slow
def test_after_kill_9_amid_writing_every_trial_has_one_whole_run(
    tracking_home: Path, request: pytest.FixtureRequest, opened: Opener
) -> None:
    opened().close()
    command = [sys.executable, "-c", KILLED_DRIVER, str(tracking_home), request.node.name]
    for pause in (0.15, 0.31, 0.47):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"writing\n"
            time.sleep(pause)
            driver.kill()
        tracker = opened()
        written = {str(i): outcome(str(i)) for i in range(30)}
        tracker.parent("sweep", sweep_key="k", params={})
        tracker.settle(written)
        tracker.end_parent("finished")
        tracker.flush()
        found = runs(tracker)
        assert found.keys() >= {*written, "parent"}
        assert {(status, tuple(steps)) for key, (status, _, steps) in found.items() if key in written} == {
            ("FINISHED", (4, 8))
        }
        assert all(status != "RUNNING" for status, _, _ in found.values())


def test_of_two_runs_of_a_trial_the_older_stays(opened: Opener) -> None:
    tracker = opened()
    client = tracker._at.client
    made = [
        client.create_run(tracker.experiment_id, start_time=time_ms, tags={"trial_key": KEYS[0]}).info.run_id
        for time_ms in (2000, 1000)
    ]
    tracker.settle({KEYS[0]: outcome(KEYS[0])})
    tracker.flush()
    assert [run.info.run_id for run in client.search_runs([tracker.experiment_id])] == [made[1]]
    assert runs(tracker)[KEYS[0]][0] == "FINISHED"


def test_many_points_and_parameters_go_in_several_batches(opened: Opener) -> None:
    tracker = opened()
    tracker.begin(KEYS[0], "t", {f"p{i}": "x" * 7000 for i in range(150)})
    tracker.log(KEYS[0], points(*range(1, 1201)))
    tracker.end(KEYS[0], "finished")
    tracker.flush()
    assert runs(tracker)[KEYS[0]][2] == list(range(1, 1201))
    assert len(tracker.finished()[KEYS[0]].params) == 150


def test_the_caller_does_not_wait_for_mlflow(opened: Opener) -> None:
    tracker = opened()
    tracker.parent("sweep", sweep_key="k", params={})
    tracker.begin("0", "t", PARAMS)
    started = time.monotonic()
    for i in range(50):
        tracker.begin(str(i), "t", PARAMS)
        tracker.log(str(i), points(4))
        tracker.end(str(i), "finished")
    assert time.monotonic() - started < 0.1
    tracker.flush()
    assert len(tracker.finished()) == 50


def test_curves_are_read_whole_whoever_logged_them(opened: Opener) -> None:
    tracker = opened()
    tracker.parent("sweep", sweep_key="k", params={})
    tracker.set_parent_metrics({"law.p": 0.5})
    tracker.begin(KEYS[0], "ours", PARAMS)
    tracker.log(KEYS[0], [*points(4, 8), {"tokens": 12, "timestamp": 5.0, "metrics": {"validation/loss": math.inf}}])
    tracker.end(KEYS[0], "finished")
    tracker.flush()
    client = tracker._at.client
    other = client.create_run(tracker.experiment_id, run_name="theirs").info.run_id
    for value, moment in ((3.0, 1000), (2.0, 2000)):
        client.log_metric(other, "loss", value, step=5, timestamp=moment)
    client.log_metric(other, "note", 1.0, step=6, timestamp=3000)
    by_name = {found.run.name: found for found in tracker.read_curves(metrics=["loss", "validation/loss", "lr"])}
    assert by_name.keys() == {"ours", "theirs"}
    assert by_name["ours"].curve == {
        "tokens": [4, 8, 12],
        "step": [1, 2, 3],
        "timestamp": [1e9 + 4, 1e9 + 8, 5.0],
        "metrics": {"lr": [1e-3, 1e-3, None], "validation/loss": [0.25, 0.125, math.inf]},
    }
    assert by_name["theirs"].curve == {"tokens": [5], "step": [0], "timestamp": [2.0], "metrics": {"loss": [2.0]}}
    assert [found.run.name for found in tracker.read_curves(only_finished=True)] == ["ours"]


def test_runs_whose_trial_is_in_no_sweep_are_listed_and_deleted(opened: Opener) -> None:
    tracker = opened()
    tracker.parent("sweep", sweep_key="k", params={})
    tracker.settle({key: outcome(key) for key in KEYS})
    tracker.flush()
    tracker = opened()
    orphans = tracker.orphans({KEYS[0]})
    assert [run.key for run in orphans] == [KEYS[1]]
    tracker.delete(orphans)
    assert runs(tracker).keys() == {KEYS[0], "parent"}


def test_a_run_that_was_deleted_under_the_driver_is_reported_and_written_by_the_next(opened: Opener) -> None:
    tracker = opened()
    tracker.begin(KEYS[0], "t", PARAMS)
    tracker.flush()
    (run,) = tracker._at.client.search_runs([tracker.experiment_id])
    tracker._at.client.delete_run(run.info.run_id)
    tracker.log(KEYS[0], points(4))
    lost = tracker.flush()
    assert lost.keys() == {KEYS[0]}
    assert "active" in lost[KEYS[0]]
    second = opened()
    second.settle({KEYS[0]: outcome(KEYS[0])})
    second.flush()
    assert runs(second)[KEYS[0]][0] == "FINISHED"


def test_names_that_mlflow_does_not_take_are_written_as_it_takes_them(opened: Opener) -> None:
    tracker = opened()
    tracker.parent("sweep", sweep_key="k", params={"what?": "x"})
    names = ["acc@1", "a//b/../c", "/root", "..", "ümlaut", "x" * 300, "top5 %"]
    tracker.begin(KEYS[0], "t@1", {**PARAMS, "workload.settings.who@": "me"}, {"tag@": "y"})
    tracker.log(KEYS[0], [{"tokens": 4, "step": 1, "timestamp": 1e9, "metrics": dict.fromkeys(names, 0.5)}])
    tracker.end(KEYS[0], "finished")
    assert tracker.flush() == {}
    (read,) = tracker.read_curves()
    expected = {"acc_1", "a/b/__/c", "root", "__", "ümlaut", "x" * 250, "top5 _"}
    assert read.curve["metrics"] == {name: [0.5] for name in expected}
    assert read.run.params == {**PARAMS, "workload.settings.who_": "me"}
    assert (read.run.tags["tag_"], read.run.status) == ("y", "FINISHED")
    again = opened()
    again.log(KEYS[0], [{"tokens": 4, "step": 1, "timestamp": 1e9, "metrics": dict.fromkeys(names, 0.5)}])
    assert again.flush() == {}
    assert runs(again)[KEYS[0]][0] == "FINISHED"


def test_the_sweeps_own_uri_wins_over_the_environment_over_the_default(tmp_path: Path) -> None:
    environ = {"MLFLOW_TRACKING_URI": "http://env"}
    assert resolve_uri("http://own", home=tmp_path, environ=environ) == "http://own"
    assert resolve_uri(None, home=tmp_path, environ=environ) == "http://env"
    assert resolve_uri(None, home=tmp_path, environ={}) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_not_there_is_one_line_within_ten_seconds_without_its_password(
    tmp_path: Path, closed_port: int, scheme: str
) -> None:
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        Tracker.open(f"{scheme}://ada:secret@127.0.0.1:{closed_port}/x", tmp_path, "e", environ={})
    assert time.monotonic() - started < 10
    assert str(caught.value).startswith(f"tracking: {scheme}://***@127.0.0.1:{closed_port}/x cannot be reached: ")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_never_answers_is_one_line_within_ten_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"cannot be reached|does not answer"):
            Tracker.open(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path, "e", environ={})
        assert time.monotonic() - started < 10


def test_a_server_that_is_broken_is_one_line(tmp_path: Path) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(StoreError, match=r"cannot be reached: .*Service Unavailable"):
            Tracker.open(f"http://127.0.0.1:{server.server_port}", tmp_path, "e", environ={})
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "./mlruns"])
def test_plain_files_are_refused_with_what_would_do(tmp_path: Path, uri: str) -> None:
    with pytest.raises(StoreError, match=r"no runs in plain files any more.*use sqlite:///"):
        Tracker.open(uri, tmp_path, "e", environ={})


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/mlflow.db cannot be used: (Not a directory|File exists)"):
        Tracker.open(None, tmp_path / "file", "e", environ={})
    (tmp_path / "bad.db").write_text("no database at all, but long enough to be taken for a damaged one" * 30)
    with pytest.raises(StoreError, match=r"bad.db cannot be used: file is not a database"):
        Tracker.open(f"sqlite:///{tmp_path}/bad.db", tmp_path, "e", environ={})


FIRST = """
import sys
from pathlib import Path
import mlflow
from orchestrator.tracking.client import connect
print("ready", flush=True)
sys.stdin.readline()
print(connect(f"sqlite:///{sys.argv[1]}/mlflow.db", sys.argv[2], home=Path(sys.argv[1])).experiment_id)
"""


@pytest.mark.slow
def test_two_first_commands_make_one_database(tmp_path: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST, str(tmp_path / "home"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(set(ended)) == 2


def test_reading_makes_nothing(tmp_path: Path, tracking_home: Path, opened: Opener) -> None:
    opened()
    with pytest.raises(StoreError, match="there is no store"):
        Tracker.open(None, tmp_path, "e", environ={}, create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match=r"no experiment 'nowhere' in .*It has: .*test_reading_makes_nothing"):
        Tracker.open(None, tracking_home, "nowhere", environ={}, create=False)


def test_a_deleted_experiment_is_not_written_into(opened: Opener) -> None:
    tracker = opened()
    tracker._at.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(StoreError, match="was deleted: restore it or name another"):
        opened()


def test_nothing_is_said_while_all_goes_well(
    opened: Opener, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    tracker = opened()
    tracker.parent("sweep", sweep_key="k", params={})
    tracker.settle({KEYS[0]: outcome(KEYS[0])})
    tracker.flush()
    tracker.end_parent("finished")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_names_and_parameters_are_for_people() -> None:
    fields = {"width": 64, "data": {"name": "sotu", "fraction": 0.1}, "betas": [0.9, 0.95]}
    trial = {
        "lr": 2e-3,
        "batch_tokens": 1024,
        "tokens": 262144,
        "seed": 0,
        "precision": "float32",
        "workload": {"name": "gpt", "version": 2, "fields": fields, "source": "abc"},
        "schedule": {"name": "constant", "fields": {}, "source": ""},
    }
    card = card_of(trial)
    assert card.name == "lr2e-3 B1024 T262k s0"
    assert card_of({**trial, "label": "weight_decay 0.1"}).name == "lr2e-3 B1024 T262k s0 weight_decay 0.1"
    assert card.params == {
        "lr": "0.002",
        "batch_tokens": "1024",
        "tokens": "262144",
        "seed": "0",
        "precision": "float32",
        "workload.name": "gpt",
        "workload.width": "64",
        "workload.data.name": "sotu",
        "workload.data.fraction": "0.1",
        "workload.betas": "[0.9, 0.95]",
        "schedule.name": "constant",
    }
    assert card.tags == {"source.workload": "abc"}
    assert [human(x) for x in (5, 999, 2048, 1048576, 2.5e9, 3e12)] == ["5", "999", "2048", "1.05M", "2.5G", "3T"]
    assert [short_float(x) for x in (1.0, 0.00316, 123.0)] == ["1e0", "3.16e-3", "1.23e2"]


def test_credentials_are_cut_out_of_any_text() -> None:
    for user, password in itertools.product(("ada", "a%40b"), ("s:3/cret", "")):
        text = redact(f"cannot open http://{user}:{password.replace('/', '%2F')}@host:1/x\n and so on")
        assert text == "cannot open http://***@host:1/x and so on"
