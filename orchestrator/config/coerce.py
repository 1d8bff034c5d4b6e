"""Values from YAML against the types that a dataclass declares."""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from sweeps.errors import ConfigError
from sweeps.spec import Json

SHOWN_CHARACTERS = 60
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def show(value: object) -> str:
    """Return a value as a message shows it: as YAML would write it, cut short."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value, default=str)
        except (TypeError, ValueError):
            text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def must(where: str, rule: str, value: object) -> ConfigError:
    """Return the error of a value that breaks a rule."""
    return ConfigError(f"{where}: must be {rule}, got {show(value)}")


def describe(annotation: Any) -> str:
    """Return in words what an annotation accepts."""
    if annotation in WORDS:
        return WORDS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(show(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in sorted(arguments, key=lambda a: a is type(None)))
    if origin in (tuple, list, Sequence):
        if len(arguments) == 1 or arguments[1] is Ellipsis:
            return f"a list, each {describe(arguments[0])}"
        return f"a list of {len(arguments)}"
    if origin in (dict, Mapping):
        return "a mapping"
    return "a plain value"


def coerce(value: Json, annotation: Any, where: str) -> Any:
    """Return the value as the annotated type.

    An integer passes as a float, and an integral float (1e6) as an integer; true and false are never numbers; NaN and
    infinities are refused.

    Raises:
        ConfigError: with the place, what must be, and what came.
    """
    if annotation is Any or annotation is object:
        return _json(value, where)
    if annotation in (bool, str, type(None)):
        if type(value) is annotation:
            return value
        raise must(where, describe(annotation), value)
    if annotation in (int, float):
        return _number(value, annotation, where)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return _choice(value, arguments, where)
    if origin in (Union, types.UnionType):
        return _union(value, annotation, arguments, where)
    if origin in (tuple, list, Sequence):
        return _sequence(value, annotation, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise must(where, "a mapping", value)
        return {key: coerce(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    return _json(value, where)


def _number(value: Json, annotation: type, where: str) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise must(where, describe(annotation), value)
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise must(where, f"{describe(annotation)} that is finite", value)
    if annotation is int and isinstance(value, float) and not value.is_integer():
        raise must(where, "an integer", value)
    return annotation(value)


def _choice(value: Json, choices: tuple[Json, ...], where: str) -> object:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    rule = ", ".join(show(choice) for choice in choices)
    raise ConfigError(f"{where}: must be one of {rule}, got {show(value)}{hint}")


def _union(value: Json, annotation: Any, members: tuple[Any, ...], where: str) -> object:
    """Return the value as the first member it fits, exact types first; one member besides null speaks for itself."""
    if value is None and type(None) in members:
        return None
    others = [member for member in members if member is not type(None)]
    if len(others) == 1:
        try:
            return coerce(value, others[0], where)
        except ConfigError as error:
            if others[0] in WORDS and not isinstance(value, float):
                raise must(where, describe(annotation), value) from error
            raise
    for member in sorted(others, key=lambda member: type(value) is not member):
        try:
            return coerce(value, member, where)
        except ConfigError:
            continue
    raise must(where, describe(annotation), value)


def _sequence(value: Json, annotation: Any, where: str) -> object:
    arguments = typing.get_args(annotation)
    if not isinstance(value, list | tuple):
        raise must(where, describe(annotation), value)
    if typing.get_origin(annotation) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(value) != len(arguments):
            raise must(where, f"a list of {len(arguments)}", value)
        kinds = list(arguments)
    else:
        kinds = [arguments[0]] * len(value)
    return tuple(coerce(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _json(value: Json, where: str) -> Json:
    """Return any plain value, its numbers finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise must(where, "finite", value)
    if isinstance(value, list | tuple):
        return [_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _json(item, f"{where}.{key}") for key, item in value.items()}
    return value
