"""Laws on Step Law's published runs: the loss gap with one size left out, and of samplers at token counts beyond.

    POWERSWEEP_PUBLIC_DATA=... python benchmarks/laws.py sizes
    POWERSWEEP_PUBLIC_DATA=... python benchmarks/laws.py samplers [--trials 48] [--seeds 12] [--figure gaps.png]
    POWERSWEEP_PUBLIC_DATA=... python benchmarks/laws.py within [--trials 48] [--seeds 12]

`sizes`: each model size in turn is the target, all others are fitted. `samplers`: the eight cells with at most 25e9
tokens are fitted, those with at least 40e9 asked; no sampler sees a run of the latter. Every sampler's runs are given
to the same two fits: the joint surrogate, and Step Law's recipe. `within` is what variants are chosen by: parts of
those eight cells left out in turn, and, at the cells beyond, how far the answer is from that of all runs fitted, for
which no loss is needed there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from orchestrator.search.recorded import PICKERS
from sweeps.choose import Target
from sweeps.replay.laws import Score, leave_out, score_law, score_sampler
from sweeps.replay.laws_figure import draw_gaps
from sweeps.replay.picking import Oracle, fitted
from sweeps.replay.table import Table, read_table
from sweeps.report.look import png

FILE = "steplaw/dense_lr_bs_loss_small.csv"
COLUMNS = 'lr=lr,batch_tokens=bs*2048,tokens=D,parameters=N,loss="smooth loss"'
LAWS = ("joint", "step-law", "recipe-0.5%", "recipe", "recipe-0.1%", "deepseek", "porian")
FITS = ("joint", "recipe")


def table() -> Table:
    """Return the published runs."""
    folder = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    if folder is None:
        sys.exit("POWERSWEEP_PUBLIC_DATA is not set: the folder that holds " + FILE)
    return read_table(Path(folder) / FILE, COLUMNS)


def sizes(runs: Table) -> dict[str, object]:
    """Print and return the gap of each law, each model size left out in turn."""
    found = {}
    print("each model size left out in turn: gap per mille")
    for name in LAWS:
        score = leave_out(name, runs, "parameters")
        found[name] = {"mean": score.mean, "max": score.worst}
        note = "  (fitted by its authors on these sizes too)" if name == "step-law" else ""
        print(f"  {name:12} mean {score.mean:5.2f}  largest {score.worst:5.2f}{note}")
    return {"leave_one_size_out": found}


def samplers(runs: Table, *, trials: int, seeds: int, figure: Path | None) -> dict[str, object]:
    """Print and return the gap of each sampler at the cells beyond."""
    train, target = runs.where("tokens<=2.6e10", name="train"), runs.where("tokens>=4e10", name="target")
    everything = {law: score_law(law, train, target) for law in ("joint", "recipe", "step-law")}
    print(f"all {len(train)} runs: " + ", ".join(f"{law} {score.mean:.2f}" for law, score in everything.items()))
    drawn: dict[str, list[Score]] = {}
    found: dict[str, object] = {"all runs": {law: score.mean for law, score in everything.items()}}
    steps = [n for n in range(8, trials, 8)]
    for name, picker in PICKERS.items():
        began = time.perf_counter()
        line: dict[str, object] = {}
        for fit in FITS:
            scores = []
            for seed in range(seeds):
                score = score_sampler(
                    fit,
                    picker,
                    train,
                    target,
                    sampler=name,
                    trials=trials,
                    seed=seed,
                    steps=steps if fit == "joint" else (),
                )
                scores.append(score)
            means = np.array([score.mean for score in scores])
            line[fit] = {"mean": float(means.mean()), "sd": float(means.std(ddof=1)) if seeds > 1 else 0.0}
            if fit == "joint":
                drawn[name] = scores
                line["flops_share"] = float(np.mean([score.flops_share for score in scores]))
                line["worst"] = float(np.mean([score.worst for score in scores]))
        found[name] = line
        print(
            f"  {name:7} {trials} trials, {100 * line['flops_share']:.1f} % of FLOPs: {_said(line, seeds)}", flush=True
        )
        print(f"          [{time.perf_counter() - began:.0f} s]")
    if figure is not None:
        figure.write_bytes(png(draw_gaps(drawn, reference=everything["joint"].mean)))
    return {"samplers": found, "trials": trials, "seeds": seeds}


def within(runs: Table, *, trials: int, seeds: int) -> dict[str, object]:
    """Print and return the gaps of samplers at parts of the training cells left out, and their distance from all."""
    train = runs.where("tokens<=2.6e10", name="train")
    sizes = sorted(set(train.parameters.tolist()))
    parts = {f"N {size / 1e6:.0f}M": train.parameters == size for size in sizes}
    edges = {"short": (0.0, 8.1e9), "middle": (8.1e9, 1.5e10), "long": (1.5e10, 2.6e10)}
    parts |= {name: (train.tokens > low) & (train.tokens <= high) for name, (low, high) in edges.items()}
    everything = {part: score_law("joint", train.of(~out), train.of(out)).mean for part, out in parts.items()}
    print("gap per mille of the part left out: " + ", ".join(parts))
    print("  all runs " + _means(everything))
    found: dict[str, object] = {"all runs": everything}
    for name in ("law", "qmc", "random"):
        gaps = {
            part: float(
                np.mean(
                    [
                        score_sampler(
                            "joint",
                            PICKERS[name],
                            train.of(~out),
                            train.of(out),
                            sampler=name,
                            trials=trials,
                            seed=seed,
                        ).mean
                        for seed in range(seeds)
                    ]
                )
            )
            for part, out in parts.items()
        }
        cost, off = _beside_all(runs, name, trials=trials, seeds=seeds)
        found[name] = {**gaps, "cost": cost, "ln_lr_off": off}
        print(
            f"  {name:8} {_means(gaps)}; beyond, {cost:.2f} per mille from all runs, ln lr* off by {off:+.2f}",
            flush=True,
        )
    return {"within": found, "trials": trials, "seeds": seeds}


def _means(gaps: dict[str, float]) -> str:
    return ", ".join(f"{gap:.2f}" for gap in gaps.values()) + f", mean {np.mean(list(gaps.values())):.2f}"


def _beside_all(runs: Table, name: str, *, trials: int, seeds: int) -> tuple[float, float]:
    """Return what a sampler's answers cost on the surrogate of all runs, per mille, and by how much ln lr* is off."""
    train, target = runs.where("tokens<=2.6e10", name="train"), runs.where("tokens>=4e10", name="target")
    full = fitted(train, list(range(len(train))), places_P4=train.places)
    costs, off = [], []
    for seed in range(seeds):
        oracle = Oracle(train)
        PICKERS[name](oracle, [Target(tokens=t, parameters=n) for n, t in target.cells()], trials, seed)
        surface = fitted(train, oracle.taken, places_P4=train.places)
        for n, t in target.cells():
            said, best = (s.recommend(tokens=t, parameters=n) for s in (surface, full))
            costs.append(1000.0 * float(full.model(np.array([[said.lr, said.batch_tokens, t, n]]))[1][0]))
            off.append(np.log(said.lr / best.lr))
    return float(np.mean(costs)), float(np.mean(off))


def _said(line: dict[str, object], seeds: int) -> str:
    joint, recipe = line["joint"], line["recipe"]
    spread = f"(sd {joint['sd']:.2f} over {seeds} seeds, largest {line['worst']:.2f})"
    return f"joint fit {joint['mean']:.2f} {spread}, recipe {recipe['mean']:.2f}"


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sizes", "samplers", "within"])
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--figure", type=Path, default=None)
    asked = parser.parse_args()
    runs = table()
    if asked.what == "sizes":
        result = sizes(runs)
    elif asked.what == "within":
        result = within(runs, trials=asked.trials, seeds=asked.seeds)
    else:
        result = samplers(runs, trials=asked.trials, seeds=asked.seeds, figure=asked.figure)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
