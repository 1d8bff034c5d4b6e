"""A named choice of a sweep with all its fields resolved, and what of it is its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from sweeps.spec.canonical import Json


@dataclass(frozen=True, slots=True)
class Part:
    """A named choice with all its fields resolved: a workload, an optimizer or a schedule.

    `version` is the class's own declared version: it goes up when its curves change. Not part of the identity are
    `source`, a hash of its source code, and the fields named in `outside`, which change no curve: "data.path", as a
    corpus is told by its fingerprint wherever it lies, or a target to reach.
    """

    name: str
    version: int = 1
    fields: Mapping[str, Json] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    outside: tuple[str, ...] = field(default=(), compare=False)

    def identity(self) -> Json:
        """Return what can change a curve."""
        return {"name": self.name, "version": self.version, "fields": _without(self.fields, self.outside)}

    def to_json(self) -> Json:
        """Return all of it as plain JSON; `from_json` is its inverse."""
        return {
            "name": self.name,
            "version": self.version,
            "fields": dict(self.fields),
            "source": self.source,
            "outside": list(self.outside),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Json]) -> Part:
        """Return the part of a record made by `to_json`; what another release wrote besides is left out."""
        known = {name: record[name] for name in _names() & record.keys()}
        return cls(**{**known, "outside": tuple(record.get("outside", ()))})


def _names() -> set[str]:
    return {item.name for item in fields(Part)}


def _without(values: Mapping[str, Json], outside: tuple[str, ...]) -> dict[str, Json]:
    """Return the fields less those of these dotted names."""
    kept = {}
    for name, value in values.items():
        inner = tuple(place.removeprefix(f"{name}.") for place in outside if place.startswith(f"{name}."))
        if name not in outside:
            kept[name] = _without(value, inner) if inner and isinstance(value, Mapping) else value
    return kept
