"""What the fields of a law.json must hold, beyond their types: the first at fault is named."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable

import numpy as np

from sweeps.errors import ConfigError, unknown_name
from sweeps.laws.records import CONVENTIONS, FARTHEST, STATUSES, formula
from sweeps.optima.optimum import ESTIMATORS
from sweeps.optima.student import is_confidence
from sweeps.spec import JOINT, Json

AXES = ("batch_tokens", "tokens", "parameters")
LARGEST_VARIANCE = 1e12  # of a coefficient, in logs: intervals stay within floats; a choice
LEAST_DOF, MOST_DOF = 0.1, 1e9  # between which `student` is exact to six digits; no sweep is outside; a choice
ROUNDING = 1e-6  # of a correlation: how far a covariance may be off by having been worked out in floats; a choice
SHOWN = 80  # characters of a value in a message


def check(content: dict[str, Json], where: str) -> None:
    """Raise ConfigError, with the file and the field at fault, unless the fields of a law.json go together."""
    for part in (_check_names, _check_spans, _check_coefficients, _check_covariance, _check_numbers, _check_cells):
        part(content, where)


def is_number(value: Json) -> bool:
    """Return whether a value is a finite number that a float holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def shown(value: Json) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _check_names(content: dict[str, Json], where: str) -> None:
    variables = content["variables"]
    if not all(v in AXES for v in variables) or len(set(map(str, variables))) < len(variables):
        raise ConfigError(
            f"{where}: variables: must be different names among {', '.join(AXES)}, got {shown(variables)}"
        )
    tables = {"convention": CONVENTIONS, "estimator": (*ESTIMATORS, JOINT), "status": STATUSES}
    for field, names in tables.items():
        if content[field] not in names:
            raise unknown_name(f"{where}: {field}", content[field], names, field)
    form = formula(variables)
    if content["form"] != form:
        raise ConfigError(f"{where}: form: must be {form!r} with these variables, got {shown(content['form'])}")
    if not (content["validation"] is None or isinstance(content["validation"], dict)):
        raise ConfigError(f"{where}: validation: must be an object or null, got {shown(content['validation'])}")
    if not all(isinstance(unit, str) for unit in content["units"].values()):
        raise ConfigError(f"{where}: units: must be texts, got {shown(content['units'])}")


def _check_spans(content: dict[str, Json], where: str) -> None:
    for name in ("box", "reach"):
        spans = content[name]
        if sorted(spans) != sorted(AXES):
            raise ConfigError(f"{where}: {name}: must hold {', '.join(AXES)}, got {shown(spans)}")
        for axis, span in spans.items():
            unknown = axis == "parameters" and axis not in content["variables"] and span == [0, 0]
            if not (unknown or _is_span(span)):
                raise ConfigError(f"{where}: {name}.{axis}: must be [low, high], 0 < low <= high, got {shown(span)}")
    for axis, (low, high) in content["reach"].items():
        box_low, box_high = content["box"][axis]
        if not low <= box_low <= box_high <= high:
            raise ConfigError(
                f"{where}: reach.{axis}: must hold the box, {box_low:g} to {box_high:g}, got {low:g} to {high:g}"
            )


def _check_coefficients(content: dict[str, Json], where: str) -> None:
    names, found = ["log_a", *content["variables"]], content["coefficients"]
    if sorted(found) != sorted(names) or not all(map(is_number, found.values())):
        raise ConfigError(f"{where}: coefficients: must be numbers for {', '.join(names)}, got {shown(found)}")
    corners = itertools.product(*(content["box"][axis] for axis in content["variables"]))
    for corner in corners:
        terms = [found[axis] * math.log(x) for axis, x in zip(content["variables"], corner, strict=True)]
        log_lr = found["log_a"] + sum(terms)
        if not abs(log_lr) <= FARTHEST:
            raise ConfigError(
                f"{where}: coefficients: must give an LR above 0 and finite in the box, got ln lr = {log_lr:.4g} there"
            )


