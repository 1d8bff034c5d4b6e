"""All outcomes of a sweep at once: the outcome files, cached as one Parquet file and refreshed by change.

An outcome file is plain JSON: key, outcome (one of `spec.OUTCOMES`), reason, exceeded (see `Outcome`), tokens, seconds,
curve (`Curve.to_json`), trial (`Trial.to_json`), target (null, or metric, value and reached_tokens), forked_from
(null, or the key of its trunk and the tokens it left it at) and stop (null, or `Stopped.to_json`). A trunk has one too,
its trial marked as such.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.store.folders import OUTCOME_FILE, SweepStore, read_outcome
from orchestrator.store.lease import reading
from sweeps.agenda import Outcome, Stopped, Target
from sweeps.curves import Curve, replacing
from sweeps.errors import StoreError

INDEX_FILE = "index.parquet"
REWRITE_SHARE = 50  # the cache is written anew once more than one file in fifty is newer
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("modified_ns", pa.int64()),
        ("size", pa.int64()),
        ("inode", pa.uint64()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("exceeded", pa.float64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("curve", pa.string()),  # JSON
        ("trial", pa.string()),  # JSON
        ("target", pa.string()),  # JSON
        ("forked_from", pa.string()),  # JSON
        ("stop", pa.string()),  # JSON
    ]
)

PARTS = ("curve", "trial", "target", "forked_from", "stop")  # those columns that are JSON

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]  # modified_ns, size, inode: a file replaced by rename has another inode


@dataclass(frozen=True, slots=True)
class _Entry:
    stamp: Stamp
    row: Mapping[str, Any]  # as in SCHEMA, without the stamp


class Index:
    """The outcomes of a sweep as they were when it was opened or last refreshed."""

    def __init__(self, store: SweepStore, entries: Mapping[str, _Entry]) -> None:
        self._store = store
        self._entries = dict(entries)
        self._outcomes: dict[str, Outcome] = {}

    @classmethod
    def open(cls, store: SweepStore) -> Index:
        """Return the index of a sweep, up to date; a sweep that never ran has an empty one."""
        index = cls(store, _read_cache(store.folder / INDEX_FILE))
        index.refresh()
        return index

    def refresh(self) -> set[str]:
        """Read what has changed, and return the keys that are new, changed or gone."""
        stamps = _stamps(self._store.trials)
        changed = {
            key for key, stamp in stamps.items() if key not in self._entries or self._entries[key].stamp != stamp
        }
        changed |= self._entries.keys() - stamps.keys()
        for key in changed:
            self._entries.pop(key, None)
            self._outcomes.pop(key, None)
            record = read_outcome(self._store.trials / key / OUTCOME_FILE) if key in stamps else None
            if record is not None:
                self._entries[key] = _Entry(stamps[key], _row(key, record))
        if len(changed) * REWRITE_SHARE > len(self._entries):
            self._write_cache()
        return changed

    def outcomes(self) -> dict[str, Outcome]:
        """Return all outcomes by key, sorted by key."""
        for key, entry in self._entries.items():
            if key not in self._outcomes:
                row = entry.row
                parts = {name: json.loads(row[name] or "null") for name in PARTS}
                self._outcomes[key] = outcome_of({**row, **parts})
        return dict(sorted(self._outcomes.items()))

    def _write_cache(self) -> None:
        if not self._entries and not (self._store.folder / INDEX_FILE).exists():
            return
        rows = [
            {**entry.row, **dict(zip(("modified_ns", "size", "inode"), entry.stamp, strict=True))}
            for _, entry in sorted(self._entries.items())
        ]
        table = pa.table({name: [row[name] for row in rows] for name in SCHEMA.names}, schema=SCHEMA)
        try:
            with replacing(self._store.folder / INDEX_FILE) as temporary:
                pq.write_table(table, temporary, compression="zstd")
        except StoreError as error:  # a store that can only be read has no cache, and needs none
            log.debug("the index is not cached: %s", error)


def outcome_of(record: Mapping[str, Any]) -> Outcome:
    """Return the record of an outcome from its plain JSON; what is absent is empty."""
    return Outcome(
        key=record["key"],
        outcome=record["outcome"],
        tokens=int(record.get("tokens", 0)),
        curve=Curve.from_json(record["curve"]) if record.get("curve") else Curve(),
        reason=record.get("reason") or "",
        exceeded=record.get("exceeded"),
        seconds=float(record.get("seconds") or 0.0),
        trial=record.get("trial") or {},
        target=Target(**record["target"]) if record.get("target") else None,
        forked_from=(str(record["forked_from"][0]), int(record["forked_from"][1]))
        if record.get("forked_from")
        else None,
        stop=Stopped.from_json(record["stop"]) if record.get("stop") else None,
    )


def _row(key: str, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": key,
        "outcome": record["outcome"],
        "reason": record.get("reason") or "",
        "exceeded": record.get("exceeded"),
        "tokens": int(record.get("tokens", 0)),
        "seconds": float(record.get("seconds") or 0.0),
        **{name: json.dumps(record.get(name)) for name in PARTS},
    }


def _stamps(trials: Path) -> dict[str, Stamp]:
    """Return what tells a changed outcome file, by key."""
    stamps = {}
    with reading(trials):
        try:
            folders = list(trials.iterdir())
        except FileNotFoundError:
            return {}
    for folder in folders:
        try:
            stat = (folder / OUTCOME_FILE).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        stamps[folder.name] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return stamps


def _read_cache(path: Path) -> dict[str, _Entry]:
    """Return what is cached; a missing or corrupt cache is an empty one."""
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (OSError, pa.ArrowException) as error:
        log.debug("the index is built anew: %s", error)
        return {}
    columns = {name: table[name].to_pylist() for name in SCHEMA.names}
    stamps = zip(columns.pop("modified_ns"), columns.pop("size"), columns.pop("inode"), strict=True)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return {row["key"]: _Entry(stamp, row) for stamp, row in zip(stamps, rows, strict=True)}
