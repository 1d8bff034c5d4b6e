"""Tokens/s of a row of LRs of one small language model on one CUDA card: one run, stock Ray Tune, our packs.

bfloat16 autocast over float32 weights, AdamW, clipped gradients, all the same for every way; tokens drawn by Zipf's
law. One run alone: eager, compiled, as a CUDA graph, both. Stock: 4, 8 and 12 trials of Ray Tune share the card (see
row_gpu_stock.py), each a plain eager loop (`--stock-compiled`: a compiled one). Ours: packs of some numbers of runs,
and where the time of the best one goes. A figure is the median of the windows.

    python benchmarks/row_gpu.py small      or medium, large: eight minutes at most, on a machine with a CUDA device
    python benchmarks/row_gpu.py small --dry     a tiny model on the CPU: that it runs, not how fast

Needs torch, numpy, pyarrow and, for stock, Ray; this repository on PYTHONPATH where it is not installed. Prints tables
and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from row_gpu_stock import Plan, Size, Timing, clear, lrs, shared, told
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from workloads.data.shards import HELD_OUT, MANIFEST, TRAIN, Manifest, Split, smallest_type, write_shard
from workloads.data.text import Tokens
from workloads.gpt import Gpt
from workloads.optim import AdamW
from workloads.pack import Pack
from workloads.run import Run, RunSpec

NO_DEVICE = 2  # exit code
LONG = 10**9  # steps: no run ends
NEAR = 0.97  # of the best row's tokens/s: the smallest row that has them is the one to choose; a choice
PARTS = (  # of a step, by the names of kernels; the first that matches
    ("attention", re.compile(r"flash|fmha|attention|sdpa", re.I)),
    ("matmul", re.compile(r"gemm|nvjet|cutlass|cublas|xmma|triton_tem|aten::(mm|bmm|addmm|baddbmm)$", re.I)),
    ("loss over the vocabulary", re.compile(r"softmax|nll|cross_entropy|logsumexp", re.I)),
    ("optimizer", re.compile(r"adam|lerp|foreach|multi_tensor|addc(mul|div)|vector_norm|NormOps|(?<!r)sqrt", re.I)),
)


SIZES = {
    "small": Size(128, 4, 2, 128, 4096, rows=(32, 16, 64, 8, 4), floor=2.5, aim=4.0, known=4.24e6),
    "medium": Size(256, 6, 4, 256, 8192, rows=(16, 8, 32, 4), floor=1.5, aim=2.0, known=2.93e6),
    "large": Size(512, 8, 8, 512, 8192, rows=(4, 8, 2, 16), floor=1.1, aim=1.3, known=1.52e6),
}


Where = dict[str, Any]  # "shares" of the device's time by part, "busy" share of the wall, the longest "kernels"
TINY = {"width": 16, "depth": 2, "context": 16, "vocabulary": 64, "rows": (3, 2), "sequences": 4}
DRY = Plan("cpu", (2,), windows=2, seconds=0.2, warm_up=2, profiled=2, tokens=1 << 14)


def corpus(folder: Path, vocabulary: int, tokens: int) -> Tokens:
    """Write a corpus of tokens drawn by Zipf's law."""
    rng, weights = np.random.default_rng(0), 1 / np.arange(1, vocabulary + 1)
    splits = {}
    for name in (TRAIN, HELD_OUT):
        drawn = rng.choice(vocabulary, tokens, p=weights / weights.sum()).astype(smallest_type(vocabulary))
        splits[name] = Split(tokens, 1, (write_shard(folder / f"{name}-00000.arrow", drawn),))
    manifest = Manifest("none", vocabulary, None, "token", "document", splits)
    (folder / MANIFEST).write_text(manifest.text())
    return Tokens(str(folder))


def runs(size: Size, workload: Gpt, plan: Plan, count: int, *, compiled: bool, cuda_graph: bool) -> list[Run]:
    """Return fresh runs of two seeds."""
    common = {"precision": "bfloat16", "device": plan.device, "compile": compiled, "cuda_graph": cuda_graph}
    end = LONG * size.batch
    return [
        Run(RunSpec(workload, AdamW(), lambda _, lr=lr: lr, lr, size.batch, end, (end,), seed=k % 2, **common))
        for k, lr in enumerate(lrs(count))
    ]


