"""The way to an MLflow store: which one, whether it answers, and a quiet client for it."""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import re
import socket
import sqlite3
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.errors import StoreError, unknown_name

PROBE_SECONDS = 5.0
PROBE_ALL_SECONDS = 8.0  # name look-up included
DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SCHEMES = ("sqlite", *DEFAULT_PORTS, "http", "https", "databricks", "databricks-uc")  # in which MLflow keeps runs
BARE = ("databricks", "databricks-uc")  # whole URIs too
# MLflow reads these at each request; its own defaults retry a dead server for minutes
CALM = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
CREDENTIALS = re.compile(r"://[^/@\s]*@")
QUERY = re.compile(r"(://[^\s?]*)\?[^\s'\"]+")  # may hold a password too


@dataclass(frozen=True, slots=True)
class Connection:
    """An open MLflow store and one experiment in it."""

    client: Any  # mlflow.MlflowClient
    experiment_id: str
    experiment: str
    uri: str


def resolve_uri(uri: str | None, *, home: Path, environ: Mapping[str, str]) -> str:
    """Return the tracking URI: the sweep's own, else MLFLOW_TRACKING_URI, else SQLite in `home`."""
    return uri or environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"


def redact(text: object) -> str:
    """Return the text in one line, with no user, password or query in its URIs."""
    return QUERY.sub(r"\1?***", CREDENTIALS.sub("://***@", " ".join(str(text).split())))


def connect(uri: str, experiment: str, *, home: Path, create: bool = True) -> Connection:
    """Return a client of the store and the experiment in it; the store is probed first.

    Args:
        uri: as `resolve_uri` returns it.
        experiment: name; made where there is none, if `create`.
        home: artifacts of a store that is not a server go to its `artifacts`.
        create: whether a missing store or experiment is made.

    Raises:
        StoreError: within ten seconds, in one line, if the store cannot be used or lacks the experiment.
    """
    check(uri, create=create)
    with _alone(uri), speaking(uri):
        client = _client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage != "active":
            raise StoreError(
                f"tracking: experiment {experiment!r} in {redact(uri)} was deleted: restore it or name another"
            )
        if found is not None:
            experiment_id = found.experiment_id
        elif create:
            experiment_id = client.create_experiment(experiment, artifact_location=_artifacts(uri, home, experiment))
        else:
            names = sorted(found.name for found in client.search_experiments(max_results=1000))
            raise StoreError(
                f"tracking: no experiment {experiment!r} in {redact(uri)}. It has: {', '.join(names) or 'none'}"
            )
    return Connection(client, experiment_id, experiment, uri)


def check(uri: str, *, create: bool = True) -> None:
    """Raise StoreError within ten seconds if the store cannot be used; of a file, makes it if it may."""
    check_form(uri)
    probe(uri)
    if uri.startswith("sqlite:"):
        _prepare_sqlite(uri, create=create)


class speaking:  # noqa: N801 - a context manager, read as a word
    """Turns whatever MLflow raises into a StoreError of one line."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise the StoreError."""
        if isinstance(error, Exception) and not isinstance(error, StoreError):
            raise StoreError(f"tracking: {redact(self._uri)}: {redact(error)[:500]}") from error


def probe(uri: str) -> None:
    """Raise StoreError within ten seconds if the server of a URI does not answer; files are not probed."""
    parts = urllib.parse.urlsplit(uri)
    if not parts.hostname:
        return
    ask: Callable[[], None] = (lambda: _ask_http(uri)) if parts.scheme in ("http", "https") else (lambda: _dial(parts))
    answer: list[BaseException | None] = []

    def attempt() -> None:
        try:
            ask()
            answer.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer.append(error)

    thread = threading.Thread(target=attempt, name="powersweep-probe", daemon=True)  # a name look-up has no timeout
    thread.start()
    thread.join(PROBE_ALL_SECONDS)
    if not answer:
        raise StoreError(f"tracking: {redact(uri)} does not answer within {PROBE_ALL_SECONDS:.0f} s")
    if answer[0] is not None:
        reason = getattr(answer[0], "reason", answer[0])
        raise StoreError(f"tracking: {redact(uri)} cannot be reached: {redact(reason)}") from answer[0]


