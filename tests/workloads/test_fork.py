"""A branch that is forked from a trunk equals the same run from scratch, bit for bit on CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from workloads.base import Workload
from workloads.gpt import Gpt
from workloads.image import Image
from workloads.optim import SGD, AdamW, Muon, NAdamW, Optimizer
from workloads.run import Run, RunSpec
from workloads.teacher import Teacher

STEPS = (10, 20, 40)  # horizons, in batches
COOL = 0.2
WORKLOADS: list[tuple[Workload, Optimizer, int, float]] = [  # examples of a batch, LR
    (Gpt(width=16, depth=1, heads=1, context=16, validation_tokens=256), AdamW(), 4, 3e-3),
    (Gpt(width=32, depth=2, heads=2, context=32, validation_tokens=256), Muon(), 2, 3e-3),
    (Image(width=4, norm="batch", augmentation="shift+flip", validation_examples=50), SGD(momentum=0.9), 4, 0.02),
    (Image(model="vit", width=8, heads=2, patch=14, validation_examples=50), NAdamW(), 4, 0.01),
    (Teacher(inputs=8, classes=4, eval_examples=128), SGD(), 8, 0.5),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def lr_at(peak: float, batch: int, horizon: int) -> Callable[[int], float]:
    start = (1 - COOL) * horizon

    def at(seen: int) -> float:
        middle = seen + batch / 2
        return peak if middle <= start else peak * (horizon - middle) / (horizon - start)

    return at


def branch(
    workload: Workload, optimizer: Optimizer, batch: int, peak: float, horizon: int, **changes: object
) -> RunSpec:
    marks = tuple(sorted({round(horizon * share / batch) * batch for share in (0.125, 0.3, 0.5, 0.9, 1.0)}))
    spec = RunSpec(workload, optimizer, lr_at(peak, batch, horizon), peak, batch, horizon, marks, seed=3)
    return replace(spec, **changes)


def trunk_of(branches: list[RunSpec]) -> RunSpec:
    """Return the trunk of branches: it knows no horizon, and looks where any of them does."""
    first = branches[0]
    last = max(fork_of(spec) for spec in branches)
    marks = tuple(sorted({mark for spec in branches for mark in spec.marks if mark <= last}))
    return replace(first, lr_at=lambda seen: first.peak_lr, tokens=last, marks=marks, trunk=True)


def fork_of(spec: RunSpec) -> int:
    return round((1 - COOL) * spec.tokens / spec.batch_tokens) * spec.batch_tokens


def finish(run: Run) -> Run:
    while run.status == "running":
        run.advance()
    return run


def forked(branches: list[RunSpec], *, interrupt: bool = False) -> list[Run]:
    trunk, ended = Run(trunk_of(branches)), []
    for spec in sorted(branches, key=fork_of):
        while trunk.tokens < fork_of(spec) and trunk.status == "running":
            trunk.advance(until=fork_of(spec))
            if interrupt:
                again = Run(trunk.spec)
                again.load(*trunk.state())
                trunk = again
        run = Run(spec)
        run.fork(*trunk.state())
        ended.append(finish(run))
    return ended


def same(run: Run, other: Run) -> None:
    """Assert that two runs are one, but for the clock."""
    assert (run.status, run.reason, run.exceeded, run.tokens) == (
        other.status,
        other.reason,
        other.exceeded,
        other.tokens,
    )
    told = [[(p.tokens, p.step, {**p.metrics, "tokens_per_second": 0}) for p in r.points] for r in (run, other)]
    assert told[0] == told[1]
    if run.status == "finished":
        mine, theirs = run.state()[0], other.state()[0]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize(("workload", "optimizer", "examples", "lr"), WORKLOADS)
def test_forked_equals_scratch(
    workload: Workload, optimizer: Optimizer, examples: int, lr: float, interrupt: bool
) -> None:
    batch = examples * workload.facts().tokens_per_example
    branches = [branch(workload, optimizer, batch, lr, steps * batch) for steps in STEPS]
    for run, spec in zip(forked(branches, interrupt=interrupt), branches, strict=True):
        assert run.status == "finished"
        same(run, finish(Run(spec)))


@pytest.mark.parametrize("lr", [5.0, 60.0, 300.0, 1e4])
def test_a_branch_diverges_where_it_would_have_by_itself(lr: float) -> None:
    """At a mark of its own, between marks, or never: whatever other branches look at."""
    branches = [branch(WORKLOADS[4][0], SGD(), 8, lr, 8 * steps) for steps in (24, 90, 300)]
    runs = forked(branches)
    for run, spec in zip(runs, branches, strict=True):
        same(run, finish(Run(spec)))
    assert lr < 50 or runs[-1].status == "diverged"


def test_a_trunk_that_has_passed_a_mark_unseen_carries_no_branch() -> None:
    short, long = (branch(WORKLOADS[4][0], SGD(), 8, 0.5, 8 * steps) for steps in (30, 100))
    trunk = Run(trunk_of([long]))
    while trunk.tokens < 24 * 8:
        trunk.advance(until=24 * 8)
    with pytest.raises(ValueError, match=r"^marks: the trunk has passed 32 tokens without a look"):
        Run(short).fork(*trunk.state())
