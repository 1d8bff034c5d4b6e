"""The two workloads whose answer is known: the quadratic on paper, the teacher from its published recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workloads.optim import SGD
from workloads.quadratic import Quadratic
from workloads.run import Run, RunSpec
from workloads.teacher import Teacher

BATCHES, HORIZONS = (4, 8, 16), (2048, 4096, 8192)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def log_best(quadratic: Quadratic, batch: int, tokens: int) -> float:
    return math.log(quadratic.best_lr(batch_tokens=batch, tokens=tokens))


def test_the_summed_recursion_is_the_recursion() -> None:
    quadratic = Quadratic()
    for lr, batch, tokens in ((0.01, 4, 512), (0.3, 16, 2048), (1.5, 8, 64)):
        steps = quadratic.expected_loss([lr] * (tokens // batch), batch_tokens=batch)
        assert quadratic.expected_loss_constant(lr, batch_tokens=batch, tokens=tokens) == pytest.approx(steps)


def test_one_noiseless_dimension_is_solved_by_hand() -> None:
    quadratic = Quadratic(dimensions=1, decades=0.0, noise=0.0)
    assert quadratic.expected_loss([0.5, 0.5], batch_tokens=1) == pytest.approx(0.5**4)
    noisy = Quadratic(dimensions=1, decades=0.0, noise=3.0)  # one step: (1 - lr)^2 + lr^2 9 / (2 B)
    assert noisy.expected_loss([0.2], batch_tokens=4) == pytest.approx(0.64 + 0.04 * 9 / 8)
    assert noisy.best_lr(batch_tokens=4, tokens=4) == pytest.approx(1 / (1 + 9 / 8), rel=1e-6)


def test_the_best_lr_is_a_power_law_over_the_usual_design_and_beyond() -> None:
    quadratic = Quadratic()
    cells = [(b, t) for b in BATCHES for t in HORIZONS]
    design = np.array([[1.0, math.log(b), math.log(t)] for b, t in cells])
    log_lr = np.array([log_best(quadratic, b, t) for b, t in cells])
    law = np.linalg.lstsq(design, log_lr)[0]
    assert law[1:] == pytest.approx([0.995, -0.509], abs=0.002)
    assert np.abs(design @ law - log_lr).max() < 0.004
    for batch, tokens in ((8, 16384), (8, 32768), (16, 32768)):
        assert log_best(quadratic, batch, tokens) == pytest.approx(
            law @ [1.0, math.log(batch), math.log(tokens)], abs=0.005
        )


def test_a_cooldown_asks_for_a_higher_peak() -> None:
    steps = 256
    factors = [1.0] * 200 + [1 - k / 56 for k in range(56)]
    constant = Quadratic().best_lr(batch_tokens=8, tokens=8 * steps)
    assert Quadratic().best_lr(batch_tokens=8, tokens=8 * steps, factors=[1.0] * steps) == pytest.approx(
        constant, rel=1e-6
    )
    assert Quadratic().best_lr(batch_tokens=8, tokens=8 * steps, factors=factors) > 1.1 * constant


def test_a_best_lr_outside_the_bracket_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^best_lr: the expected loss has no minimum"):
        Quadratic(dimensions=1, decades=0.0, noise=1e5).best_lr(batch_tokens=1, tokens=4)


def test_the_mean_over_seeds_is_the_expected_loss() -> None:
    lrs, marks, seeds = (0.01, 0.03, 0.09), (512, 2048), range(40)
    losses = Quadratic().simulate(lrs, seeds, batch_tokens=8, marks=marks)
    error = losses.std(0, ddof=1) / math.sqrt(len(seeds))
    exact = [[Quadratic().expected_loss_constant(lr, batch_tokens=8, tokens=t) for t in marks] for lr in lrs]
    # six z-scores of fixed seeds: 3.5 sd is passed by one in 350 draws of all six
    assert (np.abs(losses.mean(0) - exact) < 3.5 * error).all()


def test_the_vectorised_twin_gives_the_curves_of_real_runs() -> None:
    quadratic, marks, lrs, seeds = Quadratic(), (256, 1024), (0.02, 0.05), (0, 7)
    factors = [1.0] * 64 + [0.5] * 64
    losses = quadratic.simulate(lrs, seeds, batch_tokens=8, marks=marks, factors=factors)
    for i, seed in enumerate(seeds):
        for j, lr in enumerate(lrs):
            run = Run(RunSpec(quadratic, SGD(), lambda t, lr=lr: lr * factors[t // 8], lr, 8, marks[-1], marks, seed))
            while run.status == "running":
                run.advance()
            assert [p.metrics["validation/loss"] for p in run.points] == pytest.approx(losses[i, j], rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value"), [("dimensions", 0), ("decades", -1.0), ("noise", math.nan), ("noise", -1.0)]
)
def test_a_bowl_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Quadratic(**{field: value})


@pytest.mark.parametrize("field", ["inputs", "classes", "eval_examples"])
def test_a_teacher_out_of_range_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        Teacher(**{field: 0})


def test_the_teachers_inputs_have_unit_size_and_its_labels_are_its_own() -> None:
    batch = next(Teacher().build_input_queue("train", 512, 0))
    assert batch["inputs"].square().mean(1).sqrt().tolist() == pytest.approx([1.0] * 512, rel=1e-5)
    assert 0 <= batch["targets"].min() < batch["targets"].max() < 64


def test_the_student_starts_at_the_loss_of_a_guess() -> None:
    run = Run(RunSpec(Teacher(), SGD(), lambda _: 1.0, 1.0, 64, 64, (64,), 0))
    run.start()
    assert run.initial_loss == pytest.approx(math.log(64), rel=1e-5)


@pytest.mark.slow
def test_sgd_on_the_teacher_obeys_the_linear_rule() -> None:
    """A corner of the recipe: two batches, two horizons, seven LRs, one seed; the full sweep pins two decimals."""
    steps, lrs, batches = (250, 500), np.logspace(-0.5, 2.5, 13), (16, 64)
    best = {}
    for batch in batches:
        loss = np.full((len(lrs), len(steps)), np.inf)
        for i, lr in enumerate(lrs):
            marks = tuple(step * batch for step in steps)
            run = Run(RunSpec(Teacher(), SGD(), lambda _, lr=lr: lr, lr, batch, marks[-1], marks, 0))
            while run.status == "running":
                run.advance()
            loss[i, : len(run.points)] = [p.metrics["validation/loss"] for p in run.points]
        for j, step in enumerate(steps):
            k = int(loss[:, j].argmin())
            curve = np.polyfit(np.log(lrs[k - 1 : k + 2]), np.log(loss[k - 1 : k + 2, j]), 2)
            best[batch, step] = -curve[1] / (2 * curve[0])
    # at equal tokens, 250 steps of 64 and 1000 of 16 would compare; at equal steps D grows with B: slope p + q
    slopes = [(best[64, step] - best[16, step]) / math.log(4) for step in steps]
    assert slopes == pytest.approx([0.92, 0.92], abs=0.15)  # 0.968 - 0.047, the published exponents
