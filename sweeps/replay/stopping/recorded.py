"""Recorded runs as cells in which they compete: from loss curves, or from a table with a row for each report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sweeps.errors import ConfigError, unknown_name
from sweeps.forecast.records import LossCurve, LrPath
from sweeps.replay.curves import SAME_LENGTH
from sweeps.replay.expressions import pairs_of, values_of
from sweeps.replay.table import numbers_of, read_columns
from sweeps.spec import ABSURD_FACTOR
from sweeps.stopping import CellSoFar, RunSoFar

# N rows of a table

Floats = NDArray[np.float64]

LABELS = ("run", "cell", "recipe", "outcome")  # columns by name, several joined by /
NUMBERS = ("tokens", "loss", "horizon", "lr", "seed", "batch_tokens", "parameters")  # expressions
NEEDED = ("run", "tokens", "loss")
EARLY = 0.95  # of the horizon: a run that ends before it without having diverged has failed; a choice
ABOUT = "trial."
ENDED = (  # what an exported table says of how a trial ended, and what differs within a cell
    *("lr", "seed", "outcome", "reason", "tokens_done", "seconds", "final_loss"),
    *("target_metric", "target_value", "target_reached_tokens"),
)
SIZES = ("tokens", "batch_tokens", "parameters", "flops_per_token")  # in which cells of one recipe differ


@dataclass(frozen=True, eq=False)
class Rows:
    """The reports of all runs, a row each; labels are text."""

    labels: Mapping[str, NDArray[np.str_]]
    numbers: Mapping[str, Floats]


def cells_of_curves(curves: Mapping[str, LossCurve]) -> tuple[CellSoFar, ...]:
    """Return curves as cells: those whose schedules are of one length (to 1 %) compete.

    The horizon is where the longest record ends, which may be before the end of its schedule.
    """
    groups: list[list[LossCurve]] = []
    for curve in sorted(curves.values(), key=lambda c: (-len(c.path), c.name)):
        if groups and len(curve.path) >= SAME_LENGTH * len(groups[-1][0].path):
            groups[-1].append(curve)
        else:
            groups.append([curve])
    return tuple(_cell_of_curves(group) for group in groups)


def _cell_of_curves(group: list[LossCurve]) -> CellSoFar:
    horizon = max(int(curve.step[-1]) for curve in group)
    runs = []
    for curve in group:
        path = LrPath(curve.path.lr[:horizon], min(curve.path.warmup_steps, horizon - 1))
        cut = LossCurve(curve.name, path, curve.step, curve.loss)
        run = RunSoFar(curve.name, float(path.lr.max()), 0, curve.step.astype(np.float64), curve.loss, curve=cut)
        runs.append(replace(run, outcome=_outcome(run, horizon=horizon)))
    return CellSoFar(f"{len(group[0].path):,} steps", tuple(runs), float(horizon))


def read_cells(path: Path, columns: str | None) -> tuple[CellSoFar, ...]:
    """Return the cells of a CSV or Parquet file with a row for each report of each run.

    Args:
        path: of the file.
        columns: `run=...,tokens=...,loss=...` and perhaps `cell, recipe, outcome, horizon, lr, seed, batch_tokens,
            parameters`. Labels (run, cell, recipe, outcome) are columns, several joined by `/`; the others are
            expressions. None reads the names of a table that `powersweep export` wrote.

    Raises:
        ConfigError: a file that cannot be read, a name or an expression at fault, numbers that cannot be.
    """
    table = read_columns(path)
    wanted = _exported(table, path) if columns is None else pairs_of(columns, where="columns")
    for name in wanted:
        if name not in (*LABELS, *NUMBERS):
            raise unknown_name("columns", name, (*LABELS, *NUMBERS), "column of a replay")
    for name in NEEDED:
        if name not in wanted:
            raise ConfigError(f"columns: {name} is missing; needed are {', '.join(NEEDED)}")
    numeric = numbers_of(table)
    labels = {name: _labels(table, wanted[name], name) for name in LABELS if name in wanted}
    others = set(table.column_names) - set(numeric)
    numbers = {
        name: values_of(wanted[name], numeric, where=f"columns.{name}", without_numbers=others)
        for name in NUMBERS
        if name in wanted
    }
    return _cells(_checked(Rows(labels, numbers), path))


def _exported(table: pa.Table, path: Path) -> dict[str, str]:
    """Return the columns of a table of curves that powersweep wrote."""
    have = set(table.column_names)
    needed = ["key", "tokens", "validation/loss", ABOUT + "lr", ABOUT + "tokens"]
    missing = [name for name in needed if name not in have]
    if missing:
        raise ConfigError(
            f"{path}: no column {', '.join(missing)}, as an exported table has; --columns says which are which "
            f"({', '.join(NEEDED)} and more). It has: {', '.join(table.column_names)}"
        )
    facts = [name for name in table.column_names if name.startswith(ABOUT) and name[len(ABOUT) :] not in ENDED]
    recipe = [name for name in facts if name[len(ABOUT) :] not in SIZES]
    found = {"run": "key", "tokens": "tokens", "loss": '"validation/loss"', "cell": _joined(facts)}
    if recipe:
        found["recipe"] = _joined(recipe)
    if ABOUT + "outcome" in have:
        found["outcome"] = _joined([ABOUT + "outcome"])
    for name, column in {"horizon": "tokens", "lr": "lr", "seed": "seed"}.items():
        if ABOUT + column in have:
            found[name] = f'"{ABOUT}{column}"'
    for name in ("batch_tokens", "parameters"):
        if ABOUT + name in have:
            found[name] = f'"{ABOUT}{name}"'
    return found


def _joined(names: list[str]) -> str:
    return "/".join(f'"{name}"' for name in names)


def _labels(table: pa.Table, text: str, name: str) -> NDArray[np.str_]:
    """Return the text of a label in every row, [N]: columns joined by a stroke."""
    parts: list[list[str]] = []
    for part in _split(text):
        if part not in table.column_names:
            raise unknown_name(f"columns.{name}", part, table.column_names, "column")
        values = table.column(part).to_pylist()
        if name == "run":
            row = next((n for n, value in enumerate(values, start=1) if value in (None, "")), None)
            if row is not None:
                raise ConfigError(f"columns.run: must name the run of every row, and {part} is empty in row {row}")
        parts.append([str(value) for value in values])
    return np.array(["/".join(row) for row in zip(*parts, strict=True)], dtype=np.str_)


def _split(text: str) -> list[str]:
    """Return names parted by strokes; a stroke within quotes belongs to a name."""
    parts, quote = [""], ""
    for letter in text:
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        elif letter == "/" and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _checked(rows: Rows, path: Path) -> Rows:
    """Return the rows that hold a loss, or raise ConfigError."""
    keep_N = ~np.isnan(rows.numbers["loss"]) & ~np.isnan(rows.numbers["tokens"])
    kept = Rows(
        {name: values[keep_N] for name, values in rows.labels.items()},
        {name: values[keep_N] for name, values in rows.numbers.items()},
    )
    if not keep_N.any():
        raise ConfigError(f"{path}: no row has both tokens and a loss")
    for name, values in kept.numbers.items():
        bad = np.flatnonzero(~np.isfinite(values) | ((values <= 0) if name not in ("tokens", "seed") else (values < 0)))
        if name != "loss" and len(bad):
            row = int(np.flatnonzero(keep_N)[bad[0]]) + 1
            raise ConfigError(f"{path}: {name} must be positive and finite, got {values[bad[0]]:g} in row {row}")
    return kept


def _cells(rows: Rows) -> tuple[CellSoFar, ...]:
    """Return the cells, in the order of their labels."""
    count = len(rows.numbers["loss"])
    run_N = rows.labels["run"]
    cell_N = rows.labels.get("cell")
    if cell_N is None:
        sizes = [rows.numbers[name] for name in ("horizon", "batch_tokens", "parameters") if name in rows.numbers]
        cell_N = np.array(["/".join(f"{size[n]:g}" for size in sizes) for n in range(count)], dtype=np.str_)
    order = np.lexsort((rows.numbers["tokens"], run_N, cell_N))
    starts = [
        i
        for i in range(count)
        if i == 0 or (cell_N[order[i]], run_N[order[i]]) != (cell_N[order[i - 1]], run_N[order[i - 1]])
    ]
    groups: dict[str, list[NDArray[np.intp]]] = {}
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        groups.setdefault(str(cell_N[order[start]]), []).append(order[start:end])
    return tuple(_cell(name, members, rows) for name, members in groups.items())


def _cell(name: str, members: list[NDArray[np.intp]], rows: Rows) -> CellSoFar:
    def first(column: str, rows_P: NDArray[np.intp], otherwise: float) -> float:
        return float(rows.numbers[column][rows_P[0]]) if column in rows.numbers else otherwise

    longest = max(float(rows.numbers["tokens"][rows_P[-1]]) for rows_P in members)
    horizon = max(first("horizon", rows_P, longest) for rows_P in members)
    if horizon <= 0.0:
        raise ConfigError(f"columns: tokens must be above 0 somewhere in cell {name!r}, got 0 in every row")
    recipe = str(rows.labels["recipe"][members[0][0]]) if "recipe" in rows.labels else ""
    runs = []
    for rows_P in members:
        key = str(rows.labels["run"][rows_P[0]])
        tokens_P = rows.numbers["tokens"][rows_P]
        if np.any(np.diff(tokens_P) <= 0):
            twice = tokens_P[int(np.argmax(np.diff(tokens_P) <= 0))]
            raise ConfigError(f"columns: run {key!r} of cell {name!r} has two rows at tokens {twice:g}")
        run = RunSoFar(
            key, first("lr", rows_P, 1.0), int(first("seed", rows_P, 0.0)), tokens_P, rows.numbers["loss"][rows_P]
        )
        said = str(rows.labels["outcome"][rows_P[0]]) if "outcome" in rows.labels else None
        runs.append(replace(run, outcome=_outcome(run, horizon=horizon, said=said)))
    place = {field: first(field, members[0], 1.0) for field in ("batch_tokens", "parameters")}
    return CellSoFar(name, tuple(runs), horizon, recipe, **place)


def _outcome(run: RunSoFar, *, horizon: float, said: str | None = None) -> str:
    """Return how a recorded run ended, from its curve; what the record says of it wins."""
    if said in ("diverged", "failed"):
        return said
    first, last = float(run.loss[0]), float(run.loss[-1])
    if not math.isfinite(last) or (first > 0 and last > ABSURD_FACTOR * first):
        return "diverged"
    return "finished" if said == "finished" or run.done_tokens >= EARLY * horizon else "failed"
