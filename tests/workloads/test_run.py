"""A run: reports, divergence, deadlines, accumulation, ranks, precision."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from workloads.gpt import Gpt
from workloads.optim import SGD, AdamW, NAdamW
from workloads.quadratic import Quadratic
from workloads.run import Run, RunSpec
from workloads.run.feed import Feed
from workloads.teacher import Teacher

SMALL = Teacher(inputs=8, classes=4, eval_examples=256)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec(*, lr_at: Callable[[int], float] = lambda _: 0.5, **changes: object) -> RunSpec:
    fields = {
        "workload": SMALL,
        "optimizer": SGD(),
        "lr_at": lr_at,
        "peak_lr": 0.5,
        "batch_tokens": 8,
        "tokens": 80,
        "marks": (16, 40, 80),
        "seed": 0,
    }
    return RunSpec(**(fields | changes))


def finish(run: Run) -> Run:
    while run.status == "running":
        run.advance()
    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peak_lr": 0.0}, "peak_lr: must be above 0"),
        ({"peak_lr": math.nan}, "peak_lr: must be above 0"),
        ({"precision": "float16"}, "precision: must be one of float32, bfloat16"),
        ({"absurd_factor": 1.0}, "absurd_factor: must be above 1"),
        ({"rank": 1}, "rank: must be in"),
        ({"cuda_graph": True}, "cuda_graph: needs a CUDA device"),
        ({"batch_tokens": 0}, "batch_tokens: must be at least 1"),
        ({"marks": ()}, "marks: must ascend and end at tokens=80"),
        ({"marks": (80, 40)}, "marks: must ascend"),
        ({"marks": (40, 40, 80)}, "marks: must ascend"),
        ({"marks": (12, 80)}, "marks: must be whole batches of 8"),
        ({"asides": frozenset({24})}, "asides: must be among marks"),
    ],
)
def test_a_record_that_makes_no_run_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        spec(**changes)


def test_a_batch_that_does_not_divide_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"^micro_batch_tokens: .* divide a rank's 8, got 3"):
        Run(spec(micro_batch_tokens=3)).start()
    gpt = Gpt(width=8, depth=1, heads=1, context=16, validation_tokens=64)
    with pytest.raises(ValueError, match=r"^batch_tokens: must be a multiple of 16"):
        Run(spec(workload=gpt)).start()


def test_points_stand_at_the_marks_and_hold_all_metrics() -> None:
    run = finish(Run(spec()))
    assert [(p.tokens, p.step) for p in run.points] == [(16, 2), (40, 5), (80, 10)]
    names = {"validation/loss", "train/loss", "lr", "grad_norm", "tokens_per_second"}
    assert all(set(p.metrics) == names for p in run.points)
    assert all(math.isfinite(value) for p in run.points for value in p.metrics.values())
    assert run.status == "finished"
    assert run.advance() is None


def test_a_step_uses_the_lr_of_the_tokens_before_it() -> None:
    asked: list[int] = []

    def lr_at(tokens: int) -> float:
        asked.append(tokens)
        return 0.5 - tokens / 1000

    run = finish(Run(spec(lr_at=lr_at)))
    assert asked == list(range(0, 80, 8))
    assert [p.metrics["lr"] for p in run.points] == [lr_at(8), lr_at(32), lr_at(72)]


def test_the_train_loss_is_the_mean_since_the_last_report() -> None:
    fine, coarse = (finish(Run(spec(marks=marks))) for marks in (tuple(range(8, 81, 8)), (40, 80)))
    losses = [p.metrics["train/loss"] for p in fine.points]
    means = [sum(losses[:5]) / 5, sum(losses[5:]) / 5]
    assert [p.metrics["train/loss"] for p in coarse.points] == pytest.approx(means, rel=1e-6)


def test_the_gradient_norm_is_taken_before_clipping() -> None:
    plain, clipped = (finish(Run(spec(optimizer=SGD(clip_norm=c), tokens=8, marks=(8,)))) for c in (None, 1e-3))
    assert plain.points[0].metrics["grad_norm"] == pytest.approx(clipped.points[0].metrics["grad_norm"], rel=1e-5)
    assert plain.points[0].metrics["grad_norm"] > 0.01


def test_the_speed_counts_only_training_and_only_this_process() -> None:
    run = Run(spec())
    run.start()
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    point = run.advance(clock=clock)  # two readings, a second apart
    assert point is not None
    assert point.metrics["tokens_per_second"] == pytest.approx(16.0)
    run.advance(deadline=run.step + 1, clock=lambda: float(run.step))
    resumed = Run(spec())
    resumed.load(*run.state())
    point = resumed.advance(clock=clock)
    assert point is not None
    assert point.tokens == 40
    assert point.metrics["tokens_per_second"] == pytest.approx(16.0)  # 24 since the last report, 8 of them before


def test_a_passed_deadline_pauses_at_the_next_step_boundary() -> None:
    run = Run(spec())
    assert run.advance(deadline=1, clock=lambda: float(run.step)) is None
    assert (run.status, run.tokens, run.points) == ("running", 8, [])
    point = run.advance()
    assert point is not None
    assert point.tokens == 16


def test_the_state_is_flat_tensors_and_plain_json() -> None:
    run = Run(spec(optimizer=AdamW()))
    run.advance()
    tensors, meta = run.state()
    assert json.loads(json.dumps(meta, allow_nan=False)) == meta
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert {name.split("/")[0] for name in tensors} == {"model", "optimizer", "rng", "train"}


def test_saved_tensors_are_copies() -> None:
    run = Run(spec())
    run.advance()
    before = run.state()[0]
    kept = before["model/weight"].clone()
    run.advance()
    assert torch.equal(before["model/weight"], kept)


def test_a_finished_run_goes_on_under_a_longer_horizon() -> None:
    short = finish(Run(spec()))
    marks = (16, 40, 80, 160)
    longer = Run(spec(tokens=160, marks=marks))
    longer.load(*short.state())
    assert longer.status == "running"
    finish(longer)
    straight = finish(Run(spec(tokens=160, marks=marks)))
    assert [p.metrics["validation/loss"] for p in longer.points] == [
        p.metrics["validation/loss"] for p in straight.points
    ]


def test_the_curve_does_not_depend_on_the_horizon_or_on_the_marks_but_for_means() -> None:
    short = finish(Run(spec()))
    longer = finish(Run(spec(tokens=160, marks=(8, 40, 80, 160))))
    assert short.points[-1].metrics["validation/loss"] == longer.points[2].metrics["validation/loss"]


SEEN = ("validation/loss", "train/loss", "lr", "grad_norm")


def curve(run: Run) -> dict[int, list[float]]:
    return {p.tokens: [p.metrics[name] for name in SEEN] for p in run.points}


def test_an_aside_makes_a_point_and_no_other_point_depends_on_it() -> None:
    plain = curve(finish(Run(spec())))
    asides = curve(finish(Run(spec(marks=(8, 16, 40, 56, 80), asides=frozenset({8, 56})))))
    assert {tokens: asides[tokens] for tokens in plain} == plain
    assert set(asides) - set(plain) == {8, 56}


def test_a_run_that_ended_at_an_aside_goes_on_as_if_it_had_never_stopped() -> None:
    short = finish(Run(spec(tokens=56, marks=(16, 40, 56), asides=frozenset({56}))))
    longer = Run(spec(marks=(16, 40, 56, 80), asides=frozenset({56})))
    longer.load(*short.state())
    assert curve(finish(longer))[80] == curve(finish(Run(spec())))[80]


def test_an_absurd_loss_at_an_aside_ends_no_run_and_one_at_a_mark_does() -> None:
    bowl = {"workload": Quadratic(dimensions=1, noise=0.0), "lr_at": lambda tokens: 3.0 if tokens < 8 else 0.5}
    marks = {"tokens": 80, "marks": (8, 80)}
    # one step at LR 3 on curvature 1 multiplies the loss by 4, the next ones at 0.5 take it down
    assert finish(Run(spec(**bowl, **marks))).status == "diverged"
    run = finish(Run(spec(**bowl, **marks, asides=frozenset({8}))))
    assert (run.status, [p.tokens for p in run.points]) == ("finished", [8, 80])


def test_a_diverged_run_tells_the_factor_of_a_finite_loss_and_none_of_another() -> None:
    finite = finish(Run(spec(workload=Quadratic(dimensions=4), lr_at=lambda _: 3.0, absurd_factor=2.0)))
    assert (finite.status, finite.exceeded) == ("diverged", 2.0)
    broken = finish(Run(spec(workload=Quadratic(dimensions=4), lr_at=lambda _: math.inf, absurd_factor=2.0)))
    assert (broken.status, broken.exceeded) == ("diverged", None)


def test_a_state_of_another_shape_is_refused() -> None:
    state = finish(Run(spec())).state()
    with pytest.raises(ValueError, match=r"^state: must be of version 2 and batch_tokens 16"):
        Run(spec(batch_tokens=16, marks=(80,))).load(*state)


def test_a_state_of_another_optimizer_is_refused() -> None:
    state = finish(Run(spec(optimizer=AdamW(), workload=Teacher(inputs=8, classes=4)))).state()
    tensors = {name.replace("/weight/", "/other/"): value for name, value in state[0].items()}
    with pytest.raises(ValueError, match=r"^optimizer: the state of '0/other'"):
        Run(spec(optimizer=AdamW())).load(tensors, state[1])


def test_divergence_is_noticed_between_distant_marks() -> None:
    quadratic = Quadratic(dimensions=4)
    tokens = 8 * 100_000
    run = Run(spec(workload=quadratic, lr_at=lambda _: 10.0, tokens=tokens, marks=(tokens,)))
    assert run.advance() is None
    assert run.status == "diverged"
    assert run.step <= 64
    assert run.reason.startswith("train/loss is")


def test_a_diverged_run_keeps_its_finite_points_and_stays_diverged_when_resumed() -> None:
    run = finish(Run(spec(workload=Quadratic(dimensions=4), lr_at=lambda tokens: 0.01 if tokens < 40 else 50.0)))
    assert run.status == "diverged"
    assert [p.tokens for p in run.points] == [16, 40]
    assert "above" in run.reason
    again = Run(spec(workload=Quadratic(dimensions=4)))
    again.load(*run.state())
    assert (again.status, again.reason, len(again.points)) == ("diverged", run.reason, 2)
    assert again.advance() is None


def test_the_absurd_factor_is_relative_to_the_first_loss() -> None:
    jump = {"workload": Quadratic(dimensions=1, noise=0.0), "tokens": 8, "marks": (8,)}
    # one step at LR 2.5 on curvature 1 multiplies the loss by 1.5^2 = 2.25
    assert finish(Run(spec(lr_at=lambda _: 2.5, absurd_factor=2.2, **jump))).status == "diverged"
    assert finish(Run(spec(lr_at=lambda _: 2.5, absurd_factor=2.3, **jump))).status == "finished"


def test_autocast_changes_the_digits_and_little_else() -> None:
    gpt = Gpt(width=16, depth=1, heads=1, context=16, validation_tokens=256)
    shape = {"workload": gpt, "batch_tokens": 64, "tokens": 640, "marks": (640,), "lr_at": lambda _: 0.01}
    single, half = (
        finish(Run(spec(optimizer=AdamW(), precision=precision, **shape))) for precision in ("float32", "bfloat16")
    )
    mine, theirs = half.points[-1].metrics["validation/loss"], single.points[-1].metrics["validation/loss"]
    assert mine != theirs
    assert mine == pytest.approx(theirs, rel=0.02)


RANK = """
import json, sys
import torch
from torch import distributed
from workloads.optim import SGD
from workloads.run import Run, RunSpec
from workloads.teacher import Teacher

