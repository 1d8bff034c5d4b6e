"""What tests of whole sweeps share: one Ray, and a folder with a home, a database and a way to run sweeps in it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator import launch
from orchestrator.config import Loaded, load_sweep
from orchestrator.driver import Driver
from orchestrator.progress import Progress
from orchestrator.results import held_out_trials, of_agenda, study
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from orchestrator.store.lease import Lease
from orchestrator.tracking import Tracker
from sweeps.agenda import Agenda

TINY = """
name: tiny
workload: {name: quadratic, dimensions: 128, decades: 1.0, noise: 4.0}
optimizer: {name: sgd}
schedule: {name: wsd, cooldown_fraction: 0.2}
axes:
  lr: {log: [0.1, 1.6], points: 5}
  batch_tokens: [4]
  tokens: [64, 128, 256]
law: {variables: [tokens]}
resources: {cpus: 1, concurrent: 1, lockstep: 1}
"""
SEEN = ("validation/loss", "train/loss", "lr", "grad_norm")
RAY_SECONDS = 300  # a Ray worker takes many seconds to start on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that start Ray workers the time it takes."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.timeout(RAY_SECONDS))


class Heard:
    """A console that remembers the lines that stay."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def update(self, text: str) -> None:
        pass


class NoTracker:
    """Takes what a tracker takes, and keeps nothing."""

    def begin(self, *arguments: Any) -> None: ...

    def log(self, *arguments: Any) -> None: ...

    def end(self, *arguments: Any) -> None: ...


class Lab:
    """A working folder with a sweep, tiny.yaml, and a powersweep home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environ: dict[str, str] = {}
        self.heard = Heard()

    def load(self, *overrides: str, sweep: str = "tiny.yaml") -> Loaded:
        return load_sweep(sweep, overrides, cwd=self.folder, environ=self.environ)

    def run(self, *overrides: str, sweep: str = "tiny.yaml") -> launch.Ended:
        """Run as the command does, Ray and all."""
        loaded = self.load(*overrides, sweep=sweep)
        return launch.run(loaded, home=self.home, environ=self.environ, console=self.heard)

    def train(self, *overrides: str, sweep: str = "tiny.yaml", limit: int = 10**9) -> int:
        """Train here what is missing of a sweep, in its rows but without Ray and MLflow; count the trials."""
        with self.driver(*overrides, sweep=sweep) as driver:
            trained = 0
            while trained < limit and (row := driver.next_row()) is not None:
                self.step_through(driver, row)
                trained += len(row["trials"])
        return trained

    @contextmanager
    def driver(self, *overrides: str, sweep: str = "tiny.yaml") -> Iterator[Driver]:
        """Drive a sweep here, without Ray and MLflow; raises what its driver ended with."""
        loaded = self.load(*overrides, sweep=sweep)
        store = self.store(loaded.sweep.experiment)
        lease = Lease.acquire(store.folder, holder="a test")
        chooser = chooser_of(loaded.sweep, journal=store.folder / "optuna.journal")
        agenda = Agenda(loaded.sweep, chooser, Index.open(store).outcomes())
        checks = iter([lambda: held_out_trials(loaded.sweep, study(loaded.sweep, of_agenda(agenda)))])
        driver = Driver(
            loaded.sweep,
            agenda=agenda,
            store=store,
            tracker=NoTracker(),  # type: ignore[arg-type]
            fence=lease.fence,
            progress=Progress(self.heard, store.folder),
            after=lambda: next(checks, list)(),
        )
        try:
            yield driver
        finally:
            lease.release()
            (store.folder / "progress.json").unlink(missing_ok=True)
        if driver.error is not None:
            raise driver.error

    def step_through(self, driver: Driver, row: dict[str, Any]) -> None:
        """Train a row to its end, as Ray would."""
        from orchestrator.rows.trainable import Row

        seats, done = Row(config={"row": json.dumps(row)}), False
        while not done and driver.error is None:
            result = seats.step()
            done = result["done"]
            driver.on_messages(result["runs"])

    def row(self, trials: Sequence[dict[str, Any]], loaded: Loaded, *, fence: int) -> dict[str, str]:
        """Return the config of a row."""
        row = {
            "trials": list(trials),
            "later": [],
            "folder": str(self.store(loaded.sweep.experiment).folder),
            "fence": fence,
            "forks": loaded.sweep.forks,
            "lockstep": loaded.sweep.resources.lockstep or 1,
            "resources": asdict(loaded.sweep.resources),
            "cwd": str(self.folder),
        }
        return {"row": json.dumps(row)}

    def store(self, experiment: str = "tiny") -> SweepStore:
        return SweepStore(self.home, experiment)

    def outcomes(self, experiment: str = "tiny") -> dict[str, Any]:
        return Index.open(self.store(experiment)).outcomes()

    @staticmethod
    def told(outcomes: Mapping[str, Any]) -> dict[str, Any]:
        """Return how each trial ended, and its curve but for speeds and times."""
        return {
            key: (
                o.outcome,
                o.reason,
                o.tokens,
                o.exceeded,
                o.curve.tokens.tolist(),
                {name: o.curve.metrics[name].tolist() for name in SEEN if name in o.curve.metrics},
            )
            for key, o in outcomes.items()
            if not o.is_trunk
        }

    def law(self, experiment: str = "tiny") -> bytes:
        return (self.store(experiment).folder / "law.json").read_bytes()

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")

    def mlflow_runs(self, experiment: str = "tiny") -> tuple[Any, list[Any]]:
        """Return the parent run and the runs of trials, having checked that no trial and no point is there twice."""
        client = self.client()
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], max_results=5000)
        (parent,) = [run for run in runs if "trial_key" not in run.data.tags]
        children = [run for run in runs if "trial_key" in run.data.tags]
        assert max(Counter(run.data.tags["trial_key"] for run in children).values(), default=1) == 1
        for run in children:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            for name in run.data.metrics:
                steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
                assert len(steps) == len(set(steps)), (run.info.run_name, name, steps)
        return parent, children

    def statuses(self, experiment: str = "tiny") -> Counter[str]:
        """Return how many runs of trials have each status, and of the parent as "parent <status>"."""
        parent, children = self.mlflow_runs(experiment)
        return Counter([run.info.status for run in children] + [f"parent {parent.info.status}"])

    def copy(self, folder: Path) -> Lab:
        """Return a lab with the same home; the artifacts of its MLflow runs stay in the old one."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Lab(folder)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it, to be copied: making one takes seconds."""
    home = tmp_path_factory.mktemp("database")
    with closing(Tracker.open(None, home=home, experiment="unused", environ={})):
        pass
    copy = home / "copy.db"
    with closing(sqlite3.connect(home / "mlflow.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # its write-ahead log included
    return copy


def new_lab(folder: Path, database: Path) -> Lab:
    (folder / "home").mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY)
    shutil.copy(database, folder / "home" / "mlflow.db")
    return Lab(folder)


@pytest.fixture
def lab(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab of a test's own, and the working folder."""
    made = new_lab(tmp_path / "lab", database)
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return made


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests: two processors of this machine."""
    import logging

    import ray

    from orchestrator.rows import WORKER

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {**WORKER, "PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, database: Path, ray_here: None) -> Iterator[tuple[Lab, Any]]:
    """A lab in which the tiny sweep has run, and how it ended; not to be changed: `copy` it."""
    made = new_lab(tmp_path_factory.mktemp("swept") / "lab", database)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        yield made, made.run()
