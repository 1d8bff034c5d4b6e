"""Ray Tune runs the rows: a searcher that hands them out, a callback that takes their reports, one Tuner."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.driver import Driver
from orchestrator.rows.trainable import Row
from sweeps.errors import ConfigError
from sweeps.spec import Resources, Trial

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # curves go to the tracker
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: rows save first
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",  # nothing is ever restored from Tune's own snapshots
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a row's reports are a list, no top-level metric
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # rows that may wait for a place; for a searcher Tune allows but one
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a user's relative paths mean the folder the sweep was started in
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

WORKER = {
    "OMP_NUM_THREADS": "1",  # two threads change the bits
    # glibc gives freed memory back at once and faults it in again at the next step: up to a third of a CPU run's time
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


# of a traceback: the exception is the first line after it that is not indented
FRAME = re.compile(r'  File ".*", line \d+')


class _Unsaved:
    """Something Tune pickles into its own snapshots, which are never read: nothing of ours goes there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class RowSearcher(_Unsaved, Searcher):
    """Hands out the driver's rows."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(metric="runs", mode="min")
        self._driver = driver

    def suggest(self, trial_id: str) -> Any:
        """Return the next row, None if there is none now, FINISHED if there never will be."""
        row = self._driver.next_row()
        if row is None and self._driver.exhausted:
            return Searcher.FINISHED
        return None if row is None else {"row": json.dumps(row)}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the callback has the result unflattened."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the sweep's state is its outcomes."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class RowCallback(_Unsaved, tune.Callback):
    """Hands the rows' reports to the driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take a report."""
        self._driver.on_messages(result.get("runs", ()))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take that a row crashed and will be tried again."""
        text = _error_of(trial)
        self._driver.on_crash(_keys(trial), _why(text), details=text, final=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take that a row crashed once too often."""
        text = _error_of(trial)
        self._driver.on_crash(_keys(trial), _why(text), details=text, final=True)


def _keys(trial: Any) -> list[str]:
    return [Trial.from_json(record).key for record in json.loads(trial.config["row"])["trials"]]


def _error_of(trial: Any) -> str:
    """Return what Tune wrote of all the crashes of a row, tracebacks and all."""
    file = trial.error_file
    return Path(file).read_text() if file is not None and Path(file).exists() else ""


def _why(text: str) -> str:
    """Return what went wrong in a row: the last exception, by the first line of its message and the last one."""
    if "ActorDiedError" in text or not text.strip():
        return "its process ended unexpectedly"
    lines = [line for line in text.splitlines() if line.strip()]
    for frame in reversed([i for i, line in enumerate(lines) if FRAME.match(line)]):  # a message may hold one too
        for line in lines[frame + 1 :]:
            if not line[0].isspace():
                first, last = line.strip(), lines[-1].strip()
                return first if first == last else f"{first} ... {last}"
    return lines[-1].strip()


@contextlib.contextmanager
def cluster(resources: Resources) -> Iterator[None]:
    """Join the Ray cluster named, or start one of this machine for as long as the block lasts.

    A cluster this process already joined is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=resources.address or "local",
            include_dashboard=False if resources.address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=None if resources.gpus else {"env_vars": WORKER},
        )
    except ConnectionError as error:
        if resources.address is None:
            raise
        raise ConfigError(f"resources.address: no Ray cluster at {resources.address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _rows_at_once(resources: Resources) -> int:
    """Return how many rows the cluster runs at once, as it is now."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    asked = {"CPU": resources.cpus, "GPU": resources.gpus}
    fitting = [int(there.get(name, 0.0) / share) for name, share in asked.items() if share]
    return max(1, min([*fitting, *([] if resources.concurrent is None else [resources.concurrent])]))


def run_rows(driver: Driver) -> None:
    """Run rows until the driver has no more; returns when all have ended."""
    resources = driver.sweep.resources
    driver.rows_at_once = _rows_at_once(resources)
    folder = tempfile.mkdtemp(prefix="powersweep-tune-")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a crash is told by the driver, in a line
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        tuner = tune.Tuner(
            tune.with_resources(Row, {"cpu": resources.cpus, "gpu": resources.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=RowSearcher(driver),
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=resources.concurrent,
                trial_name_creator=lambda trial: f"row-{trial.trial_id}",
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="rows",
                storage_path=folder,
                verbose=0,
                callbacks=[RowCallback(driver)],
                failure_config=tune.FailureConfig(max_failures=resources.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