torch.set_num_threads(1)
rank, port = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
teacher = Teacher(inputs=8, classes=4, eval_examples=256)
run = Run(RunSpec(teacher, SGD(), lambda _: 0.5, 0.5, 8, 80, (16, 40, 80), 0, rank=rank, world=2))
while run.status == "running":
    run.advance()
print(json.dumps([[p.metrics[m] for m in ("validation/loss", "train/loss", "grad_norm")] for p in run.points]))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_train_as_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for rank in range(2)
    ]
    curves = [json.loads(process.communicate(timeout=50)[0].splitlines()[-1]) for process in ranks]
    alone = finish(Run(spec()))
    wanted = [[p.metrics[m] for m in ("validation/loss", "train/loss", "grad_norm")] for p in alone.points]
    for curve in curves:
        for mine, theirs in zip(curve, wanted, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL_GPT = Gpt(width=64, depth=2, heads=2, context=32, validation_tokens=1024)
ON_GPU = {
    "workload": SMALL_GPT,
    "optimizer": AdamW(),
    "lr_at": lambda tokens: 0.01 - tokens * 1e-8,
    "batch_tokens": 256,
    "tokens": 256 * 80,
    "marks": (256 * 20, 256 * 80),
    "device": "cuda",
}


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"optimizer": SGD(momentum=0.9)}, {"optimizer": NAdamW()}])
def test_a_graph_of_the_whole_step_trains_as_the_plain_run(changes: dict[str, object]) -> None:
    plain, graph = (finish(Run(spec(**(ON_GPU | changes), cuda_graph=on))) for on in (False, True))
    for mine, theirs in zip(graph.points, plain.points, strict=True):
        for name in ("validation/loss", "train/loss", "lr"):
            assert mine.metrics[name] == pytest.approx(theirs.metrics[name], rel=2e-2), name
    assert graph.points[0].metrics["grad_norm"] > 0


