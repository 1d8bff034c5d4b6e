"""How far a sweep is: shown on the console, and in a file that `status` reads; and Ctrl-C, which stops it there."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from sweeps.agenda import LOSS, Agenda
from sweeps.forks import Family, families

SHOW_SECONDS = 1.0
PROGRESS_FILE = "progress.json"


class Console(Protocol):
    """Where a command speaks to a person."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def update(self, text: str) -> None:
        """Print a line that the next one replaces."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a sweep under way."""

    trials_done: int
    trials: int
    tokens_done: int
    tokens: int
    tokens_per_second: float | None
    eta_seconds: float | None
    best: str

    def line(self) -> str:
        """Return it for people."""
        rate = "" if self.tokens_per_second is None else f", {human(self.tokens_per_second)} tokens/s"
        eta = "" if self.eta_seconds is None else f", about {clock(self.eta_seconds)} left"
        done = f"{self.trials_done}/{self.trials} trials, {human(self.tokens_done)}/{human(self.tokens)} tokens"
        return f"{done}{rate}{eta}{self.best}"


class Progress:
    """Counts tokens and trials as rows report.

    Args:
        console: shown a line at most every second.
        folder: of the sweep; gets the progress file.
    """

    def __init__(self, console: Console, folder: Path) -> None:
        self._console = console
        self._file = folder / PROGRESS_FILE
        self._tokens: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._losses: dict[str, float] = {}
        self._known: list[Family] = []
        self._started = time.monotonic()
        self._shown = 0.0

    def saw(self, key: str, message: Mapping[str, Any]) -> None:
        """Take one run's report."""
        tokens = message["outcome"]["tokens"] if message["outcome"] else message["tokens"]
        if key not in self._first:
            self._first[key] = message["first_tokens"]
        self._tokens[key] = tokens
        for point in message["points"]:
            if LOSS in point["metrics"]:
                self._losses[key] = point["metrics"][LOSS]

    def show(self, agenda: Agenda) -> None:
        """Show how far it is, if the last time was long enough ago."""
        now = time.monotonic()
        if now - self._shown < SHOW_SECONDS:
            return
        self._shown = now
        snapshot = self._snapshot(agenda, now - self._started)
        self._console.update(snapshot.line())
        record = {**{name: getattr(snapshot, name) for name in Snapshot.__slots__}, "pid": os.getpid()}
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._file)

    def end(self) -> None:
        """Remove the progress file: nothing is under way any more."""
        self._file.unlink(missing_ok=True)

    def _snapshot(self, agenda: Agenda, seconds: float) -> Snapshot:
        total = done = trials_done = 0
        for family in self._families(agenda):
            total += family.tokens
            trunk = self._tokens.get(family.key, 0) if len(family.branches) > 1 else 0
            for trial, fork in zip(family.branches, family.forks, strict=True):
                ended = _is_done(agenda, trial.key)
                trials_done += ended
                at = trial.tokens if ended else self._tokens.get(trial.key, 0)
                trunk = max(trunk, min(at, fork))
                done += max(0, at - fork)
            done += min(trunk, max(family.forks))
        worked = sum(tokens - self._first[key] for key, tokens in self._tokens.items())
        rate = worked / seconds if seconds > 2 and worked > 0 else None
        eta = (total - done) / rate if rate else None
        return Snapshot(trials_done, len(agenda.trials), done, total, rate, eta, self._best(agenda))

    def _families(self, agenda: Agenda) -> list[Family]:
        """Return the trials by their trunks; made anew when there are more of them."""
        if sum(len(family.branches) for family in self._known) != len(agenda.trials):
            trials = list(agenda.trials.values())
            self._known = families(trials) if agenda.sweep.forks else [Family((trial,)) for trial in trials]
        return self._known

    def _best(self, agenda: Agenda) -> str:
        ended = [key for key in self._losses if key in agenda.outcomes and key in agenda.trials]
        if not ended:
            return ""
        key = min(ended, key=lambda k: self._losses[k])
        return f"; best loss {self._losses[key]:.4g} at lr {agenda.trials[key].lr:g}"


def _is_done(agenda: Agenda, key: str) -> bool:
    outcome = agenda.outcomes.get(key)
    return outcome is not None and outcome.outcome != "failed"


@contextlib.contextmanager
def interruptible(stop: Callable[[str], None], console: Console) -> Iterator[None]:
    """Turn the first Ctrl-C into a clean stop; the second one ends the process."""

    def first(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop("interrupted")
        console.say("Stopping: the rows save their state (Ctrl-C again ends at once).")
        signal.signal(signal.SIGINT, second)

    def second(number: int, frame: FrameType | None) -> None:
        del number, frame
        os._exit(130)

    try:
        before = signal.signal(signal.SIGINT, first)
    except ValueError:  # not the main thread: someone else owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def human(value: float) -> str:
    """Return a count with three digits and a unit: 1.31M."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5 or unit == "E":
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Return a duration for people: 45 s, 3 min, 2.5 h."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
