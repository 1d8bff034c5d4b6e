"""Stock Ray Tune with trials that share one card, for row_gpu.py, and the records that both speak in.

A trial is a plain loop as a user of Ray Tune writes it, its corpus on the device, so that no step waits for the host.
The trials share the card by fractional gpus. All wait until everyone is warm, then train; steps are counted on the
device's own clock, in windows that begin at the same moment for all.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from workloads.base import generator
from workloads.gpt import Gpt

LR = 1e-3  # about which the LRs of a row lie
GATE_SECONDS = 240.0  # in which all trials must be warm
CARRY = (
    "Ray is not here, so stock is not measured: pip install 'ray[tune]>=2.60,<2.61', or, where there is no network, "
    "carry a folder that `pip install --target` filled for this Python elsewhere, and put it on PYTHONPATH"
)


@dataclass(frozen=True)
class Size:
    """A model, what it is trained on, the rows tried (the likely best first), and what is known of it."""

    width: int
    depth: int
    heads: int
    context: int
    vocabulary: int
    rows: tuple[int, ...]
    floor: float  # of ours over stock's best
    aim: float
    known: float  # tokens/s of the best stock: 12 processes (large: 8) sharing an H100; measured
    sequences: int = 32

    @property
    def batch(self) -> int:
        """Tokens of a batch."""
        return self.sequences * self.context


@dataclass(frozen=True)
class Plan:
    """How much is measured, and where."""

    device: str = "cuda"
    shared_by: tuple[int, ...] = (4, 8, 12)
    windows: int = 5
    seconds: float = 1.5  # of a window
    warm_up: int = 20  # steps
    profiled: int = 8  # steps
    limit: float = 450.0  # seconds, after which no further row is begun
    tokens: int = 1 << 22  # of the corpus
    stock_compiled: bool = False
    pack_compiled: bool = True

    @property
    def cuda(self) -> bool:
        """Whether there is a card."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Timing:
    """Tokens/s, summed over runs: median, lowest and highest window; seconds of the warm-up; GiB taken at most."""

    tokens_per_second: float
    low: float
    high: float
    warm_up_seconds: float
    gib: float

    @classmethod
    def of(cls, rates: list[float], warm_up_seconds: float, gib: float) -> Timing:
        """Return the timing of some windows."""
        return cls(statistics.median(rates), min(rates), max(rates), warm_up_seconds, gib)


def lrs(count: int) -> list[float]:
    """Return LRs a quarter of an octave apart, eight different ones at most."""
    return [LR * 2 ** (k % 8 / 4 - 1) for k in range(count)]


def clear(plan: Plan) -> None:
    """Let go of what the last measurement held, compiled code included: dynamo gives up after some recompilations."""
    gc.collect()
    torch.compiler.reset()
    if plan.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def told(name: str, found: Timing, note: str = "") -> None:
    """Print a line of the table."""
    span = f"{found.low / 1e6:.3f} to {found.high / 1e6:.3f}"
    rate, warm = f"{found.tokens_per_second / 1e6:.3f} M", found.warm_up_seconds
    print(f"{name:<34}{rate:>12}{span:>20}{warm:>11.1f}{found.gib:>7.1f}  {note}", flush=True)


def stock_trial(config: dict[str, Any]) -> None:
    """Train as a user of Ray Tune writes it, and report the steps of each window."""
    from ray import tune

    size, plan, workload = config["size"], config["plan"], config["workload"]
    torch.set_float32_matmul_precision("high")
    model = workload.init_model_fn(generator("init", 0))[0].to(plan.device)
    optimizer = torch.optim.AdamW(model.parameters(), config["lr"], betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    text = torch.from_numpy(workload.data.load().train.arrays[0].astype("int64")).to(plan.device)
    offsets = torch.arange(size.context + 1, device=plan.device)
    forward = torch.compile(model) if plan.stock_compiled else model

    def step() -> Any:
        starts = torch.randint(len(text) - size.context, (size.sequences, 1), device=plan.device)
        windows = text[starts + offsets]
        with torch.autocast(plan.device, dtype=torch.bfloat16):
            loss = cross_entropy(forward(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return _moment(plan)

    for _ in range(plan.warm_up):
        step()
    torch.cuda.synchronize() if plan.cuda else None
    begin = _all_warm(Path(config["gate"]), config["trials"])
    time.sleep(max(0.0, begin - time.time()))
    first, moments = _moment(plan), []
    while time.time() < begin + plan.windows * plan.seconds:
        moments.append(step())
    torch.cuda.synchronize() if plan.cuda else None
    window = [int((first.elapsed_time(m) / 1000 if plan.cuda else m - first) // plan.seconds) for m in moments]
    gib = torch.cuda.max_memory_reserved() / 2**30 if plan.cuda else 0.0
    tune.report({"steps": [window.count(w) for w in range(plan.windows)], "gib": gib})


def _moment(plan: Plan) -> Any:
    """Return now, on the device's clock: a CUDA event where there is a card, else seconds."""
    if not plan.cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _all_warm(gate: Path, trials: int) -> float:
    """Wait for all trials, and return when they begin, in seconds since the epoch: the same for all."""
    (gate / str(os.getpid())).touch()
    patience = time.time() + GATE_SECONDS
    while len(here := list(gate.iterdir())) < trials:
        if time.time() > patience:
            raise RuntimeError(f"only {len(here)} of {trials} trials came")
        time.sleep(0.02)
    return max(path.stat().st_mtime for path in here) + 1.0


def stock(size: Size, workload: Gpt, plan: Plan, trials: int) -> Timing:
    """Return the timing of trials of Ray Tune that share the card. Raises RuntimeError if one of them fails."""
    from ray import tune

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="powersweep-stock-") as folder:
        (gate := Path(folder, "gate")).mkdir()
        common = {"size": size, "plan": plan, "workload": workload, "gate": str(gate), "trials": trials}
        share = 10_000 // trials / 10_000  # Ray counts in ten thousandths
        results = tune.Tuner(
            tune.with_resources(stock_trial, {"cpu": 1, "gpu": share}),
            param_space={**common, "lr": tune.grid_search(lrs(trials))},
            run_config=tune.RunConfig(name="stock", storage_path=str(Path(folder, "tune")), verbose=0),
        ).fit()
        if results.errors:
            raise RuntimeError(str(results.errors[0]).strip().splitlines()[-1])
    counts = np.sum([result.metrics["steps"] for result in results], axis=0)
    rates = [float(count) * size.batch / plan.seconds for count in counts]
    warm = time.perf_counter() - began - plan.windows * plan.seconds
    return Timing.of(rates, warm, sum(result.metrics["gib"] for result in results))


def shared(size: Size, workload: Gpt, plan: Plan) -> Iterator[tuple[int, Timing]]:
    """Yield the timings of stock Ray Tune; none where Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        print(CARRY, flush=True)
        return
    import ray

    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this file by its name
    cpus = max(os.cpu_count() or 1, *plan.shared_by)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=cpus, num_gpus=1, object_store_memory=1 << 28, **quiet)
    for trials in plan.shared_by:
        clear(plan)
        try:
            found = stock(size, workload, plan, trials)
        except RuntimeError as error:
            print(f"stock, {trials} trials: failed: {error}", flush=True)
            continue
        told(f"stock Ray Tune, {trials} trials", found)
        yield trials, found
    ray.shutdown()