@GPU
@pytest.mark.gpu
@pytest.mark.parametrize("on", [False, True])
def test_a_run_on_the_gpu_resumes_from_its_state(on: bool) -> None:
    whole = finish(Run(spec(**ON_GPU, cuda_graph=on)))
    run = Run(spec(**ON_GPU, cuda_graph=on))
    run.advance(deadline=30, clock=lambda: float(run.step))
    run.advance(deadline=30, clock=lambda: float(run.step))
    again = Run(spec(**ON_GPU, cuda_graph=on))
    again.load(*run.state())
    finish(again)
    assert [p.tokens for p in again.points] == [p.tokens for p in whole.points]
    for mine, theirs in zip(again.points, whole.points, strict=True):
        assert mine.metrics["validation/loss"] == pytest.approx(theirs.metrics["validation/loss"], rel=2e-2)


def test_reading_ahead_does_not_move_the_position() -> None:
    queue, plain = (SMALL.build_input_queue("train", 8, 0) for _ in range(2))
    feed = Feed(queue, torch.device("cpu"))
    for _ in range(20):
        assert torch.equal(next(feed)["inputs"], next(plain)["inputs"])
        assert feed.state_dict() == plain.state_dict()
    feed.load_state_dict({"position": 8})
    plain.load_state_dict({"position": 8})
    assert torch.equal(next(feed)["inputs"], next(plain)["inputs"])


def test_more_than_one_rank_takes_no_deadline() -> None:
    with pytest.raises(ValueError, match=r"^deadline: ranks would pause at different steps"):
        Run(spec(world=2, rank=0)).advance(deadline=1.0)
