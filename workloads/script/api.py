"""What a training script sees: its trial, where to report, and where to keep its checkpoints.

Standard library only. One folder joins the script and its run: `trial.json` goes in, `reports.jsonl` comes out (it
outlives both, so no report is lost when either is killed), and `checkpoint/` is the script's own.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "POWERSWEEP_SCRIPT_FOLDER"
TRIAL_FILE, REPORTS_FILE, CHECKPOINT_FOLDER = "trial.json", "reports.jsonl", "checkpoint"
LOSS, TRAIN_LOSS = "validation/loss", "train/loss"
OWN_NAMES = {"train_loss": TRAIN_LOSS, "lr": "lr", "grad_norm": "grad_norm"}  # the rest is of the validation set
MAY_DIVERGE = (LOSS, TRAIN_LOSS, "grad_norm")


@dataclass(frozen=True, slots=True)
class ScriptTrial:
    """One training run, resolved.

    Attributes:
        lr: the peak learning rate.
        batch_tokens: tokens of one optimizer step.
        tokens: the horizon: the last report must be at this many tokens.
        seed: of initialisation and data order.
        marks: token counts at which to report, ascending, the last one `tokens`.
        optimizer: {"name": ..., **fields} of the sweep's optimizer.
        schedule: the same of its schedule, {} if unknown; `lr_at` has its values.
        settings: the workload's own `settings`, as the sweep has them.
        precision: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        lr_samples: (tokens, LR) pairs, ascending.
    """

    lr: float
    batch_tokens: int
    tokens: int
    seed: int
    marks: tuple[int, ...]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    settings: Mapping[str, Any]
    precision: str
    device: str
    lr_samples: tuple[tuple[int, float], ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.tokens // self.batch_tokens

    def lr_at(self, tokens: int) -> float:
        """Return the LR of the step that starts after `tokens` tokens.

        Exact at the start of every step where the run has at most 4,096 of them, else interpolated linearly between
        4,096 of them.
        """
        after = bisect.bisect_left(self.lr_samples, (tokens, -math.inf))
        if after == len(self.lr_samples):
            return self.lr_samples[-1][1]
        right_tokens, right_lr = self.lr_samples[after]
        if right_tokens == tokens or after == 0:
            return right_lr
        left_tokens, left_lr = self.lr_samples[after - 1]
        return left_lr + (right_lr - left_lr) * (tokens - left_tokens) / (right_tokens - left_tokens)

    @classmethod
    def read(cls, folder: Path) -> ScriptTrial:
        """Return the trial that a run wrote."""
        record = json.loads((folder / TRIAL_FILE).read_text())
        record["marks"] = tuple(record["marks"])
        record["lr_samples"] = tuple((int(tokens), float(lr)) for tokens, lr in record["lr_samples"])
        return cls(**record)


class Session:
    """The script's end of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trial = ScriptTrial.read(folder)
        self._lock = threading.Lock()
        self._last: tuple[int, float] | None = None  # tokens and time of the last report

    def report(self, tokens: int, loss: float, step: int | None, metrics: Mapping[str, float]) -> None:
        """Append a report to the folder."""
        if not 0 < tokens <= self.trial.tokens:
            raise ValueError(f"tokens: must be above 0 and at most the horizon {self.trial.tokens}, got {tokens}")
        named = {LOSS: float(loss), "lr": self.trial.lr_at(tokens - self.trial.batch_tokens)}
        for name, value in metrics.items():
            named[name if "/" in name else OWN_NAMES.get(name, f"validation/{name}")] = float(value)
        for name, value in named.items():
            if not math.isfinite(value) and name not in MAY_DIVERGE:
                raise ValueError(f"{name}: must be finite, got {value}")
        with self._lock:
            now = time.time()
            if self._last is not None and tokens > self._last[0]:
                named["tokens_per_second"] = (tokens - self._last[0]) / max(now - self._last[1], 1e-9)
            self._last = (tokens, now)
            steps = tokens // self.trial.batch_tokens if step is None else step
            self._append({"tokens": int(tokens), "step": int(steps), "time": now, "metrics": named})

    def end(self) -> None:
        """Note that the script came to its end."""
        with self._lock:
            self._append({"end": True})

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record) + "\n"
        descriptor = os.open(self.folder / REPORTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


@lru_cache(maxsize=1)
def session() -> Session:
    """Return the session of this process. Raises RuntimeError outside a run of powersweep."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise RuntimeError("no trial: this script must be started by powersweep, see docs/extend.md")
    return Session(Path(folder))


def trial() -> ScriptTrial:
    """Return the run that this process has to do."""
    return session().trial


def report(*, tokens: int, loss: float, step: int | None = None, **metrics: float) -> None:
    """Report a point of the curve.

    Reports at or below the tokens of an earlier one are dropped, so a script that starts again may repeat itself.
    Report before you save a checkpoint at the same tokens: then no point can be missing.

    Args:
        tokens: consumed so far; the last report must be at `trial().tokens`.
        loss: on the validation set. A loss that is not finite ends the run as diverged.
        step: optimizer steps so far; None: tokens over batch_tokens.
        metrics: `train_loss`, `lr` and `grad_norm` are known by these names, any other is of the validation set.
            A character that MLflow takes in no name is `_` there: `acc@1` is `acc_1`.

    Raises:
        ValueError: tokens outside the run, or another metric that is not finite.
    """
    session().report(tokens, loss, step, metrics)


def checkpoint_folder() -> Path:
    """Return the folder for this run's checkpoints; it exists. Write a temporary name, then `os.replace` it."""
    folder = session().folder / CHECKPOINT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def resume_folder() -> Path | None:
    """Return the checkpoint folder if an earlier start of this run left something in it, else None."""
    folder = checkpoint_folder()
    return folder if any(folder.iterdir()) else None
