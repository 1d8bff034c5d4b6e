"""The curve of a run: what it reported, as arrays over tokens; and many curves as one Parquet file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sweeps.errors import StoreError
from sweeps.spec import Json

# P points

Scalar = bool | int | float | str | None
ABOUT = "trial."  # prefix of the columns that say what a curve is a curve of
POINT_COLUMNS = ("tokens", "step", "timestamp")


class PointLike(Protocol):
    """One report of a run (`workloads.base.Point` is one)."""

    @property
    def tokens(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def timestamp(self) -> float: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


def _ints() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


def _floats() -> NDArray[np.float64]:
    return np.empty(0, np.float64)


@dataclass(frozen=True, eq=False)
class Curve:
    """The reports of one run, by tokens.

    Attributes:
        tokens: consumed so far, strictly ascending, [P].
        step: optimizer steps so far, [P].
        timestamp: seconds since the epoch, [P].
        metrics: name -> values [P], NaN where a report lacks the metric. A metric that no report holds is left out.

    Raises:
        ValueError: arrays of unequal length, or tokens that do not ascend.
    """

    tokens: NDArray[np.int64] = field(default_factory=_ints)
    step: NDArray[np.int64] = field(default_factory=_ints)
    timestamp: NDArray[np.float64] = field(default_factory=_floats)
    metrics: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        points = len(self.tokens)
        columns = {name: _frozen(v, np.float64) for name, v in sorted(self.metrics.items())}
        object.__setattr__(self, "tokens", _frozen(self.tokens, np.int64))
        object.__setattr__(self, "step", _frozen(self.step, np.int64))
        object.__setattr__(self, "timestamp", _frozen(self.timestamp, np.float64))
        for name, values in {"step": self.step, "timestamp": self.timestamp, **columns}.items():
            if values.shape != (points,):
                raise ValueError(f"{name}: must have one value for each of {points} points, got {values.shape}")
        if not np.all(np.diff(self.tokens) > 0):
            raise ValueError("tokens: must ascend strictly from point to point")
        present = {name: v for name, v in columns.items() if not np.all(np.isnan(v))}
        object.__setattr__(self, "metrics", present)

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curve):
            return NotImplemented
        return (
            np.array_equal(self.tokens, other.tokens)
            and np.array_equal(self.step, other.step)
            and np.array_equal(self.timestamp, other.timestamp, equal_nan=True)
            and self.metrics.keys() == other.metrics.keys()
            and all(np.array_equal(v, other.metrics[name], equal_nan=True) for name, v in self.metrics.items())
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    def last(self, name: str) -> float | None:
        """Return the latest value of a metric that there is, or None."""
        values = self.metrics.get(name)
        return None if values is None else float(values[~np.isnan(values)][-1])

    def at(self, tokens: int, name: str) -> float | None:
        """Return a metric at exactly this mark, or None if the run did not report it there."""
        values = self.metrics.get(name)
        index = int(np.searchsorted(self.tokens, tokens))
        if values is None or index == len(self) or self.tokens[index] != tokens or math.isnan(values[index]):
            return None
        return float(values[index])

    def present(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return tokens and values of a metric at the points that hold it, for fitting and drawing."""
        values = self.metrics.get(name)
        if values is None:
            return _ints(), _floats()
        there = ~np.isnan(values)
        return self.tokens[there], values[there]

    def since(self, tokens: int) -> Curve:
        """Return the points after this mark."""
        return self._part(slice(int(np.searchsorted(self.tokens, tokens, side="right")), None))

    def until(self, tokens: int) -> Curve:
        """Return the points up to this mark, with it."""
        return self._part(slice(None, int(np.searchsorted(self.tokens, tokens, side="right"))))

    def _part(self, rows: slice) -> Curve:
        metrics = {name: values[rows] for name, values in self.metrics.items()}
        return Curve(self.tokens[rows], self.step[rows], self.timestamp[rows], metrics)

    def append(self, points: Iterable[PointLike]) -> Curve:
        """Return the curve with later points added. Raises ValueError if they are not later."""
        added = list(points)
        names = sorted({*self.metrics, *(name for p in added for name in p.metrics)})
        absent = np.full(len(self), np.nan)
        return Curve(
            np.concatenate([self.tokens, np.array([p.tokens for p in added], np.int64)]),
            np.concatenate([self.step, np.array([p.step for p in added], np.int64)]),
            np.concatenate([self.timestamp, np.array([p.timestamp for p in added], np.float64)]),
            {
                name: np.concatenate([self.metrics.get(name, absent), [p.metrics.get(name, math.nan) for p in added]])
                for name in names
            },
        )

    def to_json(self) -> Json:
        """Return the columns as plain JSON: an absent value is null, an infinite one a word; nothing is rounded."""
        return {
            "tokens": self.tokens.tolist(),
            "step": self.step.tolist(),
            "timestamp": [_encode(x) for x in self.timestamp.tolist()],
            "metrics": {name: [_encode(x) for x in values.tolist()] for name, values in self.metrics.items()},
        }

    @classmethod
    def from_json(cls, value: Json) -> Curve:
        """Return the curve that `to_json` wrote."""
        return cls(
            np.array(value["tokens"], np.int64),
            np.array(value["step"], np.int64),
            np.array([_decode(x) for x in value["timestamp"]], np.float64),
            {name: np.array([_decode(x) for x in values]) for name, values in value["metrics"].items()},
        )


