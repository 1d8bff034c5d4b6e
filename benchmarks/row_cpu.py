"""Wall time of one small sweep on two cores: ours against stock Ray Tune with `reuse_actors`.

Five LRs, one batch, three token counts, two seeds under WSD (30 trials), of the quickstart's model and of the
teacher-student toy, whose steps are tiny. Stock is what its documentation shows: a class trainable with a plain torch
loop, torch's fused optimizer, the same model, data, seeds, schedule and evaluations, each trial from nothing, two at
once, no loggers, no checkpoints. Ours is `orchestrator.launch.run` with its defaults, two rows at once: MLflow records,
fit, report and store are in its time; "training alone" is the same rows without MLflow, fit and report. In the time of
each are its two processes' start; outside it `ray.init` and this process's imports. Each measurement has a Ray of its
own; sides alternate.

    python benchmarks/row_cpu.py                                about a quarter of an hour on two cores
    python benchmarks/row_cpu.py quickstart --repeats 1 --share 0.1      that it runs, not how fast
    python benchmarks/row_cpu.py --tuned-stock                  stock's processes with the allocator settings of ours

Prints seconds (median of the repeats), tokens really trained, ratios, how far the final losses are apart, a JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from overhead import SWEEP as TINY
from overhead import Silent, Untracked
from ray import tune
from torch.nn.functional import cross_entropy

from orchestrator import launch
from orchestrator.config import Loaded, load_sweep, object_of
from orchestrator.driver import Driver
from orchestrator.progress import Progress
from orchestrator.rows import WORKER, cluster, run_rows
from orchestrator.search import chooser_of
from orchestrator.store import SweepStore
from orchestrator.store.index import Index
from orchestrator.store.lease import Lease
from sweeps.agenda import LOSS, Agenda
from sweeps.schedules import SCHEDULES, learning_rate
from sweeps.spec import Trial
from workloads import WORKLOADS
from workloads.base import generator, stable_seed
from workloads.optim import OPTIMIZERS, AdamW

CONCURRENT = 2
COMMON = (
    "search.grow=0",
    "law.variables=[tokens]",
    "law.reach={}",
    "validate=null",
    f"resources.concurrent={CONCURRENT}",
)


@dataclass(frozen=True)
class Case:
    """A sweep that ships with the package, cut down, and the steps of its trials."""

    source: str
    batch_tokens: int
    steps: tuple[int, ...]
    overrides: tuple[str, ...]

    def load(self, share: float) -> Loaded:
        """Return the sweep, its runs cut to a share of their steps."""
        steps = [max(10, round(s * share)) for s in self.steps]
        axes = [f"axes.batch_tokens=[{self.batch_tokens}]", f"axes.steps={steps}", "axes.tokens=null"]
        warm_up = f"schedule.warmup_tokens={steps[0] * self.batch_tokens // 4}"
        overrides = [*COMMON, *self.overrides, *axes, warm_up, "axes.lr.points=5", "axes.seed=[0, 1]"]
        return load_sweep(self.source, overrides, cwd=Path.cwd(), environ={})


WSD = ("schedule.name=wsd", "schedule.cooldown_fraction=0.2", "schedule.cooldown=linear", "reports.per_octave=1")
CASES = {
    "quickstart": Case("quickstart", 1024, (64, 128, 256), WSD),
    "teacher": Case("teacher-sgd", 16, (5_000, 10_000, 20_000), (*WSD, "axes.lr.log=[0.1, 10]")),
}


class Plain(tune.Trainable):
    """A trial as a user of Ray Tune writes it: from nothing to its horizon, evaluated at each of its marks."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build all of it."""
        torch.set_num_threads(1)
        trial = Trial.from_json(json.loads(config["trial"]))
        seed = stable_seed("run", trial.seed, trial.batch_tokens)
        self._workload = object_of(WORKLOADS, trial.workload, "workload")
        self._model = self._workload.init_model_fn(generator("init", seed))[0]
        asked = object_of(OPTIMIZERS, trial.optimizer, "optimizer")
        self._clip_norm = asked.clip_norm
        fused = {"lr": trial.lr, "weight_decay": asked.weight_decay, "fused": True}
        self._optimizer = (
            torch.optim.AdamW(self._model.parameters(), betas=asked.betas, eps=asked.eps, **fused)
            if isinstance(asked, AdamW)
            else torch.optim.SGD(self._model.parameters(), momentum=asked.momentum, **fused)
        )
        examples = trial.batch_tokens // self._workload.facts().tokens_per_example
        self._data = self._workload.build_input_queue("train", examples, seed)
        schedule = object_of(SCHEDULES, trial.schedule, "schedule")
        self._lr_at = learning_rate(schedule, peak=trial.lr, batch_tokens=trial.batch_tokens, total=trial.tokens)
        self._batch_tokens, self._marks, self._tokens = trial.batch_tokens, list(trial.marks), 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next mark, and evaluate."""
        mark, total, steps = self._marks.pop(0), 0.0, 0
        while self._tokens < mark:
            total += self._train_step(next(self._data))
            steps += 1
        found = self._workload.eval_model(self._model, torch.device("cpu"))
        done = not self._marks
        return {"loss": found[LOSS], "train_loss": total / steps, "tokens": self._tokens, "done": done}

    def _train_step(self, batch: dict[str, torch.Tensor]) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr_at(self._tokens)
        self._optimizer.zero_grad()
        logits = self._model(batch["inputs"])
        loss = cross_entropy(logits.flatten(0, -2), batch["targets"].flatten())
        loss.backward()
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._tokens += self._batch_tokens
        return loss.item()


@dataclass(frozen=True)
class Found:
    """What one measurement gave: seconds, tokens really trained, the final loss of each trial by its key."""

    seconds: float
    tokens: int
    losses: dict[str, float]


@contextlib.contextmanager
def plain_ray(env: dict[str, str]) -> Iterator[None]:
    """Start Ray as its documentation shows, quietly, for as long as the block lasts."""
    env = {"OMP_NUM_THREADS": "1", **env}
    ray.init(
        address="local",
        num_cpus=CONCURRENT,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": env},
    )
    try:
        yield
    finally:
        ray.shutdown()


def stock(loaded: Loaded, folder: Path, *, env: dict[str, str]) -> Found:
    """Run the trials of a sweep by stock Ray Tune."""
    trials = Agenda(loaded.sweep, chooser_of(loaded.sweep, journal=folder / "journal"), {}).trials
    tuner = tune.Tuner(
        tune.with_resources(Plain, {"cpu": 1}),
        param_space={"trial": tune.grid_search([json.dumps(trial.to_json()) for trial in trials.values()])},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="stock",
            storage_path=str(folder / "tune"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
    with plain_ray(env):
        started = time.monotonic()
        results = tuner.fit()
        seconds = time.monotonic() - started
    if results.errors:
        raise RuntimeError(f"stock: {results.errors[0]}")
    ended = [result.metrics for result in results]
    losses = {Trial.from_json(json.loads(m["config"]["trial"])).key: m["loss"] for m in ended}
    return Found(seconds, sum(m["tokens"] for m in ended), losses)


def ours(loaded: Loaded, folder: Path, *, whole: bool) -> Found:
    """Run a sweep by us: all of it, or its rows alone."""
    store = SweepStore(folder, loaded.sweep.experiment)
    with cluster(loaded.sweep.resources):
        started = time.monotonic()
        if whole:
            launch.run(loaded, home=folder, environ={}, console=Silent())
        else:
            rows_alone(loaded, store, folder)
        seconds = time.monotonic() - started
    stores = [store.trial(path.name, fence=0) for path in store.trials.iterdir()]
    tokens = sum(end - first for trial in stores for first, end in trial.read_work())
    ended = Index.open(store).outcomes()
    losses = {k: float(o.curve.metrics[LOSS][-1]) for k, o in ended.items() if o.outcome == "finished"}
    return Found(seconds, tokens, losses)


def rows_alone(loaded: Loaded, store: SweepStore, folder: Path) -> None:
    """Train the trials of a sweep and keep their outcomes."""
    lease = Lease.acquire(store.folder, holder="row_cpu")
    agenda = Agenda(loaded.sweep, chooser_of(loaded.sweep, journal=folder / "journal"), {})
    progress, untracked = Progress(Silent(), store.folder), Untracked()
    driver = Driver(
        loaded.sweep, agenda=agenda, store=store, tracker=untracked, fence=lease.fence, progress=progress, after=list
    )
    run_rows(driver)
    lease.release()
    if driver.error is not None or driver.tally.failed:
        raise RuntimeError(f"{driver.tally}: {driver.error}")


def compare(name: str, loaded: Loaded, repeats: int, *, env: dict[str, str]) -> dict[str, Any]:
    """Print and return what both took."""
    sides: dict[str, Callable[[Loaded, Path], Found]] = {
        "stock": partial(stock, env=env),
        "ours": partial(ours, whole=True),
        "ours, training alone": partial(ours, whole=False),
    }
    found: dict[str, list[Found]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, measure in sides.items():
            with tempfile.TemporaryDirectory(prefix="powersweep-row-") as folder:
                found[side].append(measure(loaded, Path(folder)))
            print(f"  {name}, {side}: {found[side][-1].seconds:.1f} s", flush=True)
    seconds = {side: statistics.median(f.seconds for f in many) for side, many in found.items()}
    tokens = {side: many[0].tokens for side, many in found.items()}
    theirs = found["stock"][0].losses
    both = {side: many[0].losses.keys() & theirs.keys() for side, many in found.items()}
    apart = {s: max((abs(found[s][0].losses[k] / theirs[k] - 1) for k in both[s]), default=0.0) for s in sides}
    ratios = {
        side: statistics.median(t.seconds / f.seconds for t, f in zip(found["stock"], many, strict=True))
        for side, many in found.items()
    }
    print(f"{name:<24}{'seconds':>9}{'tokens':>13}{'tokens/s':>11}{'stock / it':>12}{'trials':>8}{'loss apart':>12}")
    for side in sides:
        print(
            f"{side:<24}{seconds[side]:>9.1f}{tokens[side]:>13,}{tokens[side] / seconds[side]:>11,.0f}"
            f"{ratios[side]:>12.2f}{len(both[side]):>8}{apart[side]:>12.0e}",
            flush=True,
        )
    return {
        "case": name,
        "seconds": {side: [f.seconds for f in many] for side, many in found.items()},
        "tokens": tokens,
        "ratio": ratios,
        "trials": {side: len(keys) for side, keys in both.items()},
        "losses_apart": apart,
    }


def main() -> None:
    """Read the command line, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each trial")
    parser.add_argument("--tuned-stock", action="store_true", help="give stock our processes' allocator settings")
    asked = parser.parse_args()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    loaded = {name: CASES[name].load(asked.share) for name in asked.cases}
    with tempfile.TemporaryDirectory() as folder:  # imports and the first database, not counted
        ours(load_sweep(str(TINY), ["axes.lr.points=4"], cwd=Path.cwd(), environ={}), Path(folder), whole=True)
    env = WORKER if asked.tuned_stock else {}
    rows = [compare(name, loaded[name], asked.repeats, env=env) for name in asked.cases]
    print(json.dumps({"benchmark": "row_cpu", "torch": torch.__version__, "ray": ray.__version__, "cases": rows}))


if __name__ == "__main__":
    main()
