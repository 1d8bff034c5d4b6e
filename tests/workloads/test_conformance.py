"""Every workload keeps the promises of the protocol; a new one needs a line in SMALL."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load, save

from workloads import WORKLOADS
from workloads.base import ForwardPassMode, Workload, generator
from workloads.gpt import Gpt
from workloads.image import Image
from workloads.optim import SGD, AdamW
from workloads.quadratic import Quadratic
from workloads.run import Run, RunSpec
from workloads.teacher import Teacher

SMALL: dict[str, list[tuple[Workload, int, float]]] = {  # variants: workload, batch in tokens, a sane LR for AdamW
    "gpt": [(Gpt(width=16, depth=1, heads=1, context=16, validation_tokens=1024), 64, 0.01)],
    "image": [
        (Image(width=4, validation_examples=100), 8, 0.01),
        (Image(width=4, norm="batch", augmentation="shift+flip", validation_examples=100), 8, 0.01),
        (Image(model="vit", width=8, heads=2, patch=14, validation_examples=100), 8, 0.01),
    ],
    "quadratic": [(Quadratic(dimensions=16, noise=1.0), 8, 0.02)],
    "teacher": [(Teacher(inputs=8, classes=4, eval_examples=256), 8, 0.02)],
}
CASES = [pytest.param(*case, id=f"{name}-{index}") for name, cases in SMALL.items() for index, case in enumerate(cases)]
OPTIMIZER = AdamW(weight_decay=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec(workload: Workload, batch: int, lr: float, *, steps: int = 12, seed: int = 0, **more: object) -> RunSpec:
    tokens = batch * steps
    fields = {"marks": (tokens // 2, tokens)} | more
    return RunSpec(workload, OPTIMIZER, lambda _: lr, lr, batch, tokens, seed=seed, **fields)


def finish(run: Run) -> Run:
    while run.status == "running":
        run.advance()
    return run


def curve(run: Run) -> list[object]:
    timing = ("tokens_per_second",)
    return [(p.tokens, p.step, {k: v for k, v in p.metrics.items() if k not in timing}) for p in run.points]


def test_every_workload_has_a_small_variant() -> None:
    assert set(SMALL) == set(WORKLOADS) - {"script"}  # whose training loop is not ours


@pytest.mark.parametrize("name", SMALL)
def test_a_workload_with_its_defaults_fulfils_the_protocol(name: str) -> None:
    workload = WORKLOADS[name]()
    assert isinstance(workload, Workload)
    assert dataclasses.replace(workload) == workload


@pytest.mark.parametrize(("workload", "batch", "lr"), CASES)
class TestWorkload:
    def test_the_facts_count_the_parameters(self, workload: Workload, batch: int, lr: float) -> None:
        model, _ = workload.init_model_fn(generator("init", 0))
        assert workload.facts().parameters == sum(p.numel() for p in model.parameters())
        assert workload.facts().non_embedding_parameters <= workload.facts().parameters

    def test_the_same_seed_gives_the_same_curve_and_another_seed_another(
        self, workload: Workload, batch: int, lr: float
    ) -> None:
        first, again, other = (finish(Run(spec(workload, batch, lr, seed=s))) for s in (3, 3, 4))
        assert curve(first) == curve(again)
        assert curve(first) != curve(other)

    @pytest.mark.parametrize("stops", [(3,), (6,), (1, 7, 11)])
    def test_resuming_is_the_same_as_never_stopping_to_the_bit(
        self, workload: Workload, batch: int, lr: float, stops: tuple[int, ...]
    ) -> None:
        whole = finish(Run(spec(workload, batch, lr)))
        run = Run(spec(workload, batch, lr))
        for stop in stops:
            while run.step < stop:
                run.advance(deadline=stop, clock=lambda run=run: float(run.step))
            tensors, meta = run.state()
            run = Run(spec(workload, batch, lr))
            run.load(load(save(tensors)), meta)
        finish(run)
        assert curve(run) == curve(whole)
        mine, theirs = run.state()[0], whole.state()[0]
        assert list(mine) == list(theirs)
        assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []

    def test_the_loss_falls_at_a_sane_rate(self, workload: Workload, batch: int, lr: float) -> None:
        run = finish(Run(spec(workload, batch, lr, steps=60)))
        assert run.status == "finished"
        assert run.initial_loss is not None
        assert run.points[-1].metrics["validation/loss"] < 0.97 * run.initial_loss

    def test_an_absurd_rate_diverges_with_a_finite_curve(self, workload: Workload, batch: int, lr: float) -> None:
        run = finish(Run(dataclasses.replace(spec(workload, batch, 1e8, steps=40), optimizer=SGD())))
        assert run.status == "diverged"
        assert run.reason
        assert run.advance() is None

    def test_the_order_of_the_data_does_not_depend_on_the_batch(
        self, workload: Workload, batch: int, lr: float
    ) -> None:
        fine, coarse = (workload.build_input_queue("train", size, 5) for size in (4, 12))
        many = [next(fine) for _ in range(3)]
        for name, value in next(coarse).items():
            assert torch.equal(torch.cat([part[name] for part in many]), value)

    def test_the_ranks_share_each_batch_without_overlap(self, workload: Workload, batch: int, lr: float) -> None:
        whole = workload.build_input_queue("train", 12, 5)
        ranks = [workload.build_input_queue("train", 12, 5, rank, 3) for rank in range(3)]
        for _ in range(2):
            shares = [next(rank) for rank in ranks]
            for name, value in next(whole).items():
                assert torch.equal(torch.cat([share[name] for share in shares]), value)

    def test_a_queue_goes_on_from_its_position(self, workload: Workload, batch: int, lr: float) -> None:
        queue, again = (workload.build_input_queue("train", 6, 5) for _ in range(2))
        next(queue)
        again.load_state_dict(queue.state_dict())
        assert torch.equal(next(queue)["inputs"], next(again)["inputs"])

    def test_micro_batches_add_up_to_the_batch(self, workload: Workload, batch: int, lr: float) -> None:
        if getattr(workload, "norm", None) == "batch":
            pytest.skip("batch normalisation sees the micro-batch by definition")
        whole, parts = (
            finish(Run(spec(workload, batch, lr, micro_batch_tokens=micro))) for micro in (None, batch // 4)
        )
        for mine, theirs in zip(parts.points, whole.points, strict=True):
            for name in ("validation/loss", "train/loss"):
                assert mine.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-3), name

    def test_evaluation_repeats_and_changes_nothing(self, workload: Workload, batch: int, lr: float) -> None:
        model, _ = workload.init_model_fn(generator("init", 0))
        before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        first, second = (workload.eval_model(model, torch.device("cpu")) for _ in range(2))
        assert first == second
        assert f"validation/{workload.target_metric_name}" in first
        assert torch.equal(rng, torch.get_rng_state())
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_a_mask_of_ones_changes_no_loss(self, workload: Workload, batch: int, lr: float) -> None:
        model, _ = workload.init_model_fn(generator("init", 0))
        data = next(workload.build_input_queue("train", 4, 0))
        logits, _ = workload.model_fn(model, data, None, ForwardPassMode.TRAIN, generator("x"), update_batch_norm=True)
        plain = workload.loss_fn(data["targets"], logits)
        ones = torch.ones_like(plain["per_example"])
        masked = workload.loss_fn(data["targets"], logits, ones)
        for name, value in plain.items():
            torch.testing.assert_close(masked[name].float(), value.float())