def _frozen(values: Any, dtype: type[np.generic]) -> NDArray[Any]:
    """Return a read-only view of the values as an array of this type."""
    array = np.asarray(values, dtype=dtype).view()
    array.flags.writeable = False
    return array


def _encode(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def _decode(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def write_parquet(path: Path, curves: Mapping[str, Curve], *, about: Mapping[str, Mapping[str, Scalar]]) -> None:
    """Write curves as one long table: a row for each point, sorted by key; the file is there whole or not at all.

    Columns: key; `trial.<name>` for what `about[key]` says of the curve's run; tokens, step, timestamp; and each
    metric by its name, null where absent. A curve without points keeps one row, its tokens null.

    Raises:
        ValueError: values of `about` that share a name and not a type.
        StoreError: the file cannot be written.
    """
    order = [(key, curves[key]) for key in sorted(curves)]
    rows = [max(len(curve), 1) for _, curve in order]
    columns = {"key": pa.array(np.repeat(np.array([key for key, _ in order], object), rows), pa.string())}
    for name in sorted({name for key, _ in order for name in about.get(key, {})}):
        columns[ABOUT + name] = _about_column(name, [about.get(key, {}).get(name) for key, _ in order], rows)
    for name, kind in zip(POINT_COLUMNS, (pa.int64(), pa.int64(), pa.float64()), strict=True):
        columns[name] = pa.chunked_array(
            [pa.array(getattr(c, name) if len(c) else [None], kind) for _, c in order], kind
        )
    for name in sorted({name for _, curve in order for name in curve.metrics}):
        parts = [
            pa.array(c.metrics[name], pa.float64(), from_pandas=True)
            if name in c.metrics
            else pa.nulls(n, pa.float64())
            for (_, c), n in zip(order, rows, strict=True)
        ]
        columns[name] = pa.chunked_array(parts, pa.float64())
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def _about_column(name: str, values: list[Scalar], rows: list[int]) -> pa.Array:
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"about: {name} must be of one type in all curves, got {values}") from error
    return column.take(pa.array(np.repeat(np.arange(len(values)), rows)))


def read_parquet(path: Path) -> dict[str, Curve]:
    """Return the curves of a file by key. Raises StoreError if it is missing or no table of curves."""
    table = _read(path)
    names = [n for n in table.column_names if n not in ("key", *POINT_COLUMNS) and not n.startswith(ABOUT)]
    columns = {name: table[name].to_numpy() for name in (*POINT_COLUMNS, *names)}
    curves = {}
    for key, rows in _groups(table):
        if table["tokens"][rows.start].as_py() is None:
            curves[key] = Curve()
            continue
        part = {name: values[rows] for name, values in columns.items()}
        curves[key] = Curve(
            part["tokens"].astype(np.int64),
            part["step"].astype(np.int64),
            part["timestamp"],
            {name: part[name] for name in names},
        )
    return curves


def read_about(path: Path) -> dict[str, dict[str, Scalar]]:
    """Return what a file says of each curve's run, by key, absent values left out. Raises StoreError."""
    table = _read(path)
    names = [name for name in table.column_names if name.startswith(ABOUT)]
    found = {}
    for key, rows in _groups(table):
        values = {name.removeprefix(ABOUT): table[name][rows.start].as_py() for name in names}
        found[key] = {name: value for name, value in values.items() if value is not None}
    return found


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"curves: {path} cannot be read as Parquet: {error}") from error
    missing = [name for name in ("key", *POINT_COLUMNS) if name not in table.column_names]
    if missing:
        raise StoreError(f"curves: {path} is no table of curves, it lacks the columns {', '.join(missing)}")
    return table.sort_by([("key", "ascending"), ("tokens", "ascending")])


def _groups(table: pa.Table) -> Iterator[tuple[str, slice]]:
    """Yield each key of a table sorted by key, with its rows."""
    keys = table["key"].to_numpy()
    if len(keys):
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
            yield keys[start], slice(int(start), int(end))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the place of `path` at the end, whole and on disk; on an error nothing changes.

    Raises:
        StoreError: the folder or file cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
