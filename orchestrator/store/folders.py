"""The folder of a sweep: checkpoints, outcomes and the work log of each trial. What is there is there whole.

<home>/sweeps/<experiment>/
    lease/              who drives (orchestrator.store.lease)
    index.parquet       a cache of all outcomes (orchestrator.store.index)
    stop                there while the driver is asked to stop
    trials/<key>/
        <tokens>.<fence>.<crc32>.safetensors    the two newest checkpoints
        stop.json                               that a stopper ends the trial (orchestrator.store.stops)
        outcome.json                            how the trial ended
        work.log                                tokens really trained, append-only
        error.txt                               the tracebacks of its crashes, if there were any
        script/                                 of a user's own script: its reports and its checkpoints
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.store.lease import check_fence, reading
from sweeps.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor

OUTCOME_FILE = "outcome.json"
STOP_FILE = "stop"
WORK_FILE = "work.log"
SCRIPT_FOLDER = "script"
KEPT_CHECKPOINTS = 2  # the newest, and one to fall back on should it be corrupt
PROBE_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
CHECKPOINT = re.compile(r"(\d+)\.(\d+)\.([0-9a-f]{8})\.safetensors")

log = logging.getLogger(__name__)


def home(environ: Mapping[str, str]) -> Path:
    """Return where everything is kept: POWERSWEEP_HOME, else ~/.powersweep; absolute. Raises StoreError."""
    place = environ.get("POWERSWEEP_HOME") or "~/.powersweep"
    try:
        return Path(place).expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(f"POWERSWEEP_HOME: must be a folder, got {place}, whose user has no home here") from error


class SweepStore:
    """The folder of all trials of an experiment. Nothing is made before it is needed."""

    def __init__(self, root: Path, experiment: str) -> None:
        self.folder = root / "sweeps" / experiment

    @property
    def trials(self) -> Path:
        """The folder of the trials' folders."""
        return self.folder / "trials"

    def trial(self, key: str, *, fence: int) -> TrialStore:
        """Return the store of one trial, for a writer under this fencing number."""
        return TrialStore(self.trials / key, fence=fence)

    def keys(self) -> list[str]:
        """Return the keys that have a folder, sorted."""
        with reading(self.trials):
            try:
                return sorted(entry.name for entry in os.scandir(self.trials) if entry.is_dir())
            except FileNotFoundError:
                return []

    def check_writable(self) -> None:
        """Raise StoreError if the folder cannot be made or written, or the disk is full; leave nothing behind.

        Where there is no folder yet, the one it would be made in is tried: drivers that start at once do not meet.
        """
        with _writing(self.folder):
            there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
            with tempfile.TemporaryFile(dir=there) as probe:
                probe.write(b"\0" * PROBE_BYTES)
                probe.flush()
                os.fsync(probe.fileno())

    def request_stop(self) -> None:
        """Ask the driver and its rows to save and end."""
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / STOP_FILE).touch()

    def stop_requested(self) -> bool:
        """Return whether a stop has been asked for."""
        return (self.folder / STOP_FILE).exists()

    def clear_stop(self) -> None:
        """Forget a request to stop; a driver does so when it starts."""
        with _writing(self.folder):
            (self.folder / STOP_FILE).unlink(missing_ok=True)


