"""What the runs of an MLflow experiment say of the cells of a sweep, whoever logged them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.tracking import Tracker
from orchestrator.tracking.card import card_of
from orchestrator.tracking.reader import BEYOND_FLOAT, RunCurves
from sweeps.agenda import LOSS
from sweeps.curves import Curve
from sweeps.plan import cells_of, is_open_ended
from sweeps.spec import Cell, Result, Sweep, Variant

LOGGED = {"lr", "batch_tokens", "tokens"}  # parameters that place a run of MLflow in a cell


def cells_logged(sweep: Sweep, tracker: Tracker) -> list[tuple[Cell, list[Result]]]:
    """Return every cell with what the runs of the experiment say of it.

    A run counts where its parameters lr, batch_tokens and tokens name one of the cells, and no parameter contradicts
    the recipe or the further axes; its loss there is `validation/loss` at step `tokens`. Under an open-ended schedule
    any horizon names a cell: MLflow keeps the first one of a run that went on. One that has not come so far says
    nothing, unless it diverged or was stopped.
    """
    runs = [run for run in tracker.read_curves(metrics=[LOSS]) if run.run.params.keys() >= LOGGED]
    open_ended = is_open_ended(sweep)
    found = []
    for cell in cells_of(sweep):
        recipe = _recipe_params(sweep, cell.variant)
        results = {}
        for run in runs:
            params = run.run.params
            named = open_ended or _number(params["tokens"]) == cell.tokens
            if named and _number(params["batch_tokens"]) == cell.batch_tokens and _agrees(params, recipe, sweep):
                result = _logged_result(run, cell.tokens)
                if result is not None:
                    results[(result.lr, result.seed)] = result
        found.append((cell, [results[place] for place in sorted(results)]))
    return found


def _recipe_params(sweep: Sweep, variant: Variant) -> dict[str, str]:
    """Return the parameters that a run of this variant has in MLflow, less those that change no curve."""
    parts = {"workload": variant.workload, "optimizer": variant.optimizer, "schedule": sweep.schedule}
    card = card_of({"precision": sweep.precision, **{name: part.identity() for name, part in parts.items()}})
    return dict(card.params)


def _agrees(params: Mapping[str, str], recipe: Mapping[str, str], sweep: Sweep) -> bool:
    """Return whether a run's parameters do not contradict a recipe, and say which variant of several it is."""
    if any(name in params and not _same(params[name], text) for name, text in recipe.items()):
        return False
    for axis in sweep.axes.extra:
        name = axis if axis in params else axis.split(".")[-1]
        if axis in recipe and not _same(params.get(name), recipe[axis]):
            return False
    return True


def _same(one: str | None, other: str) -> bool:
    if one is None:
        return False
    numbers = _number(one), _number(other)
    return one == other or (numbers[0] == numbers[0] and math.isclose(*numbers, rel_tol=1e-5))


def _number(text: str) -> float:
    """Return the number a parameter holds, NaN if it holds none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _logged_result(run: RunCurves, tokens: int) -> Result | None:
    """Return what a run says of the loss at `tokens`, None if nothing."""
    params = run.run.params
    lr, seed = _number(params["lr"]), _number(params.get("seed", "0"))
    if not (lr > 0 and seed == seed):
        return None
    curve = Curve.from_json(run.curve).until(tokens)
    loss = curve.at(tokens, LOSS)
    key = run.run.key or run.run.run_id
    if loss is not None and math.isfinite(loss):
        return Result(key=key, lr=lr, seed=int(seed), loss=loss, outcome="finished")
    latest = run.run.metrics.get(LOSS, 0.0)
    how = run.run.outcome if abs(latest) < BEYOND_FLOAT else "diverged"  # infinite, or not a number
    return Result(key=key, lr=lr, seed=int(seed), loss=None, outcome=how) if how in ("diverged", "stopped") else None
