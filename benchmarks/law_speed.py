"""How long the law engine takes on one core: a whole fit of 1,404 recorded runs, and the next trial of a long study.

- *fit*: every cell's optimum and the law of them with its 1,000 bootstrap draws, from the table of Step Law's dense
  runs (a cell is one size, batch and token count);
- *ask*: `LawSampler` and Optuna's `GPSampler` asked for the trial after 200, side by side, on the same study.

    POWERSWEEP_PUBLIC_DATA=... OMP_NUM_THREADS=1 python benchmarks/law_speed.py [--repeats 5]

Prints medians in seconds, the ratio of the asks, and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from orchestrator.search import LawSampler
from orchestrator.search.samplers import SAMPLERS
from sweeps.choose import Target
from sweeps.laws.law import Law, fit_law
from sweeps.optima.optimum import find_optimum
from sweeps.optima.records import CellOptimum
from sweeps.replay.table import Table, read_table
from sweeps.spec import LawSpec, Result

FILE = "steplaw/dense_lr_bs_loss_small.csv"
COLUMNS = 'lr=lr,batch_tokens=bs*2048,tokens=D,parameters=N,loss="smooth loss"'
TRIALS = 200
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(2e-4, 1e-2, log=True),
    "batch_tokens": FloatDistribution(2.0**16, 2.0**22, log=True),
    "tokens": CategoricalDistribution([4e9, 8e9, 1.6e10]),
}


def law_of(runs: Table) -> Law:
    """Return the law of all cells of a table."""
    cells = []
    places = np.column_stack([runs.parameters, runs.tokens, runs.batch_tokens])
    for place in np.unique(places, axis=0):
        rows = np.flatnonzero((places == place).all(axis=1))
        size, tokens, batch = (int(x) for x in place)
        results = [
            Result(f"{i:04d}", float(runs.lr[i]), 0, loss, "finished" if loss is not None else "diverged")
            for i in rows.tolist()
            for loss in [float(runs.loss[i]) if np.isfinite(runs.loss[i]) else None]
        ]
        name = f"{size} {batch} {tokens}"
        cells.append(CellOptimum(name, name, batch, tokens, size, find_optimum(results), results=tuple(results)))
    spec = LawSpec(variables=("batch_tokens", "tokens", "parameters"))
    return fit_law(cells, spec=spec, recipe={"unit": "token"}, sweep_key="speed", version="0")


def asked(sampler: optuna.samplers.BaseSampler) -> Callable[[], object]:
    """Return what asks a study of 200 trials for the next one."""
    study = optuna.create_study(sampler=sampler, direction="minimize")
    rng = np.random.default_rng(0)
    for _ in range(TRIALS):
        params = {
            "lr": float(np.exp(rng.uniform(np.log(2e-4), np.log(1e-2)))),
            "batch_tokens": float(2.0 ** rng.uniform(16, 22)),
            "tokens": float(rng.choice([4e9, 8e9, 1.6e10])),
        }
        off = np.log(params["lr"] / 2e-3) - 0.4 * np.log(params["batch_tokens"] / 2**19)
        loss = (
            2.5 + 0.02 * off**2 + 0.01 * np.log(params["batch_tokens"] / 2**19) ** 2 - 0.02 * np.log(params["tokens"])
        )
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=float(loss)))
    return lambda: study.ask(SPACE)


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some work."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    """Time the three and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    folder = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if folder is None:
        sys.exit("POWERSWEEP_PUBLIC_DATA is not set: the folder that holds " + FILE)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    runs = read_table(Path(folder) / FILE, COLUMNS)
    law = law_of(runs)
    fit = median_seconds(lambda: law_of(runs), repeats)
    print(f"fit of {len(runs)} runs, {len(law.cells)} cells: {fit:.2f} s; {law.one_line()}")
    ours = median_seconds(asked(LawSampler(SPACE, targets=[Target(tokens=6.4e10)], seed=0)), repeats)
    theirs = median_seconds(asked(SAMPLERS["gp"](0, 10)), repeats)
    print(
        f"ask after {TRIALS} trials: {1000 * ours:.0f} ms; Optuna's GP {1000 * theirs:.0f}; ratio {ours / theirs:.3f}"
    )
    print(json.dumps({"fit_seconds": fit, "ask_seconds": ours, "gp_ask_seconds": theirs, "ratio": ours / theirs}))


if __name__ == "__main__":
    main()