def _ask_http(uri: str) -> None:
    parts = urllib.parse.urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    try:
        with urllib.request.urlopen(bare.geturl().rstrip("/") + "/health", timeout=PROBE_SECONDS):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # it answers; whether to trust it is MLflow's to say
            raise


def _dial(parts: urllib.parse.SplitResult) -> None:
    port = parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
    if port is not None:
        socket.create_connection((str(parts.hostname), port), timeout=PROBE_SECONDS).close()


def check_form(uri: str) -> None:
    """Raise StoreError for a URI that can be of no store that keeps runs; nothing is asked or opened."""
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise StoreError(f"tracking: {redact(uri)} is no URI: {redact(error)}") from error
    scheme = uri if uri in BARE else parts.scheme.partition("+")[0]
    if scheme in ("", "file") or len(scheme) == 1:
        raise StoreError(
            f"tracking: MLflow keeps no runs in plain files any more, got {redact(uri)}; "
            f"use sqlite:///<path>/mlflow.db or a server"
        )
    if scheme not in SCHEMES:
        raise StoreError(str(unknown_name(f"tracking: {redact(uri)}", scheme, SCHEMES, "kind of store")))
    if port == 0 or (scheme in ("http", "https") and not host):
        raise StoreError(f"tracking: must be {scheme}://host:port, got {redact(uri)}")
    if scheme == "sqlite":
        _check_sqlite(uri, parts)


def _check_sqlite(uri: str, parts: urllib.parse.SplitResult) -> None:
    asked = urllib.parse.parse_qs(parts.query)
    if {"ro", "memory"} & set(asked.get("mode", ())) or "immutable" in asked:
        raise StoreError(f"tracking: must be a SQLite file that can be written, got {uri}")
    if "://" not in uri or parts.netloc or parts.path in ("", "/") or parts.path.endswith(":memory:"):
        raise StoreError(f"tracking: must be a file, sqlite:///<path>/mlflow.db, got {redact(uri)}")


def _sqlite_path(uri: str) -> Path | None:
    path = uri.partition("?")[0].removeprefix("sqlite:///")
    return None if path == uri or path in ("", ":memory:") else Path(path)


def _prepare_sqlite(uri: str, *, create: bool) -> None:
    """Check that the file can be written, and keep it in WAL mode: readers then do not wait for the writer."""
    path = _sqlite_path(uri)
    if path is None:
        return
    if not create and not path.exists():
        raise StoreError(f"tracking: there is no store {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(uri), sqlite3.connect(path, timeout=PROBE_SECONDS) as database:
            database.execute("PRAGMA journal_mode=WAL")
        database.close()
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"tracking: {path} cannot be used: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time open a SQLite file: MLflow makes its tables then, and two at once break each other."""
    path = _sqlite_path(uri) if uri.startswith("sqlite:") else None
    if path is None:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # and the lock with it


def _artifacts(uri: str, home: Path, experiment: str) -> str | None:
    """Return where artifacts of a new experiment go; a server has its own place."""
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    return (home / "artifacts" / experiment).absolute().as_uri()


def _client(uri: str) -> Any:
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # all that matters reaches us as an exception
    if uri.startswith("sqlite:"):
        _relax_sqlite()
    with speaking(uri):
        return MlflowClient(uri)


_relaxed = threading.Event()


def _relax_sqlite() -> None:
    """Let SQLite sync at checkpoints of its log only: a killed process loses nothing, a power cut the last runs.

    What a power cut takes is written again from the outcome files (`Tracker.settle`).
    """
    if _relaxed.is_set():
        return
    _relaxed.set()
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def relax(connection: object, record: object) -> None:
        if isinstance(connection, sqlite3.Connection) and connection.execute("PRAGMA journal_mode").fetchone() == (
            "wal",
        ):
            connection.execute("PRAGMA synchronous=NORMAL")
