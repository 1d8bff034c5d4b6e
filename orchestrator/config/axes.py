"""The axes of a sweep: lists and ranges, and the variants that the further ones make."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.coerce import coerce, must, show
from orchestrator.config.parts import fields_of
from sweeps.errors import ConfigError, unknown_name
from sweeps.spec import Axes, Json, Range, Seeds

OWN = ("lr", "batch_tokens", "tokens", "steps", "seed")
SCALES = ("log", "linear")
NAMES = ("workload.name", "optimizer.name")  # a recipe each, not values of one
MAX_POINTS = 1000  # of an axis
MAX_VARIANTS = 1000


def read_axes(node: Json) -> Axes:
    """Return the axes but for the further ones. Raises ConfigError."""
    if not isinstance(node, Mapping):
        raise must("axes", "a mapping with lr, batch_tokens and tokens (or steps)", node)
    for name in ("lr", "batch_tokens"):
        if node.get(name) is None:
            raise ConfigError(f"axes.{name}: is required")
    tokens, steps = node.get("tokens"), node.get("steps")
    if (tokens is None) == (steps is None):
        raise ConfigError("axes.tokens: give either tokens or steps" + (", not both" if tokens is not None else ""))
    return Axes(
        lr=_lr(node["lr"]),
        batch_tokens=_counts(node["batch_tokens"], "axes.batch_tokens"),
        tokens=None if tokens is None else _counts(tokens, "axes.tokens"),
        steps=None if steps is None else _counts(steps, "axes.steps"),
        seeds=_seeds(node.get("seed")),
    )


def _lr(node: Json) -> tuple[float, ...] | Range:
    if isinstance(node, Mapping):
        span = read_range(node, "axes.lr")
        if span.low <= 0:
            raise must("axes.lr", "above 0", span.low)
        if span.points is not None:
            _unique(span.grid(), "axes.lr")
        return span
    return tuple(sorted(_unique([_positive(x, float, w) for x, w in _items(node, "axes.lr")], "axes.lr")))


def _counts(node: Json, where: str) -> tuple[int, ...]:
    values = _range_values(node, where) if isinstance(node, Mapping) else None
    listed = (
        [round(x) for x in values] if values is not None else [_positive(x, int, w) for x, w in _items(node, where)]
    )
    if min(listed) < 1:
        raise must(where, "at least 1", min(listed))
    return tuple(sorted(_unique(listed, where)))


def _seeds(node: Json) -> Seeds:
    if node is None:
        return Seeds()
    up_to, values = None, node
    if isinstance(node, Mapping):
        for key in node:
            if key not in ("values", "up_to_tokens"):
                raise unknown_name(f"axes.seed.{key}", key, ("values", "up_to_tokens"), "field")
        values = node.get("values")
        if node.get("up_to_tokens") is not None:
            up_to = _positive(node["up_to_tokens"], int, "axes.seed.up_to_tokens")
    listed = [coerce(item, int, where) for item, where in _items(values, "axes.seed")]
    for seed in listed:
        assert isinstance(seed, int)
        if not 0 <= seed < 2**31:
            raise must("axes.seed", "between 0 and 2147483647", seed)
    return Seeds(tuple(_unique(listed, "axes.seed")), up_to)


def read_range(node: Mapping[str, Json], where: str) -> Range:
    """Return the range of {log: [a, b], points: n} or {linear: [a, b], points: n}. Raises ConfigError."""
    for key in node:
        if key not in (*SCALES, "points"):
            raise unknown_name(f"{where}.{key}", key, (*SCALES, "points"), "field")
    scales = [scale for scale in SCALES if node.get(scale) is not None]
    if len(scales) != 1:
        raise ConfigError(f"{where}: must be a list, or a range with either log or linear: [from, to]")
    scale = scales[0]
    low, high = coerce(node[scale], tuple[float, float], f"{where}.{scale}")
    if scale == "log" and low <= 0:
        raise must(f"{where}.log", "above 0", node[scale])
    if not low < high:
        raise must(f"{where}.{scale}", "from low to high", node[scale])
    points = None if node.get("points") is None else coerce(node["points"], int, f"{where}.points")
    if points is not None and not 2 <= points <= MAX_POINTS:
        raise must(f"{where}.points", f"between 2 and {MAX_POINTS}", points)
    return Range(low, high, scale, points)


def _range_values(node: Mapping[str, Json], where: str) -> tuple[float, ...]:
    span = read_range(node, where)
    if span.points is None:
        raise ConfigError(f"{where}.points: is required: how many values of the range")
    return span.grid()


def _items(node: Json, where: str) -> list[tuple[Json, str]]:
    if not isinstance(node, list | tuple):
        hint = f": write [{node}]" if isinstance(node, int | float) and not isinstance(node, bool) else ""
        raise ConfigError(f"{where}: must be a list or a range, got {show(node)}{hint}")
    if not node:
        raise ConfigError(f"{where}: must have at least one value, got []")
    if len(node) > MAX_POINTS:
        raise ConfigError(f"{where}: must have at most {MAX_POINTS:,} values, got {len(node):,}")
    return [(item, f"{where}[{i}]") for i, item in enumerate(node)]


def _positive(value: Json, kind: type, where: str) -> Any:
    number = coerce(value, kind, where)
    if number <= 0:
        raise must(where, "above 0", value)
    return number


def _unique(values: Sequence[Any], where: str) -> Sequence[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ConfigError(f"{where}: {show(value)} is there twice")
    return values


@dataclass(frozen=True)
class Combination:
    """One combination of the further axes: the objects it makes, and the values that make it."""

    workload: Any
    optimizer: Any
    values: Mapping[str, Json]  # dotted axis name -> value


Builder = Callable[[Json, str], Any]  # (node, place) -> object


def further_axes(node: Mapping[str, Json], classes: Mapping[str, type]) -> dict[str, list[Json]]:
    """Return the further axes by dotted name, `workload.width`, each with its raw values.

    Args:
        node: of the axes.
        classes: of the workload and of the optimizer.
    """
    fields = {part: [f.name for f in dataclasses.fields(cls) if f.init] for part, cls in classes.items()}
    found: dict[str, list[Json]] = {}
    for key, value in node.items():
        if key in OWN:
            continue
        for name, leaf in _leaves(key, value, fields):
            if name in NAMES:
                raise ConfigError(f"axes.{name}: the {key} is no axis: run one sweep of each, and compare their laws")
            if name in found:
                raise ConfigError(f"axes.{key}: {name} is there twice")
            found[name] = _raw_values(leaf, f"axes.{name}")
    return found


def _leaves(key: str, value: Json, fields: Mapping[str, Sequence[str]]) -> list[tuple[str, Json]]:
    if key in fields:
        if not isinstance(value, Mapping) or not value:
            raise must(f"axes.{key}", f"a mapping from fields of the {key} to values", value)
        return [leaf for name, item in value.items() for leaf in _flat(f"{key}.{name}", item)]
    owners = [part for part, names in fields.items() if key in names]
    if len(owners) == 2:
        raise ConfigError(f"axes.{key}: is a field of both: write workload.{key} or optimizer.{key}")
    if not owners:
        names = {*OWN, *itertools.chain.from_iterable(fields.values())}
        raise unknown_name(f"axes.{key}", key, names, "axis or field")
    return _flat(f"{owners[0]}.{key}", value)


def _flat(name: str, value: Json) -> list[tuple[str, Json]]:
    if isinstance(value, Mapping) and not set(value) & {*SCALES, "points"}:
        return [leaf for key, item in value.items() for leaf in _flat(f"{name}.{key}", item)]
    return [(name, value)]


def _raw_values(node: Json, where: str) -> list[Json]:
    if isinstance(node, Mapping):
        return list(_unique(_range_values(node, where), where))
    return list(_unique([item for item, _ in _items(node, where)], where))


def combinations(
    nodes: Mapping[str, Json], extra: Mapping[str, list[Json]], builders: Mapping[str, Builder]
) -> list[Combination]:
    """Return every combination of the further axes, each value checked by building its object.

    Args:
        nodes: of the workload and of the optimizer, as written.
        extra: from `further_axes`.
        builders: of the workload and of the optimizer.
    """
    size = 1
    for values in extra.values():
        size *= len(values)
    if size > MAX_VARIANTS:
        raise ConfigError(f"axes: the further axes make {size:,} variants, at most {MAX_VARIANTS:,} can be planned")
    found = []
    for chosen in itertools.product(*extra.values()):
        made = copy.deepcopy(dict(nodes))
        for name, value in zip(extra, chosen, strict=True):
            _set(made, name, value)
        objects = {part: _built(builders[part], made[part], part, extra) for part in made}
        values_of = {name: _get(objects, name) for name in extra}
        found.append(Combination(objects["workload"], objects["optimizer"], values_of))
    return found


def _built(builder: Builder, node: Json, part: str, extra: Mapping[str, object]) -> Any:
    try:
        return builder(node, part)
    except ConfigError as error:
        place = str(error).partition(":")[0]
        if any(place == name or place.startswith((f"{name}.", f"{name}[")) for name in extra):
            raise ConfigError(f"axes.{error}") from error
        raise


def _set(nodes: dict[str, Json], name: str, value: Json) -> None:
    part, *path, last = name.split(".")
    node = nodes[part]
    for key in path:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"axes.{name}: {part}.{key} has no fields")
    node[last] = value


def _get(objects: Mapping[str, Any], name: str) -> Json:
    part, *path = name.split(".")
    value: Json = fields_of(objects[part])
    for key in path:
        value = value[key]
    return value
