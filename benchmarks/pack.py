"""Packs against plain runs on one CPU thread: tokens/s summed over runs, and how far the numbers are apart.

K runs of one shape with their own LRs and seeds (two seeds, so two streams) are trained for some steps by themselves,
one after the other; as a pack whose members take turns; as a pack that is one stacked program; in rounds, one way after
the other, so that a busy machine slows all of them. A ratio is the median over the rounds of plain time / pack time.
The pack's own choice of way is marked with *. The second table compares stacked packs with plain runs after ten steps:
the largest relative differences of parameters, gradient norms and training losses. Members that take turns are plain
runs to the bit, which is checked.

    python benchmarks/pack.py                                  about five minutes
    python benchmarks/pack.py --runs 4 --rounds 1 --seconds 0.02     that it runs, not how fast

Prints both tables and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workloads.base import Workload
from workloads.gpt import Gpt
from workloads.image import Image
from workloads.optim import SGD, AdamW, Muon, NAdamW, Optimizer
from workloads.pack import Pack
from workloads.pack.ways import Turns
from workloads.quadratic import Quadratic
from workloads.run import Run, RunSpec
from workloads.teacher import Teacher

RUNS = (1, 2, 4, 8, 12)
WAYS = ("plain", "turns", "stacked")
LONG = 10**6  # steps that no measurement gets to
STEPS = 10  # of the comparison
QUICKSTART = Gpt(  # as in conf/quickstart.yaml
    width=64,
    depth=2,
    heads=2,
    context=32,
    activation="relu2",
    mlp_ratio=3.0,
    qk_norm=False,
    residual_init="zero",
    rope_base=100.0,
    validation_tokens=8192,
)


@dataclass(frozen=True)
class Case:
    """What is trained: a name, a workload, an optimizer, the tokens of a batch, an LR."""

    name: str
    workload: Workload
    optimizer: Optimizer
    batch_tokens: int
    lr: float


SPEED = (
    *(Case("gpt, quickstart", QUICKSTART, AdamW(), batch, 1e-3) for batch in (32, 256, 1024, 4096)),
    *(Case("teacher", Teacher(), SGD(), batch, 0.01) for batch in (16, 256, 2048)),
    *(Case("quadratic", Quadratic(), SGD(), batch, 0.01) for batch in (4, 256)),
    *(Case("image, resnet", Image(), SGD(momentum=0.9), batch, 1e-3) for batch in (16, 128)),
    Case("image, vit", Image(model="vit", width=32, depth=2), AdamW(), 32, 1e-3),
)
SMALL: tuple[tuple[str, Workload, int, float], ...] = (  # name, workload, examples of a batch, LR
    ("gpt", Gpt(width=16, depth=2, heads=2, context=16, validation_tokens=256), 4, 3e-3),
    ("teacher", Teacher(inputs=16, classes=8, eval_examples=64), 16, 0.1),
    ("quadratic", Quadratic(dimensions=16), 8, 0.05),
    ("resnet, group", Image(width=8, validation_examples=50), 8, 1e-3),
    ("resnet, batch", Image(width=8, norm="batch", validation_examples=50), 8, 1e-3),
    ("vit", Image(model="vit", width=16, heads=2, patch=14, validation_examples=50), 8, 1e-3),
)
OPTIMIZERS: tuple[Optimizer, ...] = (AdamW(), NAdamW(), SGD(momentum=0.9, nesterov=True, clip_norm=1.0), Muon())


def specs(
    workload: Workload, optimizer: Optimizer, batch: int, lr: float, runs: int, steps: int, precision: str = "float32"
) -> list[RunSpec]:
    """Return the runs of a row: LRs half an octave apart, two seeds."""
    return [
        RunSpec(
            workload,
            optimizer,
            (lambda peak: lambda tokens: peak)(lr * 2 ** (k / 2 - 2)),
            lr * 2 ** (k / 2 - 2),
            batch,
            steps * batch,
            (steps * batch,),
            seed=k % 2,
            precision=precision,
        )
        for k in range(runs)
    ]


def advance_each(runs: Sequence[Run], steps: int) -> None:
    """Train each by some steps."""
    for run in runs:
        run.advance(until=run.tokens + steps * run.spec.batch_tokens)


def stepper(case: Case, runs: int, way: str) -> Callable[[int], None]:
    """Return what trains a fresh row by some steps."""
    row = [Run(spec) for spec in specs(case.workload, case.optimizer, case.batch_tokens, case.lr, runs, LONG)]
    if way == "plain":
        return lambda steps: advance_each(row, steps)
    pack = Pack(row, stacked=way == "stacked")
    return lambda steps: pack.advance(until=row[0].tokens + steps * case.batch_tokens)


def chosen(case: Case) -> str:
    """Return the way that a pack takes by itself."""
    row = [Run(spec) for spec in specs(case.workload, case.optimizer, case.batch_tokens, case.lr, 1, LONG)]
    pack = Pack(row)
    pack.advance(until=case.batch_tokens)
    return "turns" if isinstance(pack._way, Turns) else "stacked"


def timed(call: Callable[[int], None], steps: int) -> float:
    """Return the seconds that some steps take."""
    began = time.perf_counter()
    call(steps)
    return time.perf_counter() - began


def speed(case: Case, runs: int, rounds: int, seconds: float) -> dict[str, float]:
    """Return tokens/s of plain runs, summed, and the ratio of each pack to it."""
    ways = {way: stepper(case, runs, way) for way in WAYS}
    for call in ways.values():
        call(2)
    steps = max(1, round(seconds / timed(ways["plain"], 2) * 2))
    times = [{way: timed(call, steps) for way, call in ways.items()} for _ in range(rounds)]
    plain = statistics.median(t["plain"] for t in times)
    ratios = {way: statistics.median(t["plain"] / t[way] for t in times) for way in WAYS[1:]}
    return {"tokens_per_second": runs * steps * case.batch_tokens / plain, **ratios}


def print_speeds(counts: Sequence[int], rounds: int, seconds: float) -> Iterator[dict[str, object]]:
    """Print the first table, and yield its rows."""
    print(f"{'workload':<18}{'batch':>6}{'K':>4}{'plain tokens/s':>16}{'turns':>8}{'stacked':>9}", flush=True)
    for case in SPEED:
        best = chosen(case)
        for runs in counts:
            found = speed(case, runs, rounds, seconds)
            told = "".join(f"{found[way]:>8.2f}{'*' if way == best else ' '}" for way in WAYS[1:])
            line = f"{case.name:<18}{case.batch_tokens:>6}{runs:>4}{found['tokens_per_second']:>16,.0f}{told}"
            print(line, flush=True)
            yield {"workload": case.name, "batch_tokens": case.batch_tokens, "runs": runs, "chosen": best, **found}


def finished(rows: list[RunSpec], *, stacked: bool | None) -> list[Run]:
    """Return runs trained to their ends: as a pack, or by themselves where `stacked` is None."""
    runs = [Run(spec) for spec in rows]
    if stacked is None:
        for run in runs:
            run.advance()
        return runs
    pack = Pack(runs, stacked=stacked)
    while pack.members:
        pack.advance()
    return runs


def apart(mine: list[Run], plain: list[Run]) -> tuple[float, float, float]:
    """Return the largest relative differences of parameters (a run's as one vector), gradient norms and losses."""
    values, norms, losses = 0.0, 0.0, 0.0
    for run, other in zip(mine, plain, strict=True):
        ours, theirs = (
            torch.cat([value.double().flatten() for name, value in r.state()[0].items() if name.startswith("model/")])
            for r in (run, other)
        )
        values = max(values, ((ours - theirs).norm() / theirs.norm()).item())
        a, b = run.points[-1].metrics, other.points[-1].metrics
        norms = max(norms, abs(a["grad_norm"] / b["grad_norm"] - 1))
        losses = max(losses, abs(a["train/loss"] / b["train/loss"] - 1))
    return values, norms, losses


def print_differences() -> Iterator[dict[str, object]]:
    """Print the second table, and yield its rows."""
    print(f"\n{'stacked / plain':<18}{'optimizer':<10}{'precision':<10}{'values':>9}{'norms':>9}{'losses':>9}   turns")
    for name, workload, examples, lr in SMALL:
        batch = examples * workload.facts().tokens_per_example
        for optimizer in OPTIMIZERS:
            for precision in ("float32", "bfloat16"):
                rows = specs(workload, optimizer, batch, lr, 3, STEPS, precision)
                kind = type(optimizer).__name__
                try:
                    plain = finished(rows, stacked=None)
                except ValueError as refused:  # Muon, where a model has no hidden matrix
                    print(f"{name:<18}{kind:<10}{refused}")
                    break
                values, norms, losses = apart(finished(rows, stacked=True), plain)
                equal = apart(finished(rows, stacked=False), plain) == (0.0, 0.0, 0.0)
                told = "equal" if equal else "DIFFER"
                print(
                    f"{name:<18}{kind:<10}{precision:<10}{values:>9.0e}{norms:>9.0e}{losses:>9.0e}   {told}", flush=True
                )
                yield {
                    "workload": name,
                    "optimizer": kind,
                    "precision": precision,
                    "values": values,
                    "norms": norms,
                    "losses": losses,
                    "turns_equal": equal,
                }


def main() -> None:
    """Print both tables and a JSON line."""
    parser = argparse.ArgumentParser(description="Packs against plain runs on one CPU thread.")
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS, help="numbers of runs in a pack")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a measurement")
    args = parser.parse_args()
    torch.set_num_threads(1)
    speeds = list(print_speeds(args.runs, args.rounds, args.seconds))
    differences = list(print_differences())
    print(json.dumps({"benchmark": "pack", "speeds": speeds, "differences": differences}))


if __name__ == "__main__":
    main()
