"""A pack: each member has the curve, the checkpoints and the end of the plain run, whoever its neighbours are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from workloads.base import Workload
from workloads.gpt import Gpt
from workloads.image import Image
from workloads.optim import OPTIMIZERS, SGD, AdamW, Muon, NAdamW, Optimizer
from workloads.pack import Pack, shape_key, why_not
from workloads.pack.stack import Stack
from workloads.quadratic import Quadratic
from workloads.run import Run, RunSpec
from workloads.script import Script
from workloads.teacher import Teacher

STEPS = 10
TEACHER = Teacher(inputs=8, classes=4, eval_examples=64)
GPT = Gpt(width=16, depth=1, heads=1, context=16, validation_tokens=256)
WORKLOADS: dict[str, tuple[Workload, int, float]] = {  # examples of a batch, LR
    "gpt": (GPT, 4, 3e-3),
    "resnet": (Image(width=4, augmentation="shift", validation_examples=20), 8, 1e-3),
    "batch norm": (Image(width=4, norm="batch", validation_examples=20), 8, 1e-3),
    "vit": (Image(model="vit", width=8, heads=2, depth=1, patch=14, validation_examples=20), 8, 1e-3),
    "quadratic": (Quadratic(dimensions=16), 8, 0.05),
    "teacher": (TEACHER, 8, 0.1),
}
CLIPPED = SGD(momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=0.5)
OPTIMIZED: dict[str, Optimizer] = {
    "adamw": AdamW(),
    "nadamw": NAdamW(),
    "sgd": SGD(),
    "nesterov": CLIPPED,
    "muon": Muon(),
}
STACKED = [name for name in WORKLOADS if name in ("gpt", "quadratic", "teacher")]  # on a CPU, where it pays
SIZES: dict[str, tuple[Workload, int, float]] = {  # the odd ones fill no vector
    "gpt": WORKLOADS["gpt"],
    "odd gpt": (
        Gpt(width=6, depth=1, heads=3, context=5, mlp_ratio=1.7, activation="geglu", validation_tokens=20),
        3,
        3e-3,
    ),
    "teacher": WORKLOADS["teacher"],
    "odd teacher": (Teacher(inputs=7, classes=5, eval_examples=16), 3, 0.1),
    "odd quadratic": (Quadratic(dimensions=17), 3, 0.1),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def falling(peak: float) -> Callable[[int], float]:
    return lambda tokens: peak / (1 + tokens / 1000)


def spec(
    shape: tuple[Workload, int, float], optimizer: Optimizer, member: int = 0, *, steps: int = STEPS, **changes: object
) -> RunSpec:
    """Return the run of a member: its LR and its seed (one of three) follow from its number."""
    workload, examples, lr = shape
    batch = examples * (workload.context if isinstance(workload, Gpt) else 1)
    peak = lr * (1 + member / 2)
    whole = RunSpec(
        workload, optimizer, falling(peak), peak, batch, steps * batch, (4 * batch, steps * batch), member % 3
    )
    return replace(whole, **changes)


def finish(run: Run) -> Run:
    while run.status == "running":
        run.advance()
    return run


def finish_all(runs: Sequence[Run], *, stacked: bool | None = None) -> list[Run]:
    pack = Pack(runs, stacked=stacked)
    while pack.members:
        pack.advance()
    return list(runs)


def seen(run: Run) -> list[object]:
    """Return all that a run told, but for the clock."""
    points = [(p.tokens, p.step, {**p.metrics, "tokens_per_second": 0.0}) for p in run.points]
    return [run.status, run.reason, run.exceeded, run.tokens, points]


def same(run: Run, other: Run) -> None:
    """Assert that two runs are one, to the bit."""
    assert seen(run) == seen(other)
    (mine, meta), (theirs, other_meta) = run.state(), other.state()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert meta["queue"] == other_meta["queue"]


def near(run: Run, other: Run, tolerance: float = 1e-4) -> None:
    """Assert that two runs are one within float noise, and equal in the names, shapes and types of their state."""
    assert [run.status, run.tokens] == [other.status, other.tokens]
    assert len(run.points) == len(other.points)
    for mine, theirs in zip(run.points, other.points, strict=True):
        for name in mine.metrics.keys() - {"tokens_per_second"}:
            assert mine.metrics[name] == pytest.approx(theirs.metrics[name], rel=tolerance, abs=1e-9), name
    (mine, meta), (theirs, other_meta) = run.state(), other.state()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert (value.dtype, value.shape) == (theirs[name].dtype, theirs[name].shape)
    ours, whole = (
        torch.cat([x.flatten() for name, x in state.items() if name.startswith("model/")]) for state in (mine, theirs)
    )
    assert (ours - whole).norm() <= tolerance * whole.norm()
    assert (meta["queue"], meta["optimizer"]) == (other_meta["queue"], other_meta["optimizer"])


def suits(name: str, optimizer: str) -> bool:
    if optimizer == "muon":
        return name in ("gpt", "teacher", "vit")  # the others have no hidden matrix
    if name == "resnet":
        return optimizer == "adamw"  # with batch norm it has all of them
    return optimizer != "sgd" or name in STACKED  # the others have it with momentum


PAIRS = [(name, optimizer) for name in WORKLOADS for optimizer in OPTIMIZED if suits(name, optimizer)]


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_a_pack_equals_plain_runs(name: str, optimizer: str) -> None:
    """In turns to the bit, stacked within float noise: parameters, norms, losses, after ten steps."""
    specs = [spec(WORKLOADS[name], OPTIMIZED[optimizer], k) for k in range(2)]
    plain = [finish(Run(s)) for s in specs]
    if optimizer == "adamw":  # the way of the others is the same
        for run, other in zip(finish_all([Run(s) for s in specs], stacked=False), plain, strict=True):
            same(run, other)
    for run, other in zip(finish_all([Run(s) for s in specs], stacked=True), plain, strict=True):
        near(run, other, 1e-3 if optimizer == "muon" else 1e-4)  # Muon multiplies matrices in bfloat16


def test_every_optimizer_of_the_table_was_tried() -> None:
    assert {type(optimizer) for optimizer in OPTIMIZED.values()} == set(OPTIMIZERS.values())


def test_first_gradients_are_the_plain_ones() -> None:
    """After one step of plain SGD, parameters tell gradients; the noise of ten steps has not grown yet."""
    for shape in (WORKLOADS[name] for name in ("gpt", "batch norm", "vit")):
        specs = [replace(s := spec(shape, SGD(), k), tokens=s.batch_tokens, marks=(s.batch_tokens,)) for k in range(2)]
        for run, s in zip(finish_all([Run(s) for s in specs], stacked=True), specs, strict=True):
            near(run, finish(Run(s)), 3e-6)


def test_members_may_differ_in_every_number() -> None:
    optimizers = (
        AdamW(),
        AdamW(betas=(0.8, 0.99), eps=1e-6, weight_decay=0.0, clip_norm=0.1),
        AdamW(weight_decay=0.05, decay="independent", clip_norm=0.01),
    )
    workloads = (GPT, replace(GPT, init_scale=0.5), replace(GPT, residual_init="zero"))
    specs = [
        spec((w, 4, 3e-3), o, k, absurd_factor=3.0 + k)
        for k, (w, o) in enumerate(zip(workloads, optimizers, strict=True))
    ]
    assert len({shape_key(s) for s in specs}) == 1
    for run, s in zip(finish_all([Run(s) for s in specs], stacked=True), specs, strict=True):
        near(run, finish(Run(s)))


def test_micro_batches_and_autocast_are_the_plain_runs_too() -> None:
    for changes, tolerance in (({"micro_batch_tokens": 16}, 1e-4), ({"precision": "bfloat16"}, 0.02)):
        specs = [spec(WORKLOADS["gpt"], AdamW(), k, **changes) for k in range(2)]
        for run, s in zip(finish_all([Run(s) for s in specs], stacked=True), specs, strict=True):
            near(run, finish(Run(s)), tolerance)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, "adamw") for name in SIZES),
        *(("odd teacher", optimizer) for optimizer in ("nadamw", "sgd", "nesterov")),
    ],
)
def test_bits_depend_neither_on_how_many_nor_on_which(name: str, optimizer: str) -> None:
    row = [Run(spec(SIZES[name], OPTIMIZED[optimizer], k)) for k in (4, 1, 0, 3, 2)]
    finish_all(row, stacked=True)
    for some in ((2,), (1, 2)):
        runs = [Run(row[k].spec) for k in some]
        for run, k in zip(finish_all(runs, stacked=True), some, strict=True):
            same(run, row[k])


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pack_takes_by_itself_a_way_whose_bits_are_its_members_own(name: str) -> None:
    alone = finish_all([Run(spec(WORKLOADS[name], AdamW(), 1))])[0]
    pack = Pack(runs := [Run(spec(WORKLOADS[name], AdamW(), k)) for k in (2, 1, 0)])
    pack.advance()
    assert isinstance(pack._way, Stack) == (name in STACKED)
    while pack.members:
        pack.advance()
    same(runs[1], alone)


@pytest.mark.parametrize("stacked", [True, False])
def test_bits_do_not_depend_on_who_joins_or_leaves(stacked: bool) -> None:
    shape = WORKLOADS["teacher"]
    alone = finish_all([Run(spec(shape, AdamW(), 1))], stacked=stacked)[0]
    pack = Pack(runs := [Run(spec(shape, AdamW(), k)) for k in range(4)], stacked=stacked)
    pack.advance(until=2 * alone.spec.batch_tokens)
    pack.leave(runs[0])
    pack.advance(until=3 * alone.spec.batch_tokens)
    regrouped = [Run(run.spec) for run in (runs[1], runs[3])]  # as a row does that was killed
    for run, old in zip(regrouped, (runs[1], runs[3]), strict=True):
        run.load(*old.state())
    late = Run(spec(shape, AdamW(), 7))
    late.advance(until=3 * alone.spec.batch_tokens)
    finish_all([*regrouped, late], stacked=stacked)
    same(regrouped[0], alone)


@pytest.mark.parametrize("optimizer", ["adamw", "nadamw", "nesterov"])
def test_checkpoints_are_the_plain_ones(optimizer: str) -> None:
    """A member goes on as a plain run, and a plain run as a member."""
    specs = [spec(WORKLOADS["teacher"], OPTIMIZED[optimizer], k) for k in range(2)]
    half = specs[0].marks[0]
    pack = Pack(packed := [Run(s) for s in specs], stacked=True)
    pack.advance()
    plain = [Run(s) for s in specs]
    for run in plain:
        run.advance()
    crossed = [Run(s) for s in specs]
    crossed[0].load(*packed[0].state())
    crossed[1].load(*plain[1].state())
    finish(crossed[0])
    finish_all([crossed[1]], stacked=True)
    for run, s in zip(crossed, specs, strict=True):
        assert half < run.tokens
        near(run, finish(Run(s)))


@pytest.mark.parametrize("stacked", [True, False])
def test_branches_are_forked_from_a_member_into_a_pack(stacked: bool) -> None:
    shape, size = WORKLOADS["teacher"], 8
    trunks = [spec(shape, AdamW(), k, trunk=True, marks=(4 * size,), tokens=6 * size) for k in range(2)]
    branches = [spec(shape, AdamW(), k) for k in range(2)]
    pack = Pack(runs := [Run(s) for s in trunks], stacked=stacked)
    while pack.members:
        pack.advance(until=5 * size)
        if pack.tokens == 5 * size:
            break
    forked = [Run(s) for s in branches]
    for run, trunk in zip(forked, runs, strict=True):
        run.fork(*trunk.state())
    for run, s in zip(finish_all(forked, stacked=stacked), branches, strict=True):
        same(run, finish_all([Run(s)], stacked=stacked)[0])


@pytest.mark.parametrize("stacked", [True, False])
def test_a_diverging_member_leaves_and_touches_no_neighbour(stacked: bool) -> None:
    shape, steps = (Quadratic(dimensions=8), 4, 0.1), 90
    rates = (0.1, 3.0, math.inf, 0.2)  # fine, above the stable 2, at once
    specs = [spec(shape, SGD(), k, steps=steps, lr_at=lambda _, lr=lr: lr) for k, lr in enumerate(rates)]
    pack = Pack(runs := [Run(s) for s in specs], stacked=stacked)
    pack.advance()
    assert pack.members == [runs[0], runs[3]]
    while pack.members:
        pack.advance()
    for run, s in zip(runs, specs, strict=True):
        assert seen(run)[:4] == seen(finish(Run(s)))[:4]
    for k in (0, 3):
        same(runs[k], finish_all([Run(specs[k])], stacked=stacked)[0])


def test_divergence_between_distant_marks_is_told_as_the_plain_run_tells_it() -> None:
    shape = (Quadratic(dimensions=4, noise=0.0), 8, 0.1)
    specs = [
        spec(shape, SGD(), k, steps=200, lr_at=lambda _, lr=lr: lr, marks=(1600,)) for k, lr in enumerate((3, 0.5))
    ]
    runs = finish_all([Run(s) for s in specs], stacked=True)
    assert [run.status for run in runs] == ["diverged", "finished"]
    assert seen(runs[0]) == seen(finish(Run(specs[0])))
    assert runs[0].step == 64


@pytest.mark.parametrize("stacked", [True, False])
def test_members_leave_at_their_own_horizons(stacked: bool) -> None:
    specs = [spec(WORKLOADS["teacher"], AdamW(), k, steps=steps) for k, steps in enumerate((20, 6, 12))]
    pack = Pack(runs := [Run(s) for s in specs], stacked=stacked)
    sizes = []
    while pack.members:
        sizes.append((pack.tokens // 8, len(pack.members)))
        pack.advance()
    assert sizes == [(0, 3), (4, 3), (6, 2), (12, 1)]
    for run, s in zip(runs, specs, strict=True):
        same(run, finish_all([Run(s)], stacked=stacked)[0])


def test_the_pack_pauses_at_the_deadline_and_at_until() -> None:
    pack = Pack(runs := [Run(spec(WORKLOADS["teacher"], SGD(), k)) for k in range(2)], stacked=True)
    pack.advance(deadline=1, clock=lambda: float(runs[0].step))
    assert [(run.tokens, run.points, run.status) for run in runs] == [(8, [], "running")] * 2
    pack.advance(until=24)
    assert [(run.tokens, run.points) for run in runs] == [(24, [])] * 2
    pack.advance(wall=lambda: 7.0)
    assert [(p.tokens, p.timestamp) for run in runs for p in run.points] == [(32, 7.0)] * 2


def test_the_speed_of_a_member_is_its_share_of_the_packs() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    pack = Pack(runs := [Run(spec(WORKLOADS["teacher"], SGD(), k)) for k in range(2)], stacked=True)
    pack.advance(clock=clock)  # two readings, a second apart
    assert [run.points[0].metrics["tokens_per_second"] for run in runs] == [32.0, 32.0]


@pytest.mark.parametrize("stacked", [True, False])
def test_a_member_that_goes_its_own_way_leaves_the_pack(stacked: bool) -> None:
    specs = [spec(WORKLOADS["teacher"], AdamW(), 3 * k) for k in range(5)]  # of one seed, so of one stream
    pack = Pack(runs := [Run(s) for s in specs], stacked=stacked)
    pack.advance(until=16)
    state = runs[0].state()
    runs[1].advance()
    runs[2].load(*state)
    runs[3].close()
    pack.advance()
    assert pack.members == [runs[0], runs[4]]
    while pack.members:
        pack.advance()
    for k in (0, 4):
        same(runs[k], finish_all([Run(specs[k])], stacked=stacked)[0])
    near(finish(runs[1]), finish(Run(specs[1])))
    assert finish(runs[2]).state()[1]["queue"] == {"position": 80}


def test_a_member_that_left_can_be_saved_and_goes_on_alone() -> None:
    specs = [spec(WORKLOADS["teacher"], AdamW(), k) for k in (0, 3, 6)]  # of one seed, so of one stream
    pack = Pack(runs := [Run(s) for s in specs], stacked=True)
    pack.advance(until=16)
    pack.leave(runs[0])
    kept = runs[0].state()
    pack.advance()
    assert all(torch.equal(value, kept[0][name]) for name, value in runs[0].state()[0].items())
    assert runs[0].state()[1] == kept[1]
    near(finish(runs[0]), finish(Run(specs[0])))
    with pytest.raises(ValueError, match=r"^run: must be a member of the pack"):
        pack.leave(runs[0])


def test_runs_of_equal_seed_share_one_stream() -> None:
    pack = Pack(runs := [Run(spec(WORKLOADS["teacher"], SGD(), k)) for k in (0, 3, 1)])
    pack.advance(until=8)
    lives = [run.live for run in runs]
    assert all(live is not None for live in lives)
    assert lives[0].queue is lives[1].queue is not lives[2].queue


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workload": Teacher(inputs=9, classes=4)}, r"^runs: must be of one shape, they differ in workload \(Teacher"),
        ({"optimizer": NAdamW()}, r"optimizer \(AdamW\(.*\) and NAdamW"),
        ({"optimizer": AdamW(clip_norm=None)}, r"optimizer"),
        ({"batch_tokens": 16, "tokens": 80, "marks": (80,)}, r"batch_tokens \(8 and 16\)"),
        ({"precision": "bfloat16"}, r"precision \('float32' and 'bfloat16'\)"),
        ({"world": 2}, r"^runs: cannot be packed: .* got world=2"),
    ],
)
def test_runs_that_make_no_pack_are_refused(changes: dict[str, object], words: str) -> None:
    first = spec(WORKLOADS["teacher"], AdamW())
    with pytest.raises(ValueError, match=words):
        Pack([Run(first), Run(replace(first, **changes))])


def test_a_pack_needs_different_runs_at_one_step() -> None:
    first, other = (Run(spec(WORKLOADS["teacher"], AdamW(), k)) for k in range(2))
    with pytest.raises(ValueError, match=r"^runs: must be at least one"):
        Pack([])
    with pytest.raises(ValueError, match=r"^runs: must be different runs"):
        Pack([first, first])
    other.advance()
    with pytest.raises(ValueError, match=r"^runs: must be at the same tokens, got 0 and 32"):
        Pack([first, other])


def test_why_not_tells_what_cannot_be_packed() -> None:
    base = spec(WORKLOADS["teacher"], AdamW())
    assert all(why_not(spec(shape, AdamW())) is None for shape in WORKLOADS.values())
    assert "several ranks" in str(why_not(replace(base, world=2)))
    assert "a process of its own" in str(why_not(replace(base, workload=Script(target="a:b"))))


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "nadamw", "nesterov"])
def test_a_pack_on_a_gpu_equals_plain_runs(optimizer: str, compiled: bool, graph: bool) -> None:
    shape = (Gpt(width=64, depth=2, heads=2, context=32, validation_tokens=1024), 8, 3e-3)
    plain = [spec(shape, OPTIMIZED[optimizer], k, device="cuda") for k in range(4)]
    packed = [Run(replace(s, compile=compiled, cuda_graph=graph)) for s in plain]
    for run, s in zip(finish_all(packed), plain, strict=True):
        near(run, finish(Run(s)), 5e-3)  # TF32
