"""Every optimizer is torch's, resumes to the bit, and decays what it says it decays."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from workloads.gpt import Gpt
from workloads.optim import OPTIMIZERS, SGD, AdamW, Muon, NAdamW, Optimizer
from workloads.optim.groups import hidden_matrices
from workloads.quadratic import Quadratic
from workloads.run import Run, RunSpec

GPT = Gpt(width=16, depth=1, heads=1, context=16, validation_tokens=256)
VARIANTS: dict[str, list[Optimizer]] = {
    "adamw": [AdamW(), AdamW(decay="independent", clip_norm=None)],
    "nadamw": [NAdamW()],
    "sgd": [SGD(), SGD(momentum=0.9, nesterov=True, weight_decay=0.01, clip_norm=1.0)],
    "muon": [Muon(), Muon(adamw_lr_ratio=0.3, decay="independent")],
}
CASES = [pytest.param(case, id=f"{name}-{i}") for name, cases in VARIANTS.items() for i, case in enumerate(cases)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spec(optimizer: Optimizer) -> RunSpec:
    return RunSpec(GPT, optimizer, lambda tokens: 0.01 + tokens * 1e-6, 0.02, 64, 640, (192, 640), 0)


def finish(run: Run) -> Run:
    while run.status == "running":
        run.advance()
    return run


def test_every_optimizer_is_tested() -> None:
    assert set(VARIANTS) == set(OPTIMIZERS)


@pytest.mark.parametrize("optimizer", CASES)
def test_resuming_is_the_same_as_never_stopping_to_the_bit(optimizer: Optimizer) -> None:
    whole, run = finish(Run(spec(optimizer))), Run(spec(optimizer))
    for stop in (1, 5, 8):
        while run.step < stop:
            run.advance(deadline=stop, clock=lambda run=run: float(run.step))
        tensors, meta = run.state()
        run = Run(spec(optimizer))
        run.load(load(save(tensors)), meta)
    finish(run)
    mine, theirs = run.state()[0], whole.state()[0]
    assert list(mine) == list(theirs)
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


@pytest.mark.parametrize("optimizer", CASES)
def test_the_loss_falls(optimizer: Optimizer) -> None:
    longer = dataclasses.replace(spec(optimizer), tokens=64 * 40, marks=(64 * 40,))
    run = finish(Run(longer))
    assert run.initial_loss is not None
    assert run.points[-1].metrics["validation/loss"] < run.initial_loss


@pytest.mark.parametrize("optimizer", CASES)
def test_fused_kernels_agree_with_plain_ones(optimizer: Optimizer) -> None:
    models = [nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, fused in zip(models, (True, False), strict=True):
        stepper = optimizer.build(model, peak_lr=0.01, fused=fused)
        rng = torch.Generator().manual_seed(0)
        for _ in range(3):
            stepper.set_lr(0.01)
            model(torch.randn(4, 6, generator=rng)).square().sum().backward()
            stepper.step(want_norm=False)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [case for case in CASES if not isinstance(case.values[0], Muon)])
def test_an_lr_in_a_tensor_gives_the_same_step(optimizer: Optimizer) -> None:
    models = [nn.Linear(6, 8) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, capturable in zip(models, (True, False), strict=True):
        stepper = optimizer.build(model, peak_lr=0.02, capturable=capturable)
        for lr in (0.02, 0.01):
            stepper.set_lr(lr)
            model(torch.ones(1, 6)).square().sum().backward()
            stepper.step(want_norm=False)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def one_step(optimizer: Optimizer, *, lr: float, peak_lr: float) -> nn.Linear:
    """Return a layer of ones after a step with gradients of zero: only decay moves it."""
    layer = nn.Linear(3, 3)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    stepper = optimizer.build(layer, peak_lr=peak_lr)
    stepper.set_lr(lr)
    stepper.step(want_norm=False)
    return layer


@pytest.mark.parametrize("kind", [AdamW, NAdamW, Muon])
def test_coupled_decay_follows_the_lr_and_independent_decay_the_schedule(kind: type[AdamW]) -> None:
    coupled = one_step(kind(weight_decay=0.1), lr=0.02, peak_lr=0.04)
    assert coupled.weight[0, 0].item() == pytest.approx(1 - 0.02 * 0.1)
    independent = one_step(kind(weight_decay=0.1, decay="independent"), lr=0.02, peak_lr=0.04)
    assert independent.weight[0, 0].item() == pytest.approx(1 - 0.5 * 0.1)


@pytest.mark.parametrize("optimizer", [AdamW(), NAdamW(), SGD(weight_decay=0.1), Muon()])
def test_vectors_are_never_decayed(optimizer: Optimizer) -> None:
    layer = one_step(optimizer, lr=0.02, peak_lr=0.04)
    assert layer.bias.tolist() == [1.0, 1.0, 1.0]
    assert layer.weight[0, 0].item() < 1.0


def test_clipping_is_torchs() -> None:
    rng = torch.Generator().manual_seed(0)
    layers = [nn.Linear(5, 4) for _ in range(2)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    gradients = [torch.randn(p.shape, generator=rng) for p in layers[0].parameters()]
    for layer in layers:
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
    stepper = SGD(clip_norm=0.5).build(layers[0], peak_lr=1.0)
    stepper.set_lr(1.0)
    norm = stepper.step(want_norm=True)
    wanted = torch.nn.utils.clip_grad_norm_(layers[1].parameters(), 0.5)
    assert norm is not None
    torch.testing.assert_close(norm, wanted)
    for mine, theirs in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(mine.data, -theirs.grad)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model, _ = GPT.init_model_fn(torch.Generator().manual_seed(0))
    hidden = hidden_matrices(model)
    everything = {name for name, _ in model.named_parameters()}
    assert {name.rpartition(".")[2] for name in everything - hidden} == {"embedding", "head"}
    muon, adamw = Muon(adamw_lr_ratio=0.3).build(model, peak_lr=0.1).members
    assert set(muon.names) == hidden
    assert set(adamw.names) == everything - hidden
    assert adamw.lr_ratio == pytest.approx(0.3)


def test_muon_refuses_a_model_without_hidden_matrices() -> None:
    model, _ = Quadratic().init_model_fn(torch.Generator())
    with pytest.raises(ValueError, match=r"^muon: needs a model with a hidden matrix"):
        Muon().build(model, peak_lr=0.1)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (AdamW, "betas", (1.0, 0.9)),
        (AdamW, "betas", (0.9, -0.1)),
        (AdamW, "betas", (math.nan, 0.9)),
        (AdamW, "betas", (0.9,)),
        (AdamW, "eps", 0.0),
        (AdamW, "weight_decay", -0.1),
        (AdamW, "weight_decay", math.nan),
        (AdamW, "decay", "l2"),
        (AdamW, "clip_norm", 0.0),
        (NAdamW, "momentum_decay", -1.0),
        (SGD, "momentum", 1.0),
        (SGD, "momentum", math.nan),
        (SGD, "nesterov", True),
        (SGD, "weight_decay", math.inf),
        (Muon, "adamw_lr_ratio", 0.0),
        (Muon, "momentum", -0.5),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind: type[Optimizer], field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        kind(**{field: value})
