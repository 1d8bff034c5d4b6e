"""The lease of a sweep: one driver at a time, told apart by a fencing number that only grows.

A claim is a file `lease/<number>.json` in the sweep's folder, made by a hard link, which exactly one of two racing
processes can do. The highest number is the lease; its holder rewrites its own file every few seconds. So no holder can
harm a later one, and a number is never used twice: the last claim stays when it is released.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sweeps.errors import LeaseError, StoreError

STALE_SECONDS = 60.0  # twelve heartbeats; assumed longer than any pause of a live driver
HEARTBEAT_SECONDS = 5.0
FOLDER = "lease"
CLAIM = re.compile(r"([0-9]{6}|[1-9][0-9]{6,})\.json")  # as `_file` writes it

log = logging.getLogger(__name__)


class FencedError(LeaseError):
    """A write by a driver or worker whose lease another driver has taken over."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds, or last held, a sweep.

    Attributes:
        fence: the fencing number.
        holder: what it is, for people: "powersweep run".
        machine: boot and process namespace: where `pid` means something.
        process_start: tells the process from a later one of the same pid; None where the system does not say.
        since, heartbeat: seconds since the epoch.
        released: given back in good order.
    """

    fence: int
    holder: str
    user: str
    host: str
    machine: str
    pid: int
    process_start: str | None
    since: float
    heartbeat: float
    released: bool = False

    def alive(self, *, now: float, stale_seconds: float = STALE_SECONDS) -> bool:
        """Return whether this driver must be taken to be at work."""
        if self.released or now - self.heartbeat > stale_seconds:
            return False
        return self.machine != _machine() or _is_running(self.pid, self.process_start)


class Lease:
    """The right to drive a sweep. Made by `acquire`; a daemon thread keeps it until `release`."""

    def __init__(self, folder: Path, claim: Claim, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._claim = claim
        self._clock = clock
        self._over = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        folder: Path,
        *,
        holder: str,
        clock: Callable[[], float] = time.time,
        stale_seconds: float = STALE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> Lease:
        """Return the lease of the sweep in this folder.

        It is taken over from a driver that has not been heard of for `stale_seconds`, or whose process on this
        machine is gone.

        Args:
            folder: of the sweep; made if it is missing.
            holder: what this driver is, for the message to a second one.
            clock: seconds since the epoch.
            stale_seconds: silence after which a driver is taken to be gone.
            heartbeat_seconds: between signs of life.

        Raises:
            LeaseError: another driver holds it; the message names it.
            StoreError: the folder cannot be written.
        """
        try:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            claim = _claim(folder, holder, clock, stale_seconds)
        except OSError as error:
            raise StoreError(f"{folder / FOLDER}: cannot be written: {error.strerror or error}") from error
        lease = cls(folder, claim, clock)
        lease._thread = threading.Thread(
            target=lease._beat, args=(heartbeat_seconds,), name="powersweep-lease", daemon=True
        )
        lease._thread.start()
        return lease

    @property
    def fence(self) -> int:
        """The fencing number, which every write of this driver's workers carries."""
        return self._claim.fence

    def check(self) -> None:
        """Raise FencedError if another driver has taken over."""
        check_fence(self._folder, self.fence)

    def release(self) -> None:
        """Give the lease back. The next driver need not wait; releasing twice is releasing once."""
        if self._over.is_set():
            return
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost:
            with contextlib.suppress(OSError):  # a store that is gone needs no release: the claim goes stale
                _rewrite(self._folder, replace(self._claim, heartbeat=self._clock(), released=True))

    def _beat(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            try:
                if newest_fence(self._folder) != self.fence:
                    self._lost = True
                    log.warning("another driver has taken over the sweep in %s", self._folder)
                    return
                _rewrite(self._folder, replace(self._claim, heartbeat=self._clock()))
            except (OSError, StoreError) as error:
                log.warning("the lease of %s could not be renewed: %s", self._folder, error)


def read_lease(folder: Path) -> Claim | None:
    """Return the newest claim on the sweep in this folder, released or not; None if there never was one."""
    return _newest(folder)[1]


def newest_fence(folder: Path) -> int:
    """Return the highest fencing number given out for the sweep in this folder, 0 if none."""
    return max(_fences(folder), default=0)


def check_fence(folder: Path, fence: int) -> None:
    """Raise FencedError if a later driver than number `fence` has taken over the sweep in this folder."""
    newest = newest_fence(folder)
    if newest > fence:
        raise FencedError(f"{folder}: driver number {newest} has taken over; number {fence} must not write")


def _newest(folder: Path) -> tuple[int, Claim | None]:
    """Return the highest number given out (0 if none), and its claim (None if it is lost)."""
    with reading(folder / FOLDER):
        while fence := newest_fence(folder):
            try:
                return fence, Claim(**json.loads(_file(folder, fence).read_text()))
            except FileNotFoundError:
                continue  # a later driver has just tidied it away
            except (ValueError, TypeError) as error:
                log.warning("%s is no lease (%s): it counts as released", _file(folder, fence), error)
                return fence, None
    return 0, None


def _claim(folder: Path, holder: str, clock: Callable[[], float], stale_seconds: float) -> Claim:
    while True:
        (fence, last), now = _newest(folder), clock()
        if last is not None and last.alive(now=now, stale_seconds=stale_seconds):
            raise LeaseError(_held(last, now))
        claim = Claim(
            fence=fence + 1,  # of the claim judged, and no other: whoever claims meanwhile takes this very number
            holder=holder,
            user=user_name(),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()),
            since=now,
            heartbeat=now,
        )
        if _link(folder, claim):
            return claim


def _link(folder: Path, claim: Claim) -> bool:
    """Return whether the claim was ours to make; exactly one of two racing drivers gets True."""
    mine = _file(folder, claim.fence)
    temporary = _written(folder, claim)
    try:
        os.link(temporary, mine)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    if newest_fence(folder) != claim.fence:  # ours was an old number, free again because it had been tidied away
        mine.unlink(missing_ok=True)
        return False
    for fence in _fences(folder):
        if fence < claim.fence:
            _file(folder, fence).unlink(missing_ok=True)
    return True


def _rewrite(folder: Path, claim: Claim) -> None:
    _written(folder, claim).replace(_file(folder, claim.fence))


def _written(folder: Path, claim: Claim) -> Path:
    handle, name = tempfile.mkstemp(dir=folder / FOLDER, prefix=".claim.")
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(claim), file)
    return Path(name)


def _file(folder: Path, fence: int) -> Path:
    return folder / FOLDER / f"{fence:06d}.json"


def _fences(folder: Path) -> list[int]:
    with reading(folder / FOLDER):
        try:
            names = [path.name for path in (folder / FOLDER).iterdir()]
        except FileNotFoundError:
            return []
    return [int(name.partition(".")[0]) for name in names if CLAIM.fullmatch(name)]


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn a folder that cannot be read into a StoreError that names it."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read: {error.strerror or error}") from error


def _held(claim: Claim, now: float) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(claim.since))
    return (
        f"another driver is running this sweep: {claim.holder} of {claim.user}@{claim.host}, pid {claim.pid}, "
        f"since {since}, last heartbeat {max(now - claim.heartbeat, 0.0):.0f} s ago"
    )


def user_name() -> str:
    """Return who runs this process: the login name, or the number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())


def _machine() -> str:
    """Return what must be equal for two pids to be comparable: one boot of one machine, one process namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """Return when a process started, in ticks since boot; None if it has ended or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]  # proc(5): field 3 is the state, field 22 the start


def _is_running(pid: int, process_start: str | None) -> bool:
    if process_start is not None:
        return _process_start(pid) == process_start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
