"""Recorded loss curves in a folder: CSV or Parquet files with the columns step, lr, loss, one a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from sweeps.errors import ConfigError, unknown_name
from sweeps.forecast.records import MOST_STEPS, Floats, LossCurve, LrPath
from sweeps.replay.schedules import disagreement, recorded_path
from sweeps.replay.table import check_names

COLUMNS = ("step", "lr", "loss")
LR_DIGITS = 0.01  # share by which a recorded LR may differ from that of its schedule, for rounding; assumed


@dataclass(frozen=True, slots=True)
class Recorded:
    """Curves of a folder by name, and what had to be assumed about them."""

    curves: dict[str, LossCurve]
    notes: tuple[str, ...]


def read_curves(folder: Path, *, paths: Mapping[str, LrPath] | None, warmup_steps: int | None) -> Recorded:
    """Return the curves of a folder, each with the LR of every step.

    `paths` holds schedules by name of curve; a curve without one gets a path through its lr column (`recorded_path`),
    and a note says so.

    Raises:
        ConfigError: no folder or no curves in it, columns or values that cannot be, two files of one name, or a
            schedule that the lr column contradicts.
    """
    if not folder.is_dir():
        raise ConfigError(f"FOLDER: no folder {folder}")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".parquet"))
    if not files:
        raise ConfigError(f"FOLDER: no CSV or Parquet files in {folder}")
    curves: dict[str, LossCurve] = {}
    drawn: dict[str, int] = {}
    for file in files:
        if file.stem in curves:
            raise ConfigError(f"FOLDER: two files hold a curve {file.stem!r}; rename one")
        columns = _columns(file)
        path = (paths or {}).get(file.stem)
        if path is None:
            path = recorded_path(columns["step"].astype(np.int64), columns["lr"], warmup_steps=warmup_steps)
            drawn[file.stem] = path.warmup_steps
        curves[file.stem] = _curve(file.stem, path, columns)
    unknown = [str(unknown_name("schedules", name, curves, "curve")) for name in paths or {} if name not in curves]
    return Recorded(curves, (*unknown, *_notes(drawn, given=warmup_steps is not None)))


def _curve(name: str, path: LrPath, columns: Mapping[str, Floats]) -> LossCurve:
    step_P = columns["step"].astype(np.int64)
    if step_P[-1] > len(path):
        raise ConfigError(f"{name}: its points go to step {step_P[-1]}, its schedule ends at step {len(path)}")
    worst = disagreement(path, step_P, columns["lr"])
    if worst is not None and worst[1] > LR_DIGITS:
        step, _ = worst
        said, is_ = float(path.lr[step - 1]), float(columns["lr"][np.searchsorted(step_P, step)])
        raise ConfigError(f"{name}: at step {step} its schedule says lr {said:.4g}, its lr column {is_:.4g}")
    return LossCurve(name, path, step_P, columns["loss"])


def _notes(drawn: Mapping[str, int], *, given: bool) -> tuple[str, ...]:
    """Say what was assumed of curves without a schedule; `drawn` holds their steps of warm-up."""
    if not drawn:
        return ()
    which = ", ".join(drawn) if len(drawn) <= 3 else f"{len(drawn)} curves"
    low, high = min(drawn.values()), max(drawn.values())
    steps = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    source = "as --warmup-steps says" if given else "read off where the rows begin; --warmup-steps says otherwise"
    return (
        f"{which}: the LR of each step is drawn straight between the rows of the lr column, "
        f"after a linear warm-up of {steps} steps, {source}",
    )


def _columns(file: Path) -> dict[str, Floats]:
    try:
        table = pacsv.read_csv(file) if file.suffix.lower() == ".csv" else pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{file.name}: cannot be read: {' '.join(str(error).split())}") from error
    check_names(table, file.name)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ConfigError(f"{file.name}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    found: dict[str, Floats] = {}
    for name in COLUMNS:
        try:
            values = table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            raise ConfigError(f"{file.name}: column {name} must hold numbers") from error
        found[name] = np.asarray(values, dtype=np.float64)
    return _checked(found, file.name)


def _checked(columns: dict[str, Floats], name: str) -> dict[str, Floats]:
    """Return the rows after step 0, in the order of steps, or raise ConfigError."""
    order = np.argsort(columns["step"], kind="stable")
    rows = {key: values[order] for key, values in columns.items()}
    kept = {key: values[rows["step"] >= 1] for key, values in rows.items()}
    step_P = kept["step"]
    if len(step_P) == 0:
        raise ConfigError(f"{name}: has no rows")
    if not (np.all(np.isfinite(step_P)) and np.all(step_P == np.round(step_P)) and np.all(np.diff(step_P) > 0)):
        raise ConfigError(f"{name}: column step must hold whole numbers, each once")
    if step_P[-1] > MOST_STEPS:
        raise ConfigError(f"{name}: column step must be at most {MOST_STEPS:,}, got {step_P[-1]:.4g}")
    for key in ("lr", "loss"):
        bad = ~(np.isfinite(kept[key]) & (kept[key] > 0))
        if bad.any():
            where = int(np.argmax(bad))
            raise ConfigError(f"{name}: {key} must be above 0, got {kept[key][where]:g} at step {step_P[where]:.0f}")
    return kept
