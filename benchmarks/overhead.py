"""What one trial costs beyond its training: ours against stock Ray Tune, side by side in one run.

(a) our Tune part (rows, store, outcomes, agenda; nothing tracked) against stock Tune with `reuse_actors`, no loggers;
(b) all of ours, with MLflow on SQLite, against the same stock with `MLflowLoggerCallback` on SQLite.

Trials are as good as empty: one step of a quadratic for us, one report of the same five metrics and as many parameters
for stock. Sides alternate; prints milliseconds a trial (median of the repeats) and the ratios, then a JSON line.

    python benchmarks/overhead.py --trials 100 1000 --repeats 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.config import load_sweep
from orchestrator.driver import Driver
from orchestrator.progress import Progress
from orchestrator.rows import cluster, run_rows
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.lease import Lease
from orchestrator.tracking import Tracker
from sweeps.agenda import Agenda

METRICS = {"validation/loss": 1.0, "train/loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 1e5}
PARAMETERS = 20
SWEEP = Path(__file__).parent / "overhead.yaml"


class Silent:
    """A console that says nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def update(self, text: str) -> None:
        """Say nothing."""


class Untracked:
    """A tracker that keeps nothing, for side (a)."""

    def begin(self, key: str, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Keep nothing."""

    def log(self, key: str, points: Sequence[Any]) -> None:
        """Keep nothing."""

    def end(self, key: str, outcome: str, tags: Mapping[str, str]) -> None:
        """Keep nothing."""

    def flush(self) -> None:
        """Keep nothing."""


class Empty(tune.Trainable):
    """A stock trainable that reports once; it brings torch in, as every trainable of a model does."""

    def setup(self, config: dict[str, Any]) -> None:
        """Do nothing but import torch."""
        import torch

        torch.set_num_threads(1)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Allow the actor to be reused."""
        return True

    def step(self) -> dict[str, Any]:
        """Report and end."""
        return {**METRICS, "done": True}


def stock(trials: int, folder: Path, *, mlflow: bool) -> float:
    """Return seconds for stock Tune to run `trials` empty trials."""
    callbacks = []
    if mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks = [MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/stock.db", experiment_name="stock")]
    tuner = tune.Tuner(
        tune.with_resources(Empty, {"cpu": 1}),
        param_space={f"field_{i}": tune.uniform(0, 1) for i in range(PARAMETERS)},
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=str(folder / "tune"),
            verbose=0,
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    started = time.monotonic()
    tuner.fit()
    return time.monotonic() - started


def ours(trials: int, folder: Path, *, mlflow: bool) -> float:
    """Return seconds for us to run `trials` trials of one step, until all is in MLflow."""
    loaded = load_sweep(str(SWEEP), [f"axes.lr.points={trials}"], cwd=Path.cwd(), environ={})
    store = SweepStore(folder, loaded.sweep.experiment)
    store.check_writable()
    with contextlib.ExitStack() as stack:
        lease = Lease.acquire(store.folder, holder="overhead")
        stack.callback(lease.release)
        tracker: Any = Untracked()
        if mlflow:
            opened = Tracker.open(None, home=folder, experiment=loaded.sweep.experiment, environ={})
            tracker = stack.enter_context(contextlib.closing(opened))
            tracker.parent(loaded.sweep.name, sweep_key=loaded.sweep.key, params={})
        agenda = Agenda(loaded.sweep, chooser_of(loaded.sweep, journal=folder / "journal"), {})
        progress = Progress(Silent(), store.folder)
        driver = Driver(
            loaded.sweep, agenda=agenda, store=store, tracker=tracker, fence=lease.fence, progress=progress, after=list
        )
        started = time.monotonic()
        run_rows(driver)
        tracker.flush()
        seconds = time.monotonic() - started
    if driver.tally.finished != trials:
        raise RuntimeError(f"{driver.tally} of {trials} trials: {driver.error}")
    return seconds


def compare(trials: int, repeats: int) -> dict[str, Any]:
    """Return milliseconds a trial of the four sides, and the two ratios."""
    sides: dict[str, Callable[[Path], float]] = {
        "stock": lambda folder: stock(trials, folder, mlflow=False),
        "ours, Tune part": lambda folder: ours(trials, folder, mlflow=False),
        "stock + MLflow": lambda folder: stock(trials, folder, mlflow=True),
        "ours + MLflow": lambda folder: ours(trials, folder, mlflow=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(side(Path(folder)))
                print(f"  {trials} trials, {name}: {seconds[name][-1]:.2f} s", flush=True)
    ms = {name: 1000 * statistics.median(values) / trials for name, values in seconds.items()}
    return {
        "trials": trials,
        "repeats": repeats,
        "ms_a_trial": {name: round(value, 2) for name, value in ms.items()},
        "a": round(ms["ours, Tune part"] / ms["stock"], 3),
        "b": round(ms["ours + MLflow"] / ms["stock + MLflow"], 3),
    }


def main() -> None:
    """Compare at each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("ray").setLevel(logging.ERROR)
    with cluster(load_sweep(str(SWEEP), [], cwd=Path.cwd(), environ={}).sweep.resources):
        with tempfile.TemporaryDirectory() as folder:
            ours(4, Path(folder), mlflow=True)  # imports and first database, not counted
        for trials in options.trials:
            row = compare(trials, options.repeats)
            print(f"{trials} trials: (a) {row['a']} x stock, (b) {row['b']} x stock with MLflow")
            print(json.dumps(row))


if __name__ == "__main__":
    main()
