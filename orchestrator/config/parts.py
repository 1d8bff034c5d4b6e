"""Objects as records and back: what a trial carries to its worker."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.config.build import Table
from sweeps.spec import Json, Part


def part_of(thing: Any, name: str) -> Part:
    """Return the record of an object: its name in its table, declared version, all fields, and its source's hash."""
    cls = type(thing)
    return Part(
        name=name,
        version=int(cls.version),
        fields=fields_of(thing),
        source=_source_hash(cls),
        places=tuple(_places_of(thing)),
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


def _places_of(thing: Any) -> Iterator[str]:
    """Yield the dotted names of the fields that say where something lies: a class names its own in PLACES."""
    yield from getattr(type(thing), "PLACES", ())
    for name in getattr(type(thing), "TABLES", {}):
        yield from (f"{name}.{place}" for place in _places_of(getattr(thing, name)))


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


def _source_hash(cls: type) -> str:
    """Return twelve digits of the hash of a class's source, "" where there is none (a zip, a notebook)."""
    try:
        return hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()[:12]
    except (OSError, TypeError):
        return ""
