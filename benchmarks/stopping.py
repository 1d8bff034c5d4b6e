"""Stoppers on recorded curves: compute saved, winners lost, bias of the best LR.

    python benchmarks/stopping.py                                   a suite of noisy quadratics, exactly simulated
    python benchmarks/stopping.py --seeds 201 202 203               the same on other noise
    POWERSWEEP_PUBLIC_DATA=... python benchmarks/stopping.py        also public LR curves, and AlgoPerf's studies

The suite: SGD under WSD (20 % cooldown), cosine and linear, nine horizons over two decades, ten LRs a factor 1.7 apart,
the same for every horizon (`wide`), or the five of a half-step finer grid about the cell's known best LR (`narrow`, as
a sweep that knows its law would ask). Cells of one schedule are a recipe; small ones come first. Prints tables and a
JSON line; exit code 1 where `dominated` loses a winner of the suite or moves its best LR by over 10 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from orchestrator.config.sources import read_source
from sweeps.forecast.fitting import fit_curves
from sweeps.forecast.forms import curve_form
from sweeps.replay.curve_files import read_curves
from sweeps.replay.schedules import scheduled_paths
from sweeps.replay.stopping.lockstep import replay_stopping
from sweeps.replay.stopping.recorded import cells_of_curves, read_cells
from sweeps.replay.stopping.scores import StoppingReplay
from sweeps.replay.stopping.study import POLICIES, Study, StudyReplay, replay_policy, replay_rule
from sweeps.schedules import Schedule, learning_rate
from sweeps.schedules.fixed_horizon import Cosine, Linear
from sweeps.schedules.horizon_free import Wsd
from sweeps.stopping import RULES, CellSoFar, RunSoFar, Stopper
from sweeps.stopping.ranked import Asha, Median
from workloads.quadratic import Quadratic

HERE = Path(__file__).parent
BATCH = 16
SCHEDULES: dict[str, Schedule] = {"wsd": Wsd(), "cosine": Cosine(), "linear": Linear()}
REPORTED_ON = (101, 102, 103)  # constants were chosen on seeds 11 to 13, the wide grid at other horizons and LRs
WIDE = [0.0075 * 1.7**k for k in range(10)]
NARROW = [1.6**k for k in range(-2, 3)]  # of the cell's best LR
REPORTS = 40
FLOOR_BIAS = 10.0  # percent
CHEAP = ("constant_24000", "wsdcon_9")


def factors(schedule: Schedule, tokens: int) -> list[float]:
    """Return the LR of every step over the peak."""
    factor = learning_rate(schedule, peak=1.0, batch_tokens=BATCH, total=tokens)
    return [factor(step * BATCH) for step in range(tokens // BATCH)]


def horizons() -> list[int]:
    """Return nine horizons over two decades, in whole blocks of examples."""
    return [round(768 * 100 ** (k / 8) / 256) * 256 for k in range(9)]


def suite(seeds: Sequence[int], *, narrow: bool) -> list[CellSoFar]:
    """Return the cells of the suite, all runs trained in full."""
    bowl, cells = Quadratic(), []
    for name, schedule in SCHEDULES.items():
        for tokens in horizons():
            factor = factors(schedule, tokens)
            lrs = WIDE
            if narrow:
                best = bowl.best_lr(batch_tokens=BATCH, tokens=tokens, factors=factor)
                lrs = [best * 1.6**0.3 * step for step in NARROW]  # the best is not on the grid
            marks = sorted({round(tokens * k / REPORTS / BATCH) * BATCH for k in range(1, REPORTS + 1)})
            losses = bowl.simulate(lrs, seeds, batch_tokens=BATCH, marks=marks, factors=factor)
            runs = tuple(
                RunSoFar(f"{lr:.3g}/{seed}", lr, seed, np.array(marks, np.float64), losses[s, i], "finished")
                for i, lr in enumerate(lrs)
                for s, seed in enumerate(seeds)
            )
            cells.append(CellSoFar(f"{name} {tokens:,}", runs, float(tokens), recipe=name, batch_tokens=float(BATCH)))
    return cells


def show(
    label: str, cells: Sequence[CellSoFar], rules: dict[str, Stopper], *, lrs: bool = True
) -> dict[str, StoppingReplay]:
    """Print and return what each rule does to the cells; without `lrs` the best LR is not spoken of."""
    print(f"\n{label}: {len(cells)} cells, {sum(len(cell.runs) for cell in cells)} runs")
    print(
        f"{'rule':24s}{'saved':>8s}{'lost':>9s}{'lr* off':>9s}{'either':>9s}{'fitted':>9s}{'unfit':>7s}{'regret':>9s}"
    )
    found = {}
    for name, rule in rules.items():
        result = found[name] = replay_stopping(cells, rule, rule=name)
        one = {key: value if lrs or "lr_" not in key else None for key, value in result.to_json().items()}
        print(
            f"{name:24s}{result.saved:8.1%}{result.winners_lost:5d}/{len(result.scores):<3d}"
            f"{percent(one['lr_bias']):>9s}{percent(one['lr_error']):>9s}{percent(one['lr_bias_basin']):>9s}"
            f"{one['basins_lost']:7d}{(one['regret'] or 0.0):9.4f}"
        )
    return found


def by_schedule(label: str, results: dict[str, StoppingReplay]) -> None:
    """Print the best LR kept over the best one for each schedule, and at its longest horizon."""
    for rule in ("dominated", "median", "asha"):
        told = []
        for schedule in SCHEDULES:
            scores = [score for score in results[rule].scores if score.recipe == schedule]
            ratios = [s.kept_lr / s.winner_lr for s in scores if s.kept_lr is not None and s.winner_lr is not None]
            lost = sum(score.lost for score in scores)
            told.append(f"{schedule} x{np.exp(np.mean(np.log(ratios))):.2f} (last x{ratios[-1]:.2f}), {lost} lost")
        print(f"  {label}, {rule}: {'; '.join(told)}")


def percent(value: float | None) -> str:
    """Return a percentage for people."""
    return "-" if value is None else f"{value:+.1f} %"


def public_curves(root: Path) -> dict[str, StoppingReplay]:
    """Print and return what rules do to the public curves of a 25M model, fitted on two of them."""
    file = HERE / "lr_curves_schedules.yaml"
    paths = scheduled_paths(read_source(str(file), (), cwd=HERE, environ={}).tree, place=file.name)
    curves = read_curves(root / "lr_curves" / "25", paths=paths, warmup_steps=None).curves
    cells = cells_of_curves(curves)
    found = show("lr_curves/25", cells, {**ALL, "median from 75 %": Median(grace_share=0.75), "asha at 75 %": LATE})
    law = fit_curves([curves[name] for name in CHEAP], curve_form("momentum"))
    found["dominated"] = replay_stopping(cells, ALL["dominated"], rule="dominated", law=law, given=CHEAP)
    print(f"dominated, by a law fitted on {' + '.join(CHEAP)}: saved {found['dominated'].saved:.1%}, ", end="")
    print(f"lost {found['dominated'].winners_lost} of {len(found['dominated'].scores)}")
    for score in found["dominated"].scores:
        for stop in score.stopped:
            print(f"  {score.cell}: {stop.key} at {stop.share:.1%}: {stop.why}")
    return found


def algoperf(root: Path) -> dict[str, StoppingReplay]:
    """Print and return what rules do to AlgoPerf's studies of five trials, by submission time.

    A cell is a study, a recipe a workload and submission: its five studies repeat the same five points, so that a trial
    is foreseen from the same point in earlier studies (each point an `lr` of its own, far from the others).
    """
    trials = external_trials(root)
    cells = algoperf_cells(root, trials.filter(pc.greater(trials["num_evals"], 2)))
    cells = tuple(cell for cell in cells if sum(run.outcome == "finished" for run in cell.runs) > 1)
    return show("AlgoPerf v0.5, external", cells, {**ALL, "dominated, by run": RULES_BY_RUN}, lrs=False)


def external_trials(root: Path) -> pa.Table:
    """Return a row for each trial under AlgoPerf's external tuning, with the sign that makes its metric a loss."""
    trials = pq.read_table(root / "algoperf" / "trials.parquet")
    trials = trials.filter(pc.equal(trials["ruleset"], "external"))
    return trials.append_column("sign", pc.if_else(pc.equal(trials["mode"], "max"), -1.0, 1.0))


