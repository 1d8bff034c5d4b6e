"""What `plan` and `status` say of a sweep, as plain JSON."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.build import target_of
from orchestrator.cli.timing import time_of
from orchestrator.config import Loaded
from orchestrator.config.checks import NEIGHBOURS, cautions
from orchestrator.progress import PROGRESS_FILE
from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from orchestrator.store.lease import Claim, read_lease
from sweeps.agenda import Outcome, first_lrs, is_done, result_of
from sweeps.forks import shared_tokens
from sweeps.laws.law import REACH
from sweeps.plan import (
    Bracket,
    brackets_of,
    cells_of,
    grid_lrs,
    group_label,
    held_out_cell,
    is_open_ended,
    mean_losses,
    price,
    trials_of,
)
from sweeps.spec import Cell, Json, Part, Range, Sweep, Trial, content_key
from sweeps.stopping import STOPPERS

SAME = 1e-9  # two numbers this near are one


def plan_of(loaded: Loaded, *, home: Path, with_time: bool) -> dict[str, Json]:
    """Return the cells of a sweep with their cost, what is done of them, and an estimate of time."""
    sweep = loaded.sweep
    outcomes = Index.open(SweepStore(home, sweep.experiment)).outcomes()
    brackets = brackets_of(sweep)
    trials = {bracket.key: _first_trials(sweep, bracket) for bracket in brackets}
    cells = [_cell(bracket, trials[bracket.key]) for bracket in brackets]
    checks = _held_out(sweep, outcomes)
    held_out = [
        {**_cell(*check), "variant": f"held out, {label}" if label else "held out"} for label, check in checks.items()
    ]
    listed = [trial for some in trials.values() for trial in some]
    checked = sum(_checked(sweep, outcomes))
    done = _done(sweep, listed, outcomes) + checked
    every = [*cells, *held_out]
    planned: dict[str, Json] = {
        "name": sweep.name,
        "key": sweep.key,
        "workload": sweep.variants[0].workload.name,
        "optimizer": sweep.variants[0].optimizer.name,
        "schedule": sweep.schedule.name,
        "search": sweep.search.name,
        "unit": sweep.variants[0].size.unit,
        "parameters": sweep.variants[0].size.total_parameters,
        "cells": cells,
        "held_out": held_out,
        "totals": {
            "trials": sum(cell["trials"] for cell in every),
            "tokens": sum(cell["train_tokens"] for cell in every),
            "flops": sum(cell["flops"] for cell in every),
            "done": done,
        },
        "notes": _notes(sweep),
    }
    left = [t for t in listed if not is_done(t, outcomes.get(t.key))]
    shared = shared_tokens(listed) if sweep.forks else 0
    planned["totals"]["trained_tokens"] = planned["totals"]["tokens"] - shared
    check_trials = [trial for _, trials in checks.values() for trial in trials][checked:]
    return {**planned, **time_of(sweep, left, listed, outcomes, with_time=with_time, held_out=check_trials)}


def _first_trials(sweep: Sweep, bracket: Bracket) -> list[Trial]:
    """Return the trials a bracket runs before it grows; of a search, as many at stand-in LRs over its range."""
    return trials_of(sweep, bracket, stand_in_lrs(sweep))


def stand_in_lrs(sweep: Sweep) -> tuple[float, ...]:
    """Return the LRs of a grid, or for a search as many over its range: their price is the same."""
    lr = sweep.axes.lr
    if sweep.search.name == "grid" or not isinstance(lr, Range):
        return grid_lrs(sweep)
    return Range(lr.low, lr.high, lr.scale, max(2, first_lrs(sweep))).grid()[: first_lrs(sweep)]


def _cell(bracket: Bracket, trials: Sequence[Trial]) -> dict[str, Json]:
    cost = price(trials)
    values = bracket.variant.values
    return {
        "variant": ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in values.items()),
        "values": dict(values),
        "batch_tokens": bracket.batch_tokens,
        "tokens": [cell.tokens for cell in bracket.cells],
        "lrs": len({trial.lr for trial in trials}),
        "seeds": len(bracket.seeds),
        "trials": cost.trials,
        "train_tokens": cost.tokens,
        "flops": cost.flops,
    }


def _held_out(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> dict[str, tuple[Bracket, list[Trial]]]:
    """Return the held-out checks by law: at its largest variant, three neighbouring LRs (stand-ins: not known yet)."""
    if sweep.validate is None or _beyond_reach(sweep):
        return {}
    largest: dict[str, list[Cell]] = {}
    for variant in sorted(sweep.variants, key=lambda v: -v.size.parameters):
        cells = largest.setdefault(group_label(sweep, variant), [])
        if not cells or cells[0].parameters == variant.size.parameters:
            cells.append(held_out_cell(sweep, variant))
    lowest, factor = stand_in_lrs(sweep)[0], sweep.validate.factor
    checks = {}
    for label, cells in largest.items():
        cell = cells[0]
        if len(cells) > 1:  # profiled: which of them is known once it was trained
            cell = max(by_cell(sweep, outcomes, cells), key=lambda found: len(found[1]))[0]
        bracket = Bracket((cell,))
        checks[label] = (bracket, trials_of(sweep, bracket, [lowest * factor**i for i in range(NEIGHBOURS)]))
    return checks


def _beyond_reach(sweep: Sweep) -> str:
    """Return that the held-out target lies beyond the reach of a law of all cells, "" if it does not."""
    check = sweep.validate
    if check is None:
        return ""
    cells = cells_of(sweep)
    target = held_out_cell(sweep, sweep.variants[0])
    said = []
    for name in ("batch_tokens", "tokens"):
        wide = sweep.law.reach.get(name, REACH[name])
        values = [getattr(cell, name) for cell in cells]
        low, high, asked = min(values) / wide, max(values) * wide, getattr(target, name)
        if asked < low * (1 - SAME) or asked > high * (1 + SAME):
            said.append(f"{name} {asked:,} is beyond the law's reach ({low:,.0f} to {high:,.0f})")
    return " and ".join(said)


def _done(sweep: Sweep, listed: Sequence[Trial], outcomes: Mapping[str, Outcome]) -> int:
    """Return how many of the plan's trials are done; a search's LRs are not known before, so any of them count."""
    if sweep.search.name == "grid":
        return sum(is_done(trial, outcomes.get(trial.key)) for trial in listed)
    found = {trial.key for _, ended in by_cell(sweep, outcomes, cells_of(sweep)) for trial, _ in ended}
    return min(len(listed), len(found))


def _checked(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[int]:
    """Return how many trials of each held-out check are done; their LRs are the law's, so any of the target count."""
    checks = _held_out(sweep, outcomes)
    found = by_cell(sweep, outcomes, [bracket.cells[0] for bracket, _ in checks.values()])
    return [min(len(ended), len(trials)) for (_, ended), (_, trials) in zip(found, checks.values(), strict=True)]


