"""Runs one `powersweep run` that dies by SIGKILL in a chosen phase; used by kill.py.

python benchmarks/kill_driver.py PHASE NTH SWEEP
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

PHASES = ("creating", "before checkpoint", "after checkpoint", "flush", "growth", "fit", "report", "random")
DRIVER = "POWERSWEEP_KILL_DRIVER"
IN_WORKER = "POWERSWEEP_KILL_IN_WORKER"


def die() -> None:
    """End the driver, as the machine would."""
    os.kill(int(os.environ.get(DRIVER, os.getpid())), signal.SIGKILL)


def deadly(function: Callable[..., Any], nth: int, *, before: bool, counts: Callable[[Any], bool] = bool) -> Any:
    """Return the function, killing the driver at its nth call, before or after it does its work."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if before:
            calls += 1
            if calls == nth:
                die()
        result = function(*args, **kwargs)
        if not before and (counts is bool or counts(result)):
            calls += 1
            if calls == nth:
                die()
        return result

    return wrapped


def arm_worker() -> None:
    """Arm a Ray worker, if its phase is one of a worker."""
    phase, _, nth = os.environ.get(IN_WORKER, "").partition(":")
    if phase:
        from orchestrator.store import TrialStore

        armed = deadly(TrialStore.save_checkpoint, int(nth), before=phase == "before checkpoint")
        TrialStore.save_checkpoint = armed


def arm_driver(phase: str, nth: int) -> None:
    """Arm this process."""
    if phase in ("creating", "flush"):
        from mlflow import MlflowClient

        name = {"creating": "create_run", "flush": "log_batch"}[phase]
        setattr(MlflowClient, name, deadly(getattr(MlflowClient, name), nth, before=nth % 2 == 0))
    elif phase == "growth":
        from sweeps.agenda import choosers

        choosers.grown_lrs = deadly(choosers.grown_lrs, nth, before=False, counts=lambda lrs: len(lrs) > 0)
    elif phase == "fit":
        import orchestrator.results

        orchestrator.results.fit_law = deadly(orchestrator.results.fit_law, 1, before=nth % 2 == 0)
    elif phase == "report":
        from orchestrator.tracking import Tracker

        Tracker.log_report = deadly(Tracker.log_report, 1, before=nth % 2 == 0)


def main() -> None:
    """Arm this process and its workers, then run the sweep."""
    phase, nth, *sweep = sys.argv[1:]
    os.environ[DRIVER] = str(os.getpid())
    environment = {DRIVER: str(os.getpid()), "OMP_NUM_THREADS": "1"}
    if phase.endswith("checkpoint"):
        environment[IN_WORKER] = f"{phase}:{nth}"
    import ray

    from orchestrator.rows.tuner import QUIET

    os.environ.update(QUIET)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment, "worker_process_setup_hook": arm_worker},
    )
    arm_driver(phase, int(nth))
    from orchestrator.cli import main as powersweep

    sys.argv = ["powersweep", "run", *sweep]
    powersweep()


if __name__ == "__main__":
    main()