def algoperf_cells(root: Path, trials: pa.Table) -> tuple[CellSoFar, ...]:
    """Return the studies of these trials as cells; an evaluation without a metric is an infinite loss."""
    about = trials.select(["trial_uid", "workload", "submission", "study", "trial", "max_runtime_sec", "sign"])
    about = about.set_column(0, "trial_uid", pc.cast(trials["trial_uid"], pa.int32()))
    rows = pq.read_table(root / "algoperf" / "evals.parquet", columns=["trial_uid", "score", "validation_metric"])
    joined = rows.join(about, "trial_uid", join_type="inner")
    loss = pc.fill_null(pc.multiply(joined["sign"], joined["validation_metric"]), math.inf)
    joined = joined.append_column("loss", loss)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "evals.parquet"
        pq.write_table(joined, file)
        return read_cells(file, ALGOPERF)


def algoperf_studies(root: Path) -> tuple[Study, ...]:
    """Return AlgoPerf's studies on the workloads that are scored, base and held-out, with their validation targets.

    A study of which no trial was ever evaluated is left out.
    """
    trials = external_trials(root)
    trials = trials.filter(pc.or_(pc.invert(trials["is_variant"]), trials["is_scored_held_out"]))
    goals = pc.multiply(trials["sign"], trials["validation_target"]).to_pylist()
    targets = dict(zip(trials["workload"].to_pylist(), goals, strict=True))
    return tuple(Study(cell, targets[cell.name.split("/")[0]]) for cell in algoperf_cells(root, trials))