def timed(train: Callable[[int], None], steps: int) -> float:
    """Return the seconds that some steps take; `train` returns when the device is done."""
    began = time.perf_counter()
    train(steps)
    return time.perf_counter() - began


def measure(train: Callable[[int], None], tokens: int, plan: Plan) -> Timing:
    """Return the timing of steps of so many tokens, over all runs."""
    warm_up_seconds = timed(train, plan.warm_up)
    pace = timed(train, plan.warm_up) / plan.warm_up
    steps = max(1, round(plan.seconds / pace))
    rates = [tokens * steps / timed(train, steps) for _ in range(plan.windows)]
    gib = torch.cuda.max_memory_allocated() / 2**30 if plan.cuda else 0.0
    return Timing.of(rates, warm_up_seconds, gib)


def alone(size: Size, workload: Gpt, plan: Plan) -> Iterator[tuple[str, Timing]]:
    """Yield the timings of one run by itself."""
    ways = [(compiled, graph) for graph in (False, True) for compiled in (False, True) if plan.cuda or not graph]
    for compiled, graph in ways:
        clear(plan)
        name = " + ".join(["compiled"] * compiled + ["cuda graph"] * graph) or "eager"
        found = one_run(size, workload, plan, compiled=compiled, cuda_graph=graph)
        told(f"one run, {name}", found)
        yield name, found


def one_run(size: Size, workload: Gpt, plan: Plan, *, compiled: bool, cuda_graph: bool) -> Timing:
    """Return the timing of a plain run."""
    (run,) = runs(size, workload, plan, 1, compiled=compiled, cuda_graph=cuda_graph)
    return measure(lambda steps: run.advance(until=run.tokens + steps * size.batch), size.batch, plan)


def packs(size: Size, workload: Gpt, plan: Plan, began: float) -> Iterator[tuple[int, tuple[Timing, Where]]]:
    """Yield the timings of packs, and where the time of each goes."""
    spent = 0.0
    for count in size.rows:
        clear(plan)
        started = time.monotonic()
        if started - began + spent > plan.limit:
            print(f"ours, row of {count}: not tried, the time is up", flush=True)
            continue
        try:
            found, seen, way = one_pack(size, workload, plan, count)
        except RuntimeError as error:
            print(f"ours, row of {count}: failed: {str(error).strip().splitlines()[0]}", flush=True)
            continue
        finally:
            spent = time.monotonic() - started
        told(f"ours, row of {count}", found, way)
        yield count, (found, seen)


def one_pack(size: Size, workload: Gpt, plan: Plan, count: int) -> tuple[Timing, Where, str]:
    """Return the timing of a pack, where its time goes, and the way it has chosen to take its steps."""
    row = runs(size, workload, plan, count, compiled=plan.pack_compiled, cuda_graph=plan.cuda)
    pack = Pack(row, stacked=None if plan.cuda else True)

    def train(steps: int) -> None:
        pack.advance(until=pack.tokens + steps * size.batch)

    found = measure(train, count * size.batch, plan)
    seen = where(train, plan)
    if len(pack.members) < count:
        raise RuntimeError(f"{count - len(pack.members)} of {count} runs diverged: {row[0].reason}")
    return found, seen, type(pack._way).__name__.lower()


def where(train: Callable[[int], None], plan: Plan) -> Where:
    """Return the share of each part in the device's time, the busy share of the wall, the longest kernels."""
    kind = DeviceType.CUDA if plan.cuda else DeviceType.CPU
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * plan.cuda]
    for steps in (1, plan.profiled):  # the first time the profiler sets itself up
        with profile(activities=activities) as seen:
            wall = timed(train, steps)
    events = [e for e in seen.key_averages() if e.device_type == kind and not vars(e).get("is_user_annotation")]
    times = {e.key: (e.self_device_time_total if plan.cuda else e.self_cpu_time_total) / 1e6 for e in events}
    whole, shares = max(sum(times.values()), 1e-12), dict.fromkeys([*(part for part, _ in PARTS), "other"], 0.0)
    parts = {name: next((part for part, words in PARTS if words.search(name)), "other") for name in times}
    for name, seconds in times.items():
        shares[parts[name]] += seconds / whole
    longest = sorted(times, key=lambda name: -times[name])[:12]
    kernels = [[name[:90], parts[name], times[name] / whole] for name in longest]
    return {"shares": shares, "busy": whole / wall, "kernels": kernels}


