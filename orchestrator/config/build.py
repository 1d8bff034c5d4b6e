"""Objects from checked YAML nodes: the only look-up of names in tables."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.coerce import coerce, must
from sweeps.errors import ConfigError, SweepError, unknown_name
from sweeps.spec import Json, Part

Table = Mapping[str, type]
CHOICES = re.compile(r"must be one of (.*), got '(.*)'$")


def build(
    table: Table,
    node: Json,
    where: str,
    *,
    what: str = "name",
    protocol: type | None = None,
    cwd: Path | None = None,
) -> Any:
    """Return the object that a node {name: X, **fields} describes.

    Args:
        table: name -> frozen dataclass.
        node: from YAML.
        where: the dotted place, for messages.
        what: what the table holds, for messages.
        protocol: if given, a name may also be a class by path, `my_pkg.my_mod:MyClass`, that fulfils it.
        cwd: where a class by path is also looked for.

    Raises:
        ConfigError: an unknown name or field, a value of the wrong type, or one its class refuses.
    """
    cls = class_of(table, node, where, what=what, protocol=protocol, cwd=cwd)
    with code_of(node["name"], f"{where}: making"):
        return fill(cls, {key: value for key, value in node.items() if key != "name"}, where)


def class_of(
    table: Table,
    node: Json,
    where: str,
    *,
    what: str = "name",
    protocol: type | None = None,
    cwd: Path | None = None,
) -> type:
    """Return the class that a node names. Raises ConfigError."""
    if not isinstance(node, Mapping):
        raise must(where, "a mapping with a name, such as {name: " + next(iter(sorted(table)), "x") + "}", node)
    if "name" not in node:
        raise ConfigError(f"{where}: needs a name. It has: {', '.join(sorted(table))}")
    name = node["name"]
    if not isinstance(name, str):
        raise must(f"{where}.name", "text", name)
    if protocol is not None and ":" in name:
        cls = import_class(name, f"{where}.name", cwd=cwd)
        _check_fit(cls, name, f"{where}.name", protocol=protocol)
        _check_declared(cls, name, f"{where}.name")
        return cls
    if name not in table:
        raise unknown_name(f"{where}.name", name, table, what)
    return table[name]


def fill(cls: type, values: Mapping[str, Json], where: str) -> Any:
    """Return an instance of a frozen dataclass from plain values. Raises ConfigError."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            if not fields:
                raise ConfigError(f"{where}.{key}: {cls.__name__} has no fields")
            raise unknown_name(f"{where}.{key}", key, fields, "field")
    try:
        hints = _hints(cls)
    except (NameError, TypeError) as error:
        raise ConfigError(f"{where}: the types of {cls.__name__} cannot be read: {error}") from error
    tables: Mapping[str, Table] = getattr(cls, "TABLES", {})
    arguments = {}
    for key, field in fields.items():
        place = f"{where}.{key}"
        if key in values:
            arguments[key] = _field(values[key], hints[key], tables.get(key), place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{place}: is required")
    try:
        return cls(**arguments)
    except (ValueError, TypeError) as error:
        opening = str(error).partition(":")[0]
        place = f"{where}." if opening.split("[")[0].split(".")[0] in fields else f"{where}: "
        raise ConfigError(f"{place}{one_line(error)}{_nearest(one_line(error))}") from error


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's fields: a worker asks anew for every trial."""
    return typing.get_type_hints(cls)


def _field(value: Json, annotation: Any, table: Table | None, place: str) -> object:
    if table is None:
        return coerce(value, annotation, place)
    if value is None and type(None) in typing.get_args(annotation):
        return None
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise must(place, "a list", value)
        return tuple(build(table, item, f"{place}[{i}]") for i, item in enumerate(value))
    return build(table, value, place)


def _nearest(message: str) -> str:
    """Return a hint at the nearest name, where a class says what a name must be one of."""
    found = CHOICES.search(message)
    near = difflib.get_close_matches(found[2], found[1].split(", "), n=1, cutoff=0.5) if found else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def code_of(name: str, doing: str) -> Iterator[None]:
    """Turn whatever a class of the user's raises into a ConfigError; errors of our own classes are our bugs.

    Args:
        name: of the class in its table, or its path, `my_pkg.my_mod:MyClass`.
        doing: what is done with it, for the message.
    """
    try:
        yield
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        if ":" not in name:
            raise
        raise ConfigError(f"{doing} {name} failed: {type(error).__name__}: {one_line(error)}") from error


def object_of(table: Table, part: Part, where: str, *, cwd: Path | None = None) -> Any:
    """Return the object that a record describes, in any process: the inverse of `parts.part_of`.

    Args:
        table: where its name stands, unless that is a class by path.
        part: the record.
        where: the place, for messages.
        cwd: where a class by path is also looked for.

    Raises:
        ConfigError: the class is gone or its fields have changed since.
    """
    by_path = ":" in part.name
    cls = import_class(part.name, where, cwd=cwd) if by_path else class_of(table, {"name": part.name}, where)
    return fill(cls, _unversioned(cls, part.fields), where)


def _unversioned(cls: type, fields: Mapping[str, Json]) -> dict[str, Json]:
    """Return the fields less the versions that `fields_of` put beside the names of nested choices."""
    tables: Mapping[str, Table] = getattr(cls, "TABLES", {})
    return {key: _choice(value, tables[key]) if key in tables else value for key, value in fields.items()}


def _choice(value: Json, table: Table) -> Json:
    if isinstance(value, list | tuple):
        return [_choice(item, table) for item in value]
    if not isinstance(value, Mapping) or value.get("name") not in table:
        return value
    cls = table[value["name"]]
    own = {field.name for field in dataclasses.fields(cls)} | {"name"}
    return _unversioned(cls, {key: item for key, item in value.items() if key != "version" or key in own})


def import_class(path: str, where: str, *, cwd: Path | None) -> type:
    """Return the class that `my_pkg.my_mod:MyClass` names, a frozen dataclass.

    The working folder goes to the front of the import path, as it does for `python -m`, and stays there.
    """
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise must(where, "a table's name or a path such as my_pkg.my_mod:MyClass", path)
    if cwd is not None and str(cwd) not in sys.path:
        sys.path.insert(0, str(cwd))
    with code_of(path, f"{where}: importing"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise ConfigError(f"{where}: {module_name} needs a module that is missing: {error.name}") from error
            raise ConfigError(f"{where}: no module {module_name!r} in {cwd or 'the import path'}") from error
    if class_name not in vars(module):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise unknown_name(where, class_name, classes, f"class in {module_name}:")
    cls = vars(module)[class_name]
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}: {path} must be a frozen dataclass, got {type(cls).__name__} {class_name}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{where}: {path} must be a frozen dataclass: write @dataclass(frozen=True)")
    return cls


def _check_fit(cls: type, path: str, where: str, *, protocol: type) -> None:
    """Raise ConfigError with the members of the protocol that a class lacks, or has as plain values."""
    own = {name for name in vars(protocol) if not name.startswith("_")}
    wanted = own | set(protocol.__annotations__)
    has = set(dir(cls)) | {field.name for field in dataclasses.fields(cls)}
    missing = sorted(wanted - has)
    if missing:
        raise ConfigError(f"{where}: {path} does not fit {protocol.__name__}: it lacks {', '.join(missing)}")
    methods = sorted(name for name in own if callable(vars(protocol)[name]) and not callable(getattr(cls, name)))
    if methods:
        raise ConfigError(f"{where}: {path} does not fit {protocol.__name__}: not methods: {', '.join(methods)}")


def _check_declared(cls: Any, path: str, where: str) -> None:
    """Raise ConfigError unless version, TABLES and OUTSIDE of a class are what a trial's identity is made of."""
    fields = [field.name for field in dataclasses.fields(cls)]
    if type(cls.version) is not int:
        raise must(f"{where}: version of {path}", "an integer", cls.version)
    tables = getattr(cls, "TABLES", {})
    if not (isinstance(tables, Mapping) and all(isinstance(table, Mapping) for table in tables.values())):
        raise must(f"{where}: TABLES of {path}", "a mapping from fields to tables of classes", tables)
    outside = getattr(cls, "OUTSIDE", ())
    if not (isinstance(outside, list | tuple) and all(isinstance(name, str) for name in outside)):
        raise must(f"{where}: OUTSIDE of {path}", "a list of fields", outside)
    for what, names in (("TABLES", tables), ("OUTSIDE", outside)):
        for name in names:
            if name.partition(".")[0] not in fields:
                raise unknown_name(f"{where}: {what} of {path}", name, fields, "field")
