"""What the parts of a sweep must be to each other."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from orchestrator.config.coerce import must, show
from sweeps.agenda import LAW, first_tokens, first_trials
from sweeps.errors import ConfigError
from sweeps.schedules import Schedule
from sweeps.spec import Axes, LawSpec, Range, Resources, Search, Sweep, Validation, Variant
from sweeps.stopping import STOPPERS

MAX_TOKENS = 10**15  # of a run: what the name of a checkpoint has digits for, some 30 times the longest known
MAX_TRIALS = 100_000  # of a sweep: planned in seconds; a choice
NEIGHBOURS = 3  # of a held-out check: the predicted LR, half of it and twice it


def horizons(axes: Axes) -> list[tuple[int, int]]:
    """Return (batch, horizon) of every cell, horizons not yet rounded."""
    if axes.tokens is not None:
        return [(batch, tokens) for batch in axes.batch_tokens for tokens in axes.tokens]
    return [(batch, steps * batch) for batch in axes.batch_tokens for steps in axes.steps or ()]


def check_batches(axes: Axes, check: Validation | None, variants: Sequence[Variant]) -> None:
    """Raise ConfigError unless every batch holds whole examples and fits its horizon."""
    batches = [("axes.batch_tokens", batch) for batch in axes.batch_tokens]
    pairs = [("axes.batch_tokens", batch, tokens) for batch, tokens in horizons(axes)]
    if check is not None:
        batches.append(("validate.batch_tokens", check.batch_tokens))
        pairs.append(("validate.batch_tokens", check.batch_tokens, check.tokens))
    for variant in variants:
        size = variant.size
        for place, batch in batches:
            if batch % size.tokens_per_example:
                rule = f"a multiple of the {size.tokens_per_example:,} {size.unit}s of one example"
                raise must(place, rule, batch)
    for place, batch, tokens in pairs:
        if tokens > MAX_TOKENS:
            long = "validate.tokens" if place.startswith("validate") else f"axes.{'steps' if axes.steps else 'tokens'}"
            raise must(long, f"at most {MAX_TOKENS:.0e} tokens a run", tokens)
        if batch > tokens:
            raise must(place, f"at most the horizon ({tokens:,} tokens)", batch)


def check_size(axes: Axes, search: Search, check: Validation | None, variants: Sequence[Variant]) -> None:
    """Raise ConfigError if there is more to plan than anyone would run; counted without making any of it."""
    cells = len(variants) * len(horizons(axes))
    if search.name == LAW:
        trials = cells + search.trials * len(variants)
    else:
        lrs = search.trials if search.name != "grid" else axes.lr.points if isinstance(axes.lr, Range) else len(axes.lr)
        seeds = [len(axes.seeds.of(tokens)) for _, tokens in horizons(axes)]
        trials = len(variants) * sum(seeds) * (lrs or 1)
    trials += len(variants) * NEIGHBOURS * check.seeds if check is not None else 0
    if trials > MAX_TRIALS:
        parts = "variants x batches x horizons x seeds x learning rates, and the held-out check"
        place = "axes" if search.name == "grid" else "search.trials"
        raise ConfigError(f"{place}: must make at most {MAX_TRIALS:,} trials ({parts}), got {trials:,}")


def check_schedule(schedule: Schedule, axes: Axes, check: Validation | None, *, grow: int) -> None:
    """Raise ConfigError unless the schedule fits every horizon and every LR, those that a grid may grow to as well."""
    totals = {tokens for _, tokens in horizons(axes)} | ({check.tokens} if check is not None else set())
    lrs = axes.lr if not isinstance(axes.lr, Range) else axes.lr.grid() if axes.lr.points else (axes.lr.low,)
    lowest = lrs[0] * (lrs[0] / lrs[1]) ** grow if len(lrs) > 1 else lrs[0]
    try:
        for total in sorted(totals):
            schedule.check(total)
        schedule.floor(lowest)
    except ValueError as error:
        raise ConfigError(f"schedule.{error}") from error


def varying(axes: Axes, variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return which variables of a law take two or more values."""
    cells = horizons(axes)
    values = {
        "batch_tokens": {batch for batch, _ in cells},
        "tokens": {tokens for _, tokens in cells},
        "parameters": {variant.size.parameters for variant in variants},
    }
    return tuple(name for name, found in values.items() if len(found) > 1)


def check_law(law: LawSpec, axes: Axes, variants: Sequence[Variant]) -> None:
    """Raise ConfigError unless the cells tell the law's exponents apart."""
    points = [(batch, tokens, variant.size.parameters) for batch, tokens in horizons(axes) for variant in variants]
    columns = {"batch_tokens": 0, "tokens": 1, "parameters": 2}
    values = np.array(points, dtype=float)[:, [columns[name] for name in law.variables]]
    if not values.all():
        raise ConfigError("law.variables: parameters must be known: the workload says that it has none")
    chosen = np.log(values)
    design = np.column_stack([np.ones(len(points)), chosen])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ConfigError(
            f"law.variables: {show(list(law.variables))} vary only together in axes: their exponents are one"
        )


def lacking(resources: Resources) -> str | None:
    """Return what this machine lacks for one row; None where it has all of it, or a cluster runs the rows."""
    if resources.address is not None:
        return None
    cpus = os.cpu_count() or 1
    if resources.cpus > cpus:
        return f"resources.cpus: a row takes {resources.cpus:g}, this machine has {cpus}"
    if resources.gpus > 0:
        import torch

        if resources.gpus > (gpus := torch.cuda.device_count()):
            return f"resources.gpus: a row takes {resources.gpus:g}, this machine has {gpus}"
    return None


def check_budget(sweep: Sweep) -> None:
    """Raise ConfigError if the budget does not hold the first trials of the sweep."""
    trials, tokens = first_trials(sweep), first_tokens(sweep)
    if sweep.budget.trials is not None and trials > sweep.budget.trials:
        raise must("budget.trials", f"at least the {trials:,} trials that the axes ask for", sweep.budget.trials)
    if sweep.budget.tokens is not None and tokens > sweep.budget.tokens:
        raise must("budget.tokens", f"at least the {tokens:,} tokens that the axes ask for", sweep.budget.tokens)


def cautions(sweep: Sweep) -> list[str]:
    """Return what is to be said of a sweep's stoppers."""
    biased = [part.name for part in sweep.stoppers if STOPPERS[part.name].biased]
    return [
        f"stopping: {name} ranks losses in mid-schedule, which favours LRs that only look good early: the law is "
        "biased; for comparison only"
        for name in biased
    ]
