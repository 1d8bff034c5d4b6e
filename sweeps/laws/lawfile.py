"""law.json: read with every field checked, written at once."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.errors import ConfigError, StoreError
from sweeps.laws import lawcheck
from sweeps.spec import Json

VERSION = 1  # of the format
_KINDS: dict[str, type] = {
    "form": str,
    "convention": str,
    "variables": list,
    "coefficients": dict,
    "covariance": list,
    "dof": float,
    "units": dict,
    "box": dict,
    "reach": dict,
    "cells": list,
    "left_out": list,
    "recipe": dict,
    "status": str,
    "noise": dict,
    "estimator": str,
    "confidence": float,
    "made_by": dict,
}
_WORDS = {str: "a text", list: "a list", dict: "an object", float: "a number"}


def plain(value: Json) -> Json:
    """Return the value with tuples as lists, mappings as dicts: what JSON would give back."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def write(path: Path, content: Json) -> None:
    """Write canonical JSON by way of a neighbour and a rename. Raises StoreError."""
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path}: the law cannot be written: {error.strerror or error}") from error


def read(path: Path) -> dict[str, Any]:
    """Return the fields of a Law from its file. Raises ConfigError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: no law can be read there: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: must be a law.json, got no valid JSON ({error})") from error
    if not isinstance(content, dict) or "law" not in content:
        raise ConfigError(f"{path}: must be a law.json, an object with a field 'law'")
    if content["law"] != VERSION or isinstance(content["law"], bool):
        raise ConfigError(f"{path}: law: must be format {VERSION}, got {content['law']!r}")
    return _checked(content, str(path))


def _checked(content: dict[str, Json], where: str) -> dict[str, Any]:
    known = {"law", "validation", *_KINDS}
    missing, extra = sorted(known - set(content)), sorted(set(content) - known)
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has no field {', '.join(extra)}"] * bool(extra)
        raise ConfigError(f"{where}: a law.json {' and '.join(said)}")
    for name, kind in _KINDS.items():
        value = content[name]
        if not (lawcheck.is_number(value) if kind is float else isinstance(value, kind)):
            raise ConfigError(f"{where}: {name}: must be {_WORDS[kind]}, got {lawcheck.shown(value)}")
    lawcheck.check(content, where)
    names = ("log_a", *content["variables"])
    return {
        **{n: content[n] for n in _KINDS},
        "validation": content["validation"],
        "variables": tuple(content["variables"]),
        "coefficients": {n: float(content["coefficients"][n]) for n in names},
        "covariance": tuple(tuple(float(x) for x in row) for row in content["covariance"]),
        "box": {n: (float(low), float(high)) for n, (low, high) in content["box"].items()},
        "reach": {n: (float(low), float(high)) for n, (low, high) in content["reach"].items()},
        "cells": tuple(content["cells"]),
        "left_out": tuple(content["left_out"]),
    }
