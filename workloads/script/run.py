"""A run whose training loop is the user's own, in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workloads.script import api
from workloads.script.workload import Script

if TYPE_CHECKING:
    from torch import Tensor

    from workloads.base import JsonDict, Point
    from workloads.run import RunSpec

STATE_VERSION = 1
LR_SAMPLES = 4096
POLL_SECONDS = 0.02
GRACE_SECONDS = 5.0  # between being asked to end and being killed
ERROR_LINES = 12


class ScriptError(RuntimeError):
    """A script that crashed or ended before its horizon; the message ends with the last lines it wrote."""


class ScriptRun:
    """A training script under way, with the interface of `workloads.run.Run`.

    The process starts at the first `advance` and lives between calls. Its reports are in the folder: a run that was
    killed and is started again in the same folder keeps them all. Nothing is packed, forked or compiled.

    Attributes:
        status: "running", "finished" or "diverged"; `reason` says why it diverged.
        points: the whole curve so far, all of it finite.
        exceeded: of a run that diverged on a finite loss, the absurd factor that the loss exceeded.
    """

    def __init__(self, spec: RunSpec, *, folder: Path, schedule: Mapping[str, Any] | None = None) -> None:
        self.spec = spec
        self.folder = folder.absolute()
        self.status = "running"
        self.reason = ""
        self.exceeded: float | None = None
        self.points: list[Point] = []
        self._script = cast(Script, spec.workload)
        self._schedule = dict(schedule or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._opened = False
        self._offset = 0  # bytes of the reports that have been read
        self._records: deque[dict[str, Any]] = deque()
        self._ended = False  # the script has noted its end
        self._errors_from = 0

    @property
    def tokens(self) -> int:
        """Tokens of the last report."""
        return self.points[-1].tokens if self.points else 0

    @property
    def step(self) -> int:
        """Optimizer steps of the last report."""
        return self.points[-1].step if self.points else 0

    def advance(self, *, deadline: float | None = None, clock: Callable[[], float] = time.monotonic) -> Point | None:
        """Wait for the next report and return its point; that of the horizon comes once the script has ended.

        Args:
            deadline: on `clock`; once it has passed the wait is over, while the script goes on.
            clock: seconds.

        Returns:
            The point, or None: the deadline came first, the run diverged, or it is already over (see `status`).

        Raises:
            ScriptError: the script crashed, or ended before the horizon.
        """
        while self.status == "running":
            self._open()
            over = self._over()  # before reading: what is written before the end is then surely read
            self._read()
            record = self._next_record()
            if record is not None and not self._judge(record):
                break
            if record is not None and (record["tokens"] < self.spec.tokens or over):
                return self._take(record, finished=record["tokens"] >= self.spec.tokens)
            if over:
                self._fail()
            if deadline is not None and clock() >= deadline:
                break
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_SECONDS)
        return None

    def state(self) -> tuple[dict[str, Tensor], JsonDict]:
        """Return the curve so far; the script keeps its own checkpoints in the folder."""
        points = [[p.tokens, p.step, p.timestamp, dict(p.metrics)] for p in self.points]
        return {}, {"version": STATE_VERSION, "status": self.status, "reason": self.reason, "points": points}

    def load(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Go on from what `state` returned. Raises ValueError for the state of another kind of run."""
        from workloads.base import Point

        del tensors
        if meta.get("version") != STATE_VERSION or "status" not in meta:
            raise ValueError(f"state: must be of a script's run, version {STATE_VERSION}, got {sorted(meta)}")
        self.close()
        self.status, self.reason = meta["status"], meta["reason"]
        self.points = [Point(*point) for point in meta["points"]]
        if self.status == "finished" and self.tokens < self.spec.tokens:
            self.status = "running"  # the horizon has moved on

    def close(self) -> None:
        """End the process, if there is one: asked first, killed after a grace, and all its children with it."""
        process, self._process = self._process, None
        self._opened = False
        if process is None:
            return
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _open(self) -> None:
        """Read the reports there are, and start the script unless they are whole."""
        if self._opened:
            return
        self._opened, self._offset, self._ended = True, 0, False
        self._records.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.folder / api.REPORTS_FILE)
        self._read()
        whole = self._ended and any(record["tokens"] >= self.spec.tokens for record in self._records)
        if not whole:
            self._start()

    def _start(self) -> None:
        temporary = self.folder / f"{api.TRIAL_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(dataclasses.asdict(self._trial())))
        temporary.replace(self.folder / api.TRIAL_FILE)
        environment = dict(os.environ)
        environment[api.FOLDER_VARIABLE] = str(self.folder)
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        if self.spec.device == "cpu":
            environment.setdefault("OMP_NUM_THREADS", "1")  # two threads change the bits
        script = self._script
        what = ["--target", script.target] if script.target is not None else ["--path", str(script.path)]
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "stderr.txt").open("ab") as errors:
            self._errors_from = errors.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workloads.script.child", *what],
                stdin=subprocess.PIPE,  # held open: the child ends when it closes
                stdout=out,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )

    def _trial(self) -> api.ScriptTrial:
        from workloads.optim import OPTIMIZERS

        spec = self.spec
        name = next((n for n, cls in OPTIMIZERS.items() if cls is type(spec.optimizer)), type(spec.optimizer).__name__)
        steps = max(spec.tokens // spec.batch_tokens, 1)
        count = min(steps, LR_SAMPLES)
        starts = sorted({round(i * (steps - 1) / max(count - 1, 1)) * spec.batch_tokens for i in range(count)})
        return api.ScriptTrial(
            lr=spec.peak_lr,
            batch_tokens=spec.batch_tokens,
            tokens=spec.tokens,
            seed=spec.seed,
            marks=spec.marks,
            optimizer={"name": name, **dataclasses.asdict(cast(Any, spec.optimizer))},
            schedule=self._schedule,
            settings=dict(self._script.settings),
            precision=spec.precision,
            device=spec.device,
            lr_samples=tuple((tokens, spec.lr_at(tokens)) for tokens in starts),
        )

    def _over(self) -> bool:
        """Whether the script has ended well or there was no need to start it."""
        if self._process is None:
            return True
        return self._process.poll() is not None

    def _read(self) -> None:
        """Take the whole lines that are new in the reports."""
        try:
            with (self.folder / api.REPORTS_FILE).open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        for line in content.splitlines():
            record = json.loads(line)
            self._ended = self._ended or "end" in record
            if "tokens" in record:
                self._records.append(record)

    def _next_record(self) -> dict[str, Any] | None:
        """Return the next report beyond the tokens reached, and leave it in its place."""
        while self._records and self._records[0]["tokens"] <= self.tokens:
            self._records.popleft()
        return self._records[0] if self._records else None

    def _judge(self, record: Mapping[str, Any]) -> bool:
        """Whether a report is of a healthy run; the first that is not ends the run."""
        metrics = record["metrics"]
        sick = [name for name in api.MAY_DIVERGE if not math.isfinite(metrics.get(name, 0.0))]
        if sick:
            self._diverge(f"{sick[0]} is not finite at {record['tokens']} tokens")
            return False
        if record["tokens"] in self.spec.asides:
            return True
        first = next((p.metrics[api.LOSS] for p in self.points if p.tokens not in self.spec.asides), math.inf)
        limit = self.spec.absurd_factor * first
        if first > 0 and metrics[api.LOSS] > limit:
            self.exceeded = self.spec.absurd_factor
            self._diverge(f"{api.LOSS} is {metrics[api.LOSS]:.6g} at {record['tokens']} tokens, above {limit:.6g}")
            return False
        return True

    def _diverge(self, reason: str) -> None:
        self.status, self.reason = "diverged", reason
        self.close()

    def _take(self, record: Mapping[str, Any], *, finished: bool) -> Point:
        """Append a report to the curve."""
        from workloads.base import Point

        if finished:
            if self._process is not None and self._process.returncode != 0:
                self._fail()
            self.status = "finished"
            self.close()
        point = Point(record["tokens"], record["step"], record["time"], record["metrics"])
        self.points.append(point)
        return point

    def _fail(self) -> None:
        """Raise the error of a script that ended too early."""
        code = self._process.returncode if self._process is not None else 0
        what = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        reached = max([self.tokens, *(record["tokens"] for record in self._records)])
        with (self.folder / "stderr.txt").open("rb") as file:
            file.seek(self._errors_from)
            lines = file.read()[-8192:].decode(errors="replace").strip().splitlines()[-ERROR_LINES:]
        self.close()
        hint = [f"its last report must be at trial().tokens = {self.spec.tokens}"] if code == 0 else []
        message = f"{self._script.label} {what} after {reached} of {self.spec.tokens} tokens:"
        raise ScriptError("\n".join([message, *hint, *lines]))


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process and its children; nothing if they are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line whose writer was killed."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