def _notes(sweep: Sweep) -> list[str]:
    """Return what the plan changed of what was asked."""
    asked = sweep.axes.tokens or ()
    cells = {cell.tokens for bracket in brackets_of(sweep) for cell in bracket.cells}
    rounded = sorted(cells - set(asked)) if asked else []
    notes = []
    if rounded:
        notes.append(f"horizons rounded to whole batches: {', '.join(f'{tokens:,}' for tokens in rounded)}")
    notes += [f"warning: {text}" for text in cautions(sweep)]
    if any(STOPPERS[part.name].learns for part in sweep.stoppers):
        notes.append("short trials come first, one by one: from them the stopper learns which longer ones are hopeless")
    if sweep.search.name == "grid" and sweep.search.grow:
        notes.append(f"where the best LR is at an edge, up to {sweep.search.grow} LRs more beyond it")
    least, made = len(sweep.law.variables) + 2, len(cells_of(sweep))
    if made < least:
        notes.append(f"no law can be fitted: it takes {least} cells at least, the axes make {made}")
    beyond = _beyond_reach(sweep)
    if beyond:
        notes.append(f"warning: no held-out check can be made: {beyond}; move validate nearer, or set law.reach")
    repeats = {v.size.train_tokens for v in sweep.variants if v.size.train_tokens is not None}
    longest = max(cells)
    if repeats and longest > min(repeats):
        unit = sweep.variants[0].size.unit
        notes.append(f"the longest horizon reads the training data {longest / min(repeats):.2g} times ({unit}s repeat)")
    return notes