class TrialStore:
    """The folder of one trial, for the process that trains it.

    Every write raises FencedError if a later driver has taken over the sweep, and StoreError, with the path, if the
    disk is full or read-only.

    Args:
        folder: `trials/<key>` in the sweep's folder.
        fence: the fencing number of the driver this process works for.
    """

    def __init__(self, folder: Path, *, fence: int) -> None:
        self.folder = folder
        self._fence = fence

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write a checkpoint and return its path; keep the two newest.

        Args:
            tensors: any devices; tensors that share memory are stored each by itself.
            meta: plain JSON, with `tokens` among it: the run's position, which orders checkpoints.
        """
        from safetensors.torch import save_file

        self._check()
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _temporary(self.folder) as temporary:
                save_file(_separate(tensors), temporary, metadata={"meta": json.dumps(meta)})
                name = f"{int(meta['tokens']):015d}.{self._fence:06d}.{_crc32(temporary):08x}.safetensors"
                self._check()
                _land(temporary, self.folder / name)
            for old in self._checkpoints()[KEPT_CHECKPOINTS:]:
                old.unlink(missing_ok=True)
        return self.folder / name

    def newest_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return (tensors on the CPU, meta) of the newest sound checkpoint, None if there is none."""
        from safetensors import SafetensorError, safe_open

        for path in self._checkpoints():
            try:
                if f"{_crc32(path):08x}" != path.name.split(".")[2]:
                    raise ValueError("its checksum differs")
                with safe_open(path, framework="pt") as file:
                    meta: dict[str, Any] = json.loads(file.metadata()["meta"])
                    return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118 - no mapping
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                log.warning("checkpoint %s is corrupt (%s): taking the one before", path, error)
        return None

    def drop_checkpoints(self, *, script_too: bool = False) -> None:
        """Remove all checkpoints: the outcome holds what is needed of them. Those a user's script kept only if told."""
        self._check()
        with _writing(self.folder):
            for path in self._checkpoints():
                path.unlink(missing_ok=True)
            if script_too and (self.folder / SCRIPT_FOLDER).is_dir():
                shutil.rmtree(self.folder / SCRIPT_FOLDER)

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoints, newest first."""
        try:
            names = [path.name for path in self.folder.iterdir() if CHECKPOINT.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(names, key=_order, reverse=True)]

    # -- the outcome ----------------------------------------------------------------------------------------------

    def write_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Write how the trial ended, in place of an earlier outcome: plain JSON, see `orchestrator.store.index`."""
        self.write_json(OUTCOME_FILE, outcome)

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a file of plain JSON, whole or not at all."""
        self._check()
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _temporary(self.folder) as temporary:
                temporary.write_text(json.dumps(record))
                self._check()
                _land(temporary, self.folder / name)

    def read_outcome(self) -> dict[str, Any] | None:
        """Return how the trial ended, None if it has not (or if the file is corrupt: the trial then runs again)."""
        return read_outcome(self.folder / OUTCOME_FILE)

    # -- the work log ---------------------------------------------------------------------------------------------

    def append_work(self, from_tokens: int, to_tokens: int) -> None:
        """Add to the log that these tokens were trained, by one write to the end of the file."""
        if from_tokens == to_tokens:
            return
        self._check()
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / WORK_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, f"{from_tokens} {to_tokens} {self._fence}\n".encode())
            finally:
                os.close(handle)

    def read_work(self) -> list[tuple[int, int]]:
        """Return the spans (from_tokens, to_tokens) really trained, in order; a torn last line is left out."""
        try:
            lines = (self.folder / WORK_FILE).read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [(int(first), int(last)) for first, last, _ in (line.split() for line in lines)]

    def _check(self) -> None:
        check_fence(self.folder.parent.parent, self._fence)


def read_outcome(path: Path) -> dict[str, Any] | None:
    """Return the outcome in a file; None if there is none, or, with a warning, if it is corrupt."""
    try:
        outcome = json.loads(path.read_bytes())
        if isinstance(outcome, dict) and "outcome" in outcome:
            return outcome
        problem = "it holds no outcome"
    except FileNotFoundError:
        return None
    except ValueError as error:
        problem = str(error)
    log.warning("outcome %s is corrupt (%s): the trial counts as not ended", path, problem)
    return None


def _order(name: str) -> tuple[int, int]:
    tokens, fence = name.split(".")[:2]
    return int(tokens), int(fence)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, no two in one memory: safetensors refuses shared storage."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        result[name] = flat.clone() if place in seen else flat
        seen.add(place)
    return result


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Yield an empty file, removed at the end if it is still there, as are those of writers that were killed."""
    for left in folder.glob(".writing.*"):
        left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".writing.")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _land(temporary: Path, path: Path) -> None:
    """Give a file its name once it is on disk whole; the name is on disk too when this returns."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failed write into a StoreError that names the place."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
