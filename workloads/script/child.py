"""The process a script runs in: `python -m workloads.script.child (--target MODULE:FUNCTION | --path FILE)`.

It ends when its parent does, however the parent ends: the parent holds the other end of its standard input. Two
processes never run one trial at once: a lock in the folder belongs to the living one.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

from workloads.script import api

LOCK_FILE = "lock"
LOCK_SECONDS = 30.0  # how long an earlier process of the same trial may take to die


def main(arguments: list[str]) -> None:
    """Run what the arguments name, and note its end."""
    kind, name = arguments
    threading.Thread(target=_die_with, args=(_take_stdin(),), daemon=True).start()
    session = api.session()
    lock = _lock(session.folder / LOCK_FILE)
    try:
        _run(kind, name)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise
    session.end()
    lock.close()


def _run(kind: str, name: str) -> None:
    if kind == "--path":
        sys.argv = [name]
        sys.path.insert(0, str(Path(name).resolve().parent))
        runpy.run_path(name, run_name="__main__")
        return
    module, _, function = name.partition(":")
    target = getattr(importlib.import_module(module), function)
    target(api.trial(), api.report, api.checkpoint_folder())


def _take_stdin() -> int:
    """Return the descriptor of standard input, and leave an empty one in its place."""
    lifeline = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return lifeline


def _die_with(lifeline: int) -> None:
    """End this process and its children once the other end of the lifeline is closed."""
    while os.read(lifeline, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _lock(path: Path) -> IO[str]:
    """Return the lock of a trial's folder, held as long as the file stays open."""
    file = path.open("w")
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise RuntimeError(f"another process still runs this trial: {path} is locked") from None
            time.sleep(0.05)
        else:
            return file


if __name__ == "__main__":
    main(sys.argv[1:])
