"""A sweep as two Parquet files that need nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from sweeps.agenda import LOSS, Outcome
from sweeps.curves import Scalar, replacing, write_parquet
from sweeps.errors import ConfigError
from sweeps.spec import Json, Sweep


@dataclass(frozen=True, slots=True)
class Written:
    """What an export holds."""

    files: tuple[Path, ...]
    trials: int
    points: int


def export_sweep(sweep: Sweep, *, home: Path, folder: Path) -> Written:
    """Write curves.parquet (a row a point) and trials.parquet (a row a trial).

    Raises:
        ConfigError: no trial of the sweep has ended.
        StoreError: the folder cannot be written.
    """
    ended = Index.open(SweepStore(home, sweep.experiment)).outcomes()
    outcomes = {key: outcome for key, outcome in ended.items() if not outcome.is_trunk}
    if not outcomes:
        raise ConfigError(f"export: no trial of {sweep.name} has ended in {home}: run it first")
    about = {key: about_trial(outcome) for key, outcome in outcomes.items()}
    files = (folder / "curves.parquet", folder / "trials.parquet")
    write_parquet(files[0], {key: outcome.curve for key, outcome in outcomes.items()}, about=about)
    rows = [{"key": key, **about[key]} for key in sorted(about)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    with replacing(files[1]) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return Written(files, len(outcomes), sum(len(outcome.curve) for outcome in outcomes.values()))


def about_trial(outcome: Outcome) -> dict[str, Scalar]:
    """Return what a trial was and how it ended, flat: `workload.width`, `lr`, `outcome`, `final_loss`."""
    trial = outcome.trial
    about: dict[str, Scalar] = {}
    for name in ("lr", "batch_tokens", "tokens", "seed", "precision", "parameters", "flops_per_token"):
        value = trial.get(name)
        if isinstance(value, int | float | str):
            about[name] = float(value) if name == "lr" else value
    for place in ("workload", "optimizer", "schedule"):
        part = trial.get(place)
        if isinstance(part, dict):
            about[place] = str(part.get("name"))
            about.update(_flat(f"{place}.", part.get("fields", {})))
    ended: dict[str, Scalar] = {
        "outcome": outcome.outcome,
        "reason": outcome.reason,
        "tokens_done": outcome.tokens,
        "seconds": outcome.seconds,
        "final_loss": outcome.curve.last(LOSS),
    }
    if outcome.forked_from is not None:
        ended["trunk"], ended["forked_at_tokens"] = outcome.forked_from
    if outcome.target is not None:
        ended["target_metric"] = outcome.target.metric
        ended["target_value"] = outcome.target.value
        ended["target_reached_tokens"] = outcome.target.reached_tokens
    return {**about, **ended}


def _flat(prefix: str, fields: Json) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat.update(_flat(f"{prefix}{name}.", value))
        else:
            flat[prefix + name] = None if value is None else str(value)
    return flat
