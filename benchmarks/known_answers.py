"""Whether laws come out right where the answer is known on paper: the noisy quadratic of conf/quadratic.yaml.

    python benchmarks/known_answers.py quadratic --seeds 200     the same sweep 200 times on other noise, in one process
    python benchmarks/known_answers.py quadratic --ray 3         three sweeps through Ray and MLflow

In one process everything is a sweep's own (plan, growth, cells, optima, law) but the training: the workload's
vectorised twin takes its place, on the noise that a run of the same trial would draw. Repeat r has the seeds of the
sweep moved by r times their number. Asked are the law's intervals at the held-out target and at the centre of the box,
by the sweep's estimator of a cell's optimum and by the default one. Prints a table and a JSON line; exit code 1 where
the sweep's own misses: coverage outside 92 to 98 %, or one of the sweeps through Ray.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from orchestrator.config import Loaded, load_sweep, object_of
from orchestrator.results import of_agenda, study
from sweeps.agenda import LOSS, Agenda, Outcome, grid_chooser
from sweeps.curves import Curve
from sweeps.laws.law import Law
from sweeps.spec import LawSpec, Seeds, Sweep, Trial
from workloads.base import stable_seed
from workloads.quadratic import Quadratic

ABSURD = 3.0  # times the first loss, which is 1: divergence, as in a run
CORRECT = (0.92, 0.98)  # coverage of an interval of 95 %: the bounds of two binomial standard errors at 200 draws
SAID_EVERY = 20  # repeats


@dataclass(frozen=True)
class Place:
    """Where a law is asked, and the best LR there."""

    name: str
    batch_tokens: int
    tokens: int
    best_lr: float


@dataclass(frozen=True)
class Answer:
    """What one law said at one place."""

    hit: bool
    half_width: float  # of ln lr*
    error: float  # of ln lr*


def quadratic_of(sweep: Sweep) -> Quadratic:
    """Return the workload of a quadratic sweep."""
    workload = object_of({"quadratic": Quadratic}, sweep.variants[0].workload, "workload")
    assert isinstance(workload, Quadratic)
    return workload


def places_of(sweep: Sweep) -> tuple[Place, ...]:
    """Return the held-out target, and the centre of the box."""
    quadratic, check = quadratic_of(sweep), sweep.validate
    assert check is not None
    assert sweep.axes.tokens is not None
    batches, horizons = sorted(sweep.axes.batch_tokens), sorted(sweep.axes.tokens)
    centre = (batches[len(batches) // 2], horizons[len(horizons) // 2])
    spots = {"held-out": (check.batch_tokens, check.tokens), "centre": centre}
    return tuple(Place(n, b, t, quadratic.best_lr(batch_tokens=b, tokens=t)) for n, (b, t) in spots.items())


def moved(sweep: Sweep, repeat: int) -> Sweep:
    """Return the sweep on seeds of its own."""
    seeds = sweep.axes.seeds.values
    values = tuple(seed + repeat * len(seeds) for seed in seeds)
    return replace(sweep, axes=replace(sweep.axes, seeds=Seeds(values)))


def simulated(sweep: Sweep) -> Agenda:
    """Return the agenda of a sweep, all its trials ended as the workload's twin says."""
    agenda, quadratic = Agenda(sweep, grid_chooser(sweep), {}), quadratic_of(sweep)
    while not agenda.complete:
        rows: dict[tuple[int, int], list[Trial]] = {}
        while family := agenda.take():
            for trial in family:
                rows.setdefault((trial.seed, trial.batch_tokens), []).append(trial)
        for (seed, batch), trials in rows.items():
            marks = sorted(trials[0].marks)
            losses_LM = quadratic.simulate(
                [t.lr for t in trials], [stable_seed("run", seed, batch)], batch_tokens=batch, marks=marks
            )[0]
            for trial, losses_M in zip(trials, losses_LM, strict=True):
                agenda.end(_outcome(trial, marks, [float(x) for x in losses_M]))
    return agenda