def study_policies(root: Path) -> dict[str, StudyReplay]:
    """Print and return what policies over whole studies do, alone and with each rule."""
    studies = algoperf_studies(root)
    found = {name: replay_policy(studies, name) for name in POLICIES}
    for name, rule in {**ALL, "dominated, by run": RULES_BY_RUN}.items():
        if name != "none":
            both = f"first success + {name}"
            found[both] = replay_rule(studies, rule, name=both)
    finite = found["full"].to_json()["finite"]
    print(f"\nAlgoPerf v0.5, external, scored workloads: {len(studies)} studies, {finite} reach the target")
    print(f"{'policy':36s}{'node-h':>10s}{'saved':>8s}{'lost':>6s}{'worse':>7s}")
    for name, replay in found.items():
        one = replay.to_json()
        print(f"{name:36s}{one['spent'] / 3600:10,.1f}{one['saved']:8.2%}{one['lost']:6d}{one['worse']:7d}")
    by_workload(found["first success"])
    return found


def by_workload(replay: StudyReplay) -> None:
    """Print what a policy saves of each workload."""
    told = []
    for workload in sorted({score.recipe.split("/")[0] for score in replay.scores}):
        scores = [score for score in replay.scores if score.recipe.split("/")[0] == workload]
        told.append(f"{workload} {1 - sum(s.spent for s in scores) / sum(s.total for s in scores):.1%}")
    print(f"  {replay.policy} saves: {', '.join(told)}")


ALGOPERF = (
    "run=trial,cell=workload/submission/study,recipe=workload/submission,tokens=score,loss=loss,"
    "lr=exp(4*trial),horizon=max_runtime_sec"
)
ALL: dict[str, Stopper] = {name: rule() for name, rule in RULES.items()}
LATE = Asha(first_share=0.75)
RULES_BY_RUN: Stopper = RULES["dominated"](neighbours=0)  # type: ignore[call-arg]


def main() -> int:
    """Print all and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(REPORTED_ON))
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    found = {
        "wide": show(f"noisy quadratic, wide, seeds {seeds}", suite(seeds, narrow=False), ALL),
        "narrow": show(f"noisy quadratic, narrow, seeds {seeds}", suite(seeds, narrow=True), ALL),
    }
    for label, results in found.items():
        by_schedule(label, results)
    root = os.environ.get("POWERSWEEP_PUBLIC_DATA")
    studies: dict[str, StudyReplay] = {}
    if root:
        found["lr_curves"] = public_curves(Path(root))
        found["algoperf"] = algoperf(Path(root))
        studies = study_policies(Path(root))
    else:
        print("\nPOWERSWEEP_PUBLIC_DATA is not set: no public curves", file=sys.stderr)
    keys = ("saved", "winners_lost", "lr_bias", "lr_bias_basin", "basins_lost", "regret")
    numbers = {s: {r: {k: v.to_json()[k] for k in keys} for r, v in of.items()} for s, of in found.items()}
    print(json.dumps({**numbers, "algoperf_studies": {name: one.to_json() for name, one in studies.items()}}))
    ours = [numbers[name]["dominated"] for name in ("wide", "narrow")]
    return int(any(one["winners_lost"] or abs(one["lr_bias"]) > FLOOR_BIAS for one in ours))


if __name__ == "__main__":
    sys.exit(main())
