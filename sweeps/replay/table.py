"""A recorded table of trainings: CSV or Parquet, its columns named as powersweep names them."""

# R runs

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from sweeps.errors import ConfigError, unknown_name
from sweeps.replay.expressions import pairs_of, rows_where, values_of

Floats = NDArray[np.float64]

OPTIONAL = ("parameters",)


@dataclass(frozen=True)
class Table:
    """Runs; all of shape [R]. Loss is not finite where a run diverged; parameters are 1 where the table has none."""

    lr: Floats
    batch_tokens: Floats
    tokens: Floats
    parameters: Floats
    loss: Floats

    def __len__(self) -> int:
        return len(self.lr)

    def of(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> Table:
        """Return some of the runs."""
        return Table(*(getattr(self, item.name)[kept] for item in fields(self)))

    @property
    def columns(self) -> Mapping[str, Floats]:
        """The columns by name, for filters."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def places(self) -> Floats:
        """(lr, batch_tokens, tokens, parameters), shape [R, 4]."""
        return np.column_stack([self.lr, self.batch_tokens, self.tokens, self.parameters])

    @property
    def flops(self) -> Floats:
        """6 a parameter and token, of each run (Kaplan et al., arXiv:2001.08361)."""
        return 6.0 * self.parameters * self.tokens

    def cells(self) -> list[tuple[float, float]]:
        """Return every (parameters, tokens), sorted."""
        return sorted(set(zip(self.parameters.tolist(), self.tokens.tolist(), strict=True)))

    def cell(self, parameters: float, tokens: float) -> Table:
        """Return the runs of one (parameters, tokens)."""
        return self.of((self.parameters == parameters) & (self.tokens == tokens))

    def where(self, text: str, *, name: str) -> Table:
        """Return the runs a filter keeps. Raises ConfigError, also where it keeps none."""
        found = self.of(rows_where(text, self.columns, where=name))
        if len(found) == 0:
            raise ConfigError(f"{name}: {text!r} keeps none of {len(self)} runs")
        return found


def read_table(path: Path, columns: str) -> Table:
    """Return the runs of a CSV or Parquet file.

    Args:
        path: of the file.
        columns: `lr=...,batch_tokens=...,tokens=...,loss=...` and perhaps `parameters=...`: expressions of its columns.

    Raises:
        ConfigError: a file that cannot be read, a name or an expression at fault, or a number that is not positive
            where it must be.
    """
    wanted = pairs_of(columns, where="columns")
    known = [item.name for item in fields(Table)]
    for name in wanted:
        if name not in known:
            raise unknown_name("columns", name, known, "column of a law")
    for name in known:
        if name not in wanted and name not in OPTIONAL:
            raise ConfigError(
                f"columns: {name} is missing; needed are {', '.join(n for n in known if n not in OPTIONAL)}"
            )
    table = read_columns(path)
    found = numbers_of(table)
    if not found:
        raise ConfigError(f"{path}: has no column of numbers")
    others = set(table.column_names) - set(found)
    made = {
        name: values_of(text, found, where=f"columns.{name}", without_numbers=others) for name, text in wanted.items()
    }
    made.setdefault("parameters", np.ones(len(made["lr"])))
    for name, column in made.items():
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0.0)))
        if name != "loss" and len(bad):
            raise ConfigError(
                f"{path}: {name} must be positive in every run, got {column[bad[0]]:g} in row {bad[0] + 1}"
            )
    return Table(**{name: made[name] for name in known})


def read_columns(path: Path) -> pa.Table:
    """Return the columns of a CSV or Parquet file. Raises ConfigError if it cannot be read or holds no rows."""
    try:
        if not path.is_file():
            raise ConfigError(
                f"{path}: {'is a folder, not a CSV or Parquet file' if path.is_dir() else 'no such file'}"
            )
        read = pa.parquet.read_table if path.suffix.lower() in (".parquet", ".pq") else pa.csv.read_csv
        table = read(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if table.num_rows == 0:
        raise ConfigError(f"{path}: has no rows")
    check_names(table, str(path))
    return table


def check_names(table: pa.Table, where: str) -> None:
    """Raise ConfigError where two columns have one name."""
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where}: has two columns named {twice[0]!r}")


def numbers_of(table: pa.Table) -> dict[str, Floats]:
    """Return the columns that hold numbers; what is missing is NaN."""
    numbers = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            numbers[name] = np.asarray(pc.cast(column, pa.float64()).fill_null(np.nan).to_numpy(), dtype=np.float64)
    return numbers
