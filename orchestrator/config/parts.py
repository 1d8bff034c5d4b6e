"""Objects as records and back: what a trial carries to its worker."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from orchestrator.config.build import Table
from orchestrator.config.coerce import must
from sweeps.spec import Json, Part, Trial, canonical_json


def part_of(thing: Any, name: str) -> Part:
    """Return the record of an object: its name in its table, declared version, all fields, and its source's hash.

    Raises ConfigError where a field is not plain JSON: a default may be anything.
    """
    cls: type = type(thing)
    fields = fields_of(thing)
    for field, value in fields.items():
        try:
            canonical_json(value)
        except (TypeError, ValueError) as error:
            raise must(f"{name}: field {field}", "plain JSON, numbers finite", value) from error
    return Part(
        name=name,
        version=int(thing.version),
        fields=fields,
        source=_source_hash(cls),
        outside=tuple(_outside(thing)),
    )


def fields_of(thing: Any) -> dict[str, Json]:
    """Return all fields of a configuration object as plain JSON, defaults included.

    A field that is a choice from a table is {"name": ..., **fields}, with "version" once its class is past its first.
    """
    tables: Mapping[str, Table] = getattr(type(thing), "TABLES", {})
    return {
        field.name: _plain(getattr(thing, field.name), tables.get(field.name))
        for field in dataclasses.fields(thing)
        if field.init
    }


def _outside(thing: Any) -> Iterator[str]:
    """Yield the dotted names of the fields that change no curve: a class names its own in OUTSIDE."""
    yield from getattr(type(thing), "OUTSIDE", ())
    for name in getattr(type(thing), "TABLES", {}):
        yield from (f"{name}.{inner}" for inner in _outside(getattr(thing, name)))


def _plain(value: Any, table: Table | None) -> Json:
    if isinstance(value, tuple | list):
        return [_plain(item, table) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, None) for key, item in value.items()}
    if table is not None and dataclasses.is_dataclass(value):
        cls = type(value)
        version = int(getattr(cls, "version", 1))
        name = next(name for name, choice in table.items() if choice is cls)
        return {"name": name, **({"version": version} if version > 1 else {}), **fields_of(value)}
    return value


def changed_sources(ran: Iterable[tuple[Trial, Mapping[str, Json]]]) -> list[str]:
    """Return a warning for each class whose source is not the one that trials ran with.

    Args:
        ran: trials as they are planned now, each with the record of it that its outcome holds.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for trial, record in ran:
        for what in ("workload", "optimizer", "schedule"):
            now, then = getattr(trial, what), record.get(what, {}).get("source")
            if then and now.source and then != now.source:
                counts[what, now.name] += 1
    return [
        f"the source of {what} {name!r} has changed since {count} of these trials ran; "
        f"raise its version if its curves change"
        for (what, name), count in sorted(counts.items())
    ]


@functools.cache
def _source_hash(cls: type) -> str:
    """Return twelve digits of the hash of a class's source, "" where there is none (a zip, a notebook)."""
    try:
        return hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return ""