def verdict(
    size: Size, workload: Gpt, stocks: dict[int, Timing], rows: dict[int, tuple[Timing, Where]]
) -> dict[str, Any]:
    """Print and return the best row against the best stock, and where its time goes."""
    rates = {count: found.tokens_per_second for count, (found, _) in rows.items()}
    best = max(rates, key=lambda count: rates[count])
    chosen = min(count for count, rate in rates.items() if rate >= NEAR * rates[best])
    theirs = max((found.tokens_per_second for found in stocks.values()), default=size.known)
    source = "stock's best" if stocks else "stock's best as once measured on an H100"
    ratio, flops = rates[best] / theirs, workload.facts().flops_per_token * rates[best]
    print(f"best: row of {best}, {ratio:.2f} x {source} of {theirs / 1e6:.2f} M; floor {size.floor}, aim {size.aim}")
    print(
        f"to choose: row of {chosen}, the smallest with {NEAR:.0%} of it. The best runs at {flops / 1e12:.3g} TFLOP/s"
    )
    profiled = rows[best][1]
    print(", ".join(f"{part} {share:.0%}" for part, share in profiled["shares"].items()), end="")
    print(f" of the device's time; busy {profiled['busy']:.0%} of the profiled time. Longest:")
    for name, part, share in profiled["kernels"]:
        print(f"  {share:6.1%}  {part:<25} {name}")
    result = {"best": best, "chosen": chosen, "ratio": ratio, "stock": theirs, "stock_measured": bool(stocks)}
    return {**result, "floor": size.floor, "aim": size.aim, "flops_per_second": flops, "profile": profiled}


def main() -> int:
    """Read the command line, measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU: that it runs, not how fast")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of runs in a pack, in this order")
    parser.add_argument("--stock-compiled", action="store_true", help="let stock compile its model")
    parser.add_argument("--uncompiled", action="store_true", help="do not compile the packs")
    asked = parser.parse_args()
    began, size, plan = time.monotonic(), SIZES[asked.size], DRY if asked.dry else Plan()
    plan = replace(plan, stock_compiled=asked.stock_compiled, pack_compiled=plan.cuda and not asked.uncompiled)
    if asked.dry:
        size = replace(size, **TINY)
    elif not torch.cuda.is_available():
        print("row_gpu.py: torch sees no CUDA device on this machine; --dry tries it on the CPU", file=sys.stderr)
        return NO_DEVICE
    size = replace(size, rows=tuple(asked.rows or size.rows))
    device = torch.cuda.get_device_name() if plan.cuda else "cpu"
    with tempfile.TemporaryDirectory(prefix="powersweep-row-") as folder:
        data = corpus(Path(folder), size.vocabulary, plan.tokens)
        shape = {name: getattr(size, name) for name in ("width", "depth", "heads", "context")}
        workload = Gpt(**shape, data=data, validation_tokens=8 * size.context)
        parameters = workload.facts().parameters
        print(f"{asked.size}: {parameters / 1e6:.2f} M parameters; {device}, torch {torch.__version__}")
        print(f"{'':<34}{'tokens/s':>12}{'windows':>20}{'warm-up s':>11}{'GiB':>7}")
        singles = dict(alone(size, workload, plan))
        stocks = dict(shared(size, workload, plan))
        rows = dict(packs(size, workload, plan, began))
        result = verdict(size, workload, stocks, rows) if rows else {}
    head = {"benchmark": "row_gpu", "size": asked.size, "device": device, "torch": torch.__version__}
    tables = {"alone": singles, "shared": stocks, "rows": {count: found for count, (found, _) in rows.items()}}
    lines = {name: {str(k): asdict(v) for k, v in table.items()} for name, table in tables.items()}
    print(json.dumps({**head, "parameters": parameters, **lines, **result, "seconds": time.monotonic() - began}))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