def status_of(loaded: Loaded, *, home: Path) -> dict[str, Json]:
    """Return how far a sweep is, from its outcomes, its lease and its driver's progress file."""
    sweep = loaded.sweep
    store = SweepStore(home, sweep.experiment)
    outcomes = Index.open(store).outcomes()
    live = _live(store)
    checks = _held_out(sweep, outcomes)
    targets = [bracket.cells[0] for bracket, _ in checks.values()]
    cells = [_cell_status(sweep, cell, found) for cell, found in by_cell(sweep, outcomes, cells_of(sweep))]
    for cell, (_, trials) in zip(by_cell(sweep, outcomes, targets), checks.values(), strict=True):
        target = _cell_status(sweep, *cell)
        total = max(len(trials), target["done"])
        cells.append({**target, "label": f"held out: {target['label']}", "trials": total})
    keys = {key for cell in cells for key in cell.pop("keys")}
    planned = sum(len(_first_trials(sweep, bracket)) for bracket in brackets_of(sweep))
    planned += sum(len(trials) for _, trials in checks.values())
    return {
        "name": sweep.name,
        "trials": max(planned, len(keys), int(live["trials"]) if live else 0),
        "done": max(len(keys), int(live["trials_done"]) if live else 0),
        "outcomes": dict(Counter(outcome.outcome for outcome in outcomes.values() if not outcome.is_trunk)),
        "driver": _driver(read_lease(store.folder)),
        "live": live,
        "cells": cells,
        "folder": str(store.folder),
    }


def by_cell(
    sweep: Sweep, outcomes: Mapping[str, Outcome], cells: Sequence[Cell]
) -> list[tuple[Cell, list[tuple[Trial, Outcome]]]]:
    """Return each cell with the outcomes that say something of it, whichever LRs they were."""
    open_ended = is_open_ended(sweep)
    ended: dict[str, list[tuple[Trial, Outcome]]] = {}
    for outcome in outcomes.values():
        if outcome.trial and outcome.outcome != "failed":
            trial = Trial.from_json(outcome.trial)
            ended.setdefault(_recipe_key(trial), []).append((trial, outcome))
    found = []
    for cell in cells:
        wanted, *_ = trials_of(sweep, Bracket((cell,)), [1.0])
        of_cell = [
            (trial, outcome)
            for trial, outcome in ended.get(_recipe_key(wanted), ())
            if trial.seed in cell.seeds
            and (not open_ended or trial.tokens >= cell.tokens)
            and (outcome.stop is None or outcome.stop.holds_for(replace(trial, stopping=wanted.stopping)))
        ]
        found.append((cell, of_cell))
    return found


def _recipe_key(trial: Trial) -> str:
    """Return what trials that differ in nothing but LR and seed share."""
    return content_key({**trial.identity(), "lr": None, "seed": None})


def _shape(workload: Part, optimizer: Part, schedule: Part, data_fingerprint: str) -> Json:
    """Return what of a trial can change its curve, but for its numbers."""
    return [workload.identity(), optimizer.identity(), schedule.identity(), data_fingerprint]


def _cell_status(sweep: Sweep, cell: Cell, found: Sequence[tuple[Trial, Outcome]]) -> dict[str, Json]:
    losses = mean_losses([result_of(trial, cell.tokens, outcome) for trial, outcome in found])
    best = min(losses, key=lambda lr: losses[lr], default=None)
    best_loss = None if best is None or math.isinf(losses[best]) else losses[best]
    return {
        "label": cell.label,
        "done": len(found),
        "stopped": sum(outcome.outcome == "stopped" for _, outcome in found),
        "trials": max(first_lrs(sweep) * len(cell.seeds), len(found)),
        "best_lr": None if best_loss is None else best,
        "best_loss": best_loss,
        "target": _reached(cell, [outcome for _, outcome in found]),
        "keys": [trial.key for trial, _ in found],
    }


def _reached(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, Json] | None:
    """Return how many trials reached the workload's target and the fewest tokens it took, None without a target."""
    told = [target_of(cell.variant.workload, outcome.curve, cwd=Path.cwd()) for outcome in outcomes]
    targets = [target for target in told if target is not None]
    if not targets:
        return None
    tokens = [target.reached_tokens for target in targets if target.reached_tokens is not None]
    first = targets[0]
    return {
        "metric": first.metric,
        "value": first.value,
        "reached": len(tokens),
        "first_tokens": min(tokens, default=None),
    }


def _driver(claim: Claim | None) -> dict[str, Json] | None:
    if claim is None or not claim.alive(now=time.time()):
        return None
    return {"user": claim.user, "host": claim.host, "pid": claim.pid, "since": claim.since}


def _live(store: SweepStore) -> dict[str, Json] | None:
    """Return the driver's latest look at its own progress, None if nothing is under way."""
    try:
        found = json.loads((store.folder / PROGRESS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
