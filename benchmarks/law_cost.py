"""What a law costs: the whole of powersweep against stock Ray Tune and a grid from scratch, to the same interval.

The quickstart's recipe and grid, without its held-out check. Stock: Ray Tune with `reuse_actors`, no loggers, every
trial of the grid trained by itself to its own horizon; its law is fitted by our engine. Ours, by two ways:

- `grid`: the same grid with shared trunks, hopeless runs stopped (`dominated`): the same cells, the same estimator;
- `law`: `search: law`, trials chosen until lr* is known as closely as stock's runs make it known, by the same
  estimator (`joint`): at every batch, at four times the longest tokens.

The interval is the factor either way at that target. Each repeat has seeds of its own and runs all three in turn.
Prints tokens, seconds (training, tracking, fitting; not Ray's start) and ratios, medians over repeats, and a JSON line.

    python benchmarks/law_cost.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overhead import Silent
from ray import tune

from orchestrator import launch
from orchestrator.build import build_run
from orchestrator.config import Loaded, load_sweep
from orchestrator.results import study
from orchestrator.rows import cluster
from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from sweeps.agenda import LOSS
from sweeps.errors import ReachError
from sweeps.plan import brackets_of, cells_of, grid_lrs, trials_of
from sweeps.spec import Cell, Resources, Result, Trial
from sweeps.surrogate import fit_surface, rows_of

CONCURRENT = 2
FAR = 4.0  # times the longest tokens: where the interval is told
FLOOR = 0.2


class Scratch(tune.Trainable):
    """A trial of the grid as stock Ray Tune runs it: from scratch, one report at its end."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the trial; one thread, as ours."""
        import torch

        torch.set_num_threads(1)
        self._trial = Trial.from_json(json.loads(config["trial"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another trial in this process."""
        self._trial = Trial.from_json(json.loads(new_config["trial"]))
        return True

    def step(self) -> dict[str, Any]:
        """Train it whole."""
        run = build_run(self._trial, resources=asdict(Resources()), folder=Path(tempfile.gettempdir()), cwd=Path.cwd())
        while run.status == "running":
            run.advance(deadline=math.inf, clock=time.monotonic)
        loss = run.points[-1].metrics[LOSS] if run.status == "finished" else None
        return {"key": self._trial.key, "loss": loss, "outcome": run.status, "tokens": run.tokens, "done": True}


def loaded_for(repeat: int, *overrides: str) -> Loaded:
    """Return the quickstart with the seeds of a repeat and no held-out check."""
    seeds = f"axes.seed={{values: [{2 * repeat}, {2 * repeat + 1}], up_to_tokens: 131072}}"
    more = (seeds, "validate=null", f"resources.concurrent={CONCURRENT}", *overrides)
    return load_sweep("quickstart", more, cwd=Path.cwd(), environ={})


def stock(repeat: int) -> dict[str, Any]:
    """Return what a grid from scratch costs, and its results by cell."""
    sweep = loaded_for(repeat).sweep
    trials = [t for bracket in brackets_of(sweep) for t in trials_of(sweep, bracket, grid_lrs(sweep))]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        grid = tune.Tuner(
            tune.with_resources(Scratch, {"cpu": 1}),
            param_space={"trial": tune.grid_search([json.dumps(t.to_json()) for t in trials])},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=CONCURRENT),
            run_config=tune.RunConfig(
                name="stock",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
        told = {result.metrics["key"]: result.metrics for result in grid if result.metrics}
    seconds = time.monotonic() - started
    of_cell: list[tuple[Cell, list[Result]]] = []
    for cell in cells_of(sweep):
        members = [t for t in trials if (t.batch_tokens, t.tokens) == (cell.batch_tokens, cell.tokens)]
        of_cell.append((cell, [_result(t, told[t.key]) for t in members]))
    return {
        "seconds": seconds,
        "tokens": sum(m["tokens"] for m in told.values()),
        "cells": of_cell,
        "trials": len(told),
    }


def _result(trial: Trial, told: Mapping[str, Any]) -> Result:
    return Result(trial.key, trial.lr, trial.seed, told["loss"], told["outcome"])


def ours(repeat: int, *overrides: str) -> dict[str, Any]:
    """Return what one of our sweeps costs, from planning to report, and its results by cell."""
    loaded = loaded_for(repeat, *overrides)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        started = time.monotonic()
        launch.run(loaded, home=home, environ={}, console=Silent())
        seconds = time.monotonic() - started
        store = SweepStore(home, loaded.sweep.experiment)
        outcomes = Index.open(store).outcomes()
        work = [span for key in outcomes for span in store.trial(key, fence=0).read_work()]
        trials = {key: Trial.from_json(o.trial) for key, o in outcomes.items() if not o.is_trunk}
    of_cell = []
    for cell in cells_of(loaded.sweep):
        place = (cell.batch_tokens, cell.tokens)
        found = [(t, outcomes[key]) for key, t in trials.items() if (t.batch_tokens, t.tokens) == place]
        of_cell.append((cell, [Result(t.key, t.lr, t.seed, o.curve.at(t.tokens, LOSS), o.outcome) for t, o in found]))
    return {"seconds": seconds, "tokens": sum(b - a for a, b in work), "cells": of_cell, "trials": len(trials)}


def by_cells(repeat: int, of_cell: Sequence[tuple[Cell, list[Result]]]) -> float:
    """Return the factor either way of the law through the cells' own optima, at the target; infinite without a law."""
    sweep = loaded_for(repeat).sweep
    law = study(sweep, of_cell).laws[""]
    if law is None:
        return math.inf
    factors = []
    for batch, tokens in targets(of_cell):
        try:
            said = law.predict(batch_tokens=batch, tokens=tokens)
        except ReachError:
            return math.inf
        factors.append(math.sqrt(said.high / said.low))
    return max(factors)


def by_joint(of_cell: Sequence[tuple[Cell, list[Result]]]) -> float:
    """Return the factor either way by the joint surrogate, at the target."""
    places = [(r, c) for c, results in of_cell for r in results]
    rows = rows_of([(r.lr, c.batch_tokens, c.tokens, c.parameters or 1, r.loss) for r, c in places])
    surface, size = fit_surface(rows), float(of_cell[0][0].parameters or 1)
    said = [surface.recommend(tokens=t, parameters=size, batch_tokens=b) for b, t in targets(of_cell)]
    return max(math.sqrt(one.lr_high / one.lr_low) for one in said)


def targets(of_cell: Sequence[tuple[Cell, list[Result]]]) -> list[tuple[float, float]]:
    """Return every batch, at FAR times the longest tokens."""
    far = FAR * max(cell.tokens for cell, _ in of_cell)
    return [(float(batch), far) for batch in sorted({cell.batch_tokens for cell, _ in of_cell})]


def repeat_once(repeat: int) -> dict[str, Any]:
    """Return the costs and intervals of all ways with one set of seeds."""
    found: dict[str, Any] = {"stock": stock(repeat)}
    until = by_joint(found["stock"]["cells"])
    found["grid"] = ours(repeat, "stopping=[{name: diverged}, {name: dominated}]")
    search = f"search={{name: law, trials: 75, wave: 4, until: {until:.4f}, seed: {repeat}}}"
    found["law"] = ours(repeat, search, "law.estimator=joint", "axes.lr={log: [1e-3, 1.6e-2]}")
    for way in found.values():
        cells = way.pop("cells")
        way["factor_by_cells"], way["factor_joint"] = by_cells(repeat, cells), by_joint(cells)
    for name, way in found.items():
        print(
            f"repeat {repeat} {name:6} {way['trials']:4d} trials {way['tokens'] / 1e6:7.2f} M tokens "
            f"{way['seconds']:6.1f} s, lr* within a factor {way['factor_by_cells']:.2f} by cells, "
            f"{way['factor_joint']:.2f} by the joint surrogate",
            flush=True,
        )
    return found


def main() -> int:
    """Run the repeats; print medians of ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with cluster(Resources()):
        found = [repeat_once(repeat) for repeat in range(options.repeats)]
    ratios: dict[str, dict[str, float]] = {}
    for way in ("grid", "law"):
        ratios[way] = {
            name: statistics.median(one[way][name] / one["stock"][name] for one in found)
            for name in ("tokens", "seconds")
        }
        for name in ("factor_by_cells", "factor_joint"):
            ratios[way][name] = statistics.median(one[way][name] for one in found)
        print(
            f"{way:6} takes {ratios[way]['tokens']:.2f} of stock's tokens and {ratios[way]['seconds']:.2f} of its time "
            f"(floor {FLOOR}); factor {ratios[way]['factor_by_cells']:.2f} by cells, "
            f"{ratios[way]['factor_joint']:.2f} joint"
        )
    for name in ("factor_by_cells", "factor_joint"):
        ratios.setdefault("stock", {})[name] = statistics.median(one["stock"][name] for one in found)
    print(
        f"stock: factor {ratios['stock']['factor_by_cells']:.2f} by cells, {ratios['stock']['factor_joint']:.2f} joint"
    )
    print(json.dumps({"repeats": found, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
