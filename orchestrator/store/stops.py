"""The file by which a driver tells the process that trains a trial to end it, wherever that runs."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.store.folders import TrialStore
from sweeps.agenda import Stopped

TOLD_FILE = "stop.json"  # in a trial's folder


def write_stop(store: TrialStore, stop: Stopped) -> None:
    """Tell the process that trains this trial, now or later, to end it. Raises as every write of a `TrialStore`."""
    store.write_json(TOLD_FILE, stop.to_json())


def read_stop(folder: Path) -> Stopped | None:
    """Return what was decided of the trial of this folder; None if nothing was, or the file is corrupt."""
    try:
        return Stopped.from_json(json.loads((folder / TOLD_FILE).read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