def _outcome(trial: Trial, marks: Sequence[int], losses: Sequence[float]) -> Outcome:
    """Return how a trial ended: at its horizon, or at its first absurd loss."""
    fine = next((i for i, loss in enumerate(losses) if not loss <= ABSURD), len(marks))
    tokens = np.array(marks[:fine], dtype=np.int64)
    curve = Curve(tokens, tokens // trial.batch_tokens, np.zeros(fine), {LOSS: np.array(losses[:fine])})
    if fine < len(marks):
        return Outcome(trial.key, "diverged", marks[fine], curve)
    return Outcome(trial.key, "finished", trial.tokens, curve)


def answers(law: Law, places: Iterable[Place]) -> dict[str, Answer]:
    """Return what a law says at each place."""
    said = {}
    for place in places:
        found = law.predict(batch_tokens=place.batch_tokens, tokens=place.tokens)
        said[place.name] = Answer(
            hit=found.low <= place.best_lr <= found.high,
            half_width=0.5 * math.log(found.high / found.low),
            error=math.log(found.lr / place.best_lr),
        )
    return said


def coverage(sweep: Sweep, repeats: int, *, first: int = 0) -> dict[str, dict[str, list[Answer]]]:
    """Return the answers of the sweep's laws on `repeats` draws of the noise, by estimator and place."""
    places = places_of(sweep)
    estimators = dict.fromkeys((sweep.law.estimator, LawSpec.__dataclass_fields__["estimator"].default))
    found: dict[str, dict[str, list[Answer]]] = {e: {p.name: [] for p in places} for e in estimators}
    for repeat in range(first, first + repeats):
        drawn = moved(sweep, repeat)
        results = of_agenda(simulated(drawn))
        for estimator, by_place in found.items():
            asked = replace(drawn, law=replace(drawn.law, estimator=estimator))
            law = study(asked, results).laws[""]
            if law is not None:  # a sweep without a law says nothing; counted by what is missing
                for name, answer in answers(law, places).items():
                    by_place[name].append(answer)
        if (repeat + 1) % SAID_EVERY == 0:
            print(f"{repeat + 1 - first}/{repeats}", file=sys.stderr, flush=True)
    return found


def in_one_process(sweep: Sweep, repeats: int) -> int:
    """Print the coverage over repeats; return the exit code."""
    started, rows, right = time.monotonic(), [], True
    print(f"{'estimator':12} {'place':9} {'covered':>12} {'half-width':>10} {'bias':>7} {'sd':>6}")
    for estimator, by_place in coverage(sweep, repeats).items():
        for name, told in by_place.items():
            hits, laws = sum(a.hit for a in told), len(told)
            errors = [a.error for a in told]
            row = {
                "estimator": estimator,
                "place": name,
                "covered": hits,
                "laws": laws,
                "sweeps": repeats,
                "half_width": statistics.median(a.half_width for a in told),
                "bias": statistics.fmean(errors),
                "sd": statistics.pstdev(errors),
            }
            rows.append(row)
            share = f"{hits}/{laws} {hits / laws:.1%}"
            print(f"{estimator:12} {name:9} {share:>12} {row['half_width']:10.3f} {row['bias']:+7.3f} {row['sd']:6.3f}")
            if estimator == sweep.law.estimator:
                right = right and CORRECT[0] <= hits / laws <= CORRECT[1] and laws == repeats
    print(json.dumps({"benchmark": "known_answers quadratic", "rows": rows, "seconds": time.monotonic() - started}))
    return 0 if right else 1


def through_ray(loaded: Loaded, repeats: int) -> int:
    """Run the sweep on several lists of seeds by the command itself; return the exit code."""
    centre = places_of(loaded.sweep)[1]
    hits = 0
    for repeat in range(repeats):
        seeds = moved(loaded.sweep, repeat).axes.seeds.values
        with tempfile.TemporaryDirectory(prefix="powersweep-known-") as home:
            command = [sys.executable, "-m", "orchestrator", "run", str(loaded.source), f"axes.seed={list(seeds)}"]
            subprocess.run(command, check=True, env={**os.environ, "POWERSWEEP_HOME": home}, stdout=subprocess.DEVNULL)
            law = Law.load(next(Path(home).rglob("law.json")))
        answer = answers(law, [centre])["centre"]
        hits += answer.hit
        print(
            f"seeds {seeds}: error {answer.error:+.3f}, half-width {answer.half_width:.3f}, "
            f"{'inside' if answer.hit else 'OUTSIDE'}; held-out check {law.status}",
            flush=True,
        )
    print(json.dumps({"benchmark": "known_answers quadratic ray", "covered": hits, "sweeps": repeats}))
    return 0 if hits == repeats else 1


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=["quadratic"])
    parser.add_argument("--seeds", type=int, default=200, help="repeats in one process")
    parser.add_argument("--ray", type=int, metavar="N", help="run N sweeps through Ray instead")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_sweep(asked.workload, cwd=Path(__file__).parent.parent, environ=os.environ)
    return through_ray(loaded, asked.ray) if asked.ray else in_one_process(loaded.sweep, asked.seeds)


if __name__ == "__main__":
    sys.exit(main())