def _check_covariance(content: dict[str, Json], where: str) -> None:
    rows, size = content["covariance"], 1 + len(content["variables"])
    if len(rows) != size or not all(isinstance(r, list) and len(r) == size and all(map(is_number, r)) for r in rows):
        raise ConfigError(f"{where}: covariance: must be {size} rows of {size} numbers, got {shown(rows)}")
    covariance_UU = np.array(rows, dtype=np.float64)
    variance_U = covariance_UU.diagonal()
    if np.any(variance_U < 0.0) or np.any(np.abs(covariance_UU) > LARGEST_VARIANCE):
        raise ConfigError(
            f"{where}: covariance: variances must be from 0 to {LARGEST_VARIANCE:g}, got {shown(variance_U.tolist())}"
        )
    sd_U = np.sqrt(np.where(variance_U > 0.0, variance_U, 1.0))
    scaled_UU = covariance_UU / np.outer(sd_U, sd_U)
    if np.any(np.abs(scaled_UU - scaled_UU.T) > ROUNDING):
        raise ConfigError(f"{where}: covariance: must be symmetric, got {shown(rows)}")
    if np.linalg.eigvalsh(scaled_UU)[0] < -size * ROUNDING:
        raise ConfigError(f"{where}: covariance: must have no negative eigenvalue, got {shown(rows)}")


def _check_numbers(content: dict[str, Json], where: str) -> None:
    if not LEAST_DOF <= content["dof"] <= MOST_DOF:
        raise ConfigError(f"{where}: dof: must be from {LEAST_DOF} to {MOST_DOF:g}, got {shown(content['dof'])}")
    if not is_confidence(content["confidence"]):
        raise ConfigError(f"{where}: confidence: must be in (0, 1), got {shown(content['confidence'])}")
    misfit, seed_sd = content["noise"].get("misfit_sd"), content["noise"].get("seed_sd")
    if not _at_least_0(misfit):
        raise ConfigError(f"{where}: noise.misfit_sd: must be a number of 0 or more, got {shown(misfit)}")
    if not (seed_sd is None or _at_least_0(seed_sd)):
        raise ConfigError(f"{where}: noise.seed_sd: must be a number of 0 or more, or null, got {shown(seed_sd)}")


def _check_cells(content: dict[str, Json], where: str) -> None:
    for number, cell in enumerate(content["cells"]):
        _check_object(cell, f"{where}: cells[{number}]", _CELL)
        _check_object(cell["optimum"], f"{where}: cells[{number}].optimum", _OPTIMUM)
        if cell.get("minimum") is not None:
            _check_object(cell["minimum"], f"{where}: cells[{number}].minimum", _MINIMUM)
    for number, cell in enumerate(content["left_out"]):
        _check_object(cell, f"{where}: left_out[{number}]", _LEFT_OUT)


_Test = tuple[Callable[[Json], bool], str]  # and what the value must be, in words


def _check_object(value: Json, where: str, fields: dict[str, _Test]) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be an object, got {shown(value)}")
    for name, (holds, words) in fields.items():
        if name not in value:
            raise ConfigError(f"{where}.{name}: is required")
        if not holds(value[name]):
            raise ConfigError(f"{where}.{name}: must be {words}, got {shown(value[name])}")


def _is_span(value: Json) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and 0 < value[0] <= value[1]


def _at_least_0(value: Json) -> bool:
    return is_number(value) and value >= 0


def _is_count(value: Json) -> bool:
    return is_number(value) and value == int(value) and value > 0


def _by_seed(value: Json) -> bool:
    return isinstance(value, dict) and all(s.lstrip("-").isdecimal() and is_number(x) for s, x in value.items())


_TEXT: _Test = (lambda value: isinstance(value, str), "a text")
_COUNT: _Test = (_is_count, "a whole number above 0")
_OR_NULL: _Test = (lambda value: value is None or is_number(value), "a number or null")
_SD: _Test = (lambda value: value is None or _at_least_0(value), "a number of 0 or more, or null")
_CELL: dict[str, _Test] = {
    "key": _TEXT,
    "label": _TEXT,
    "batch_tokens": _COUNT,
    "tokens": _COUNT,
    "parameters": (lambda value: value == 0 or _is_count(value), "a whole number of 0 or more"),
    "optimum": (lambda value: isinstance(value, dict), "an object"),
}
_OPTIMUM: dict[str, _Test] = {
    "lr": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "loss": _OR_NULL,
    "basin": (lambda value: isinstance(value, list) and all(map(is_number, value)), "a list of numbers"),
}
_MINIMUM: dict[str, _Test] = {
    "loss": _OR_NULL,
    "by_seed": (_by_seed, "an object of a loss for each seed"),
    "offset_sd": _SD,
    "fit_sd": _SD,
}
_LEFT_OUT: dict[str, _Test] = {"label": _TEXT, "reason": _TEXT}
