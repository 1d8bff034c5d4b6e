from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from workloads.base import ForwardPassMode, Workload, generator
from workloads.gpt import Gpt
from workloads.gpt.transformer import ACTIVATIONS

TINY = Gpt(width=16, depth=2, heads=2, context=16, validation_tokens=1024)
VARIANTS = [
    TINY,
    *(dataclasses.replace(TINY, activation=name) for name in ACTIVATIONS),
    dataclasses.replace(TINY, norm_position="post"),
    dataclasses.replace(TINY, qk_norm=False),
    dataclasses.replace(TINY, tied_embeddings=True),
    dataclasses.replace(TINY, residual_init="zero"),
    dataclasses.replace(TINY, mlp_ratio=2.5, z_loss=1e-4),
]


def model_of(gpt: Gpt, seed: int = 0) -> nn.Module:
    return gpt.init_model_fn(generator("test", seed))[0]


def tokens(examples: int, gpt: Gpt = TINY, seed: int = 0) -> Tensor:
    rng = generator("tokens", seed)
    return torch.randint(0, gpt.data.load().vocabulary, (examples, gpt.context), generator=rng)


def logits_of(gpt: Gpt, model: nn.Module, inputs: Tensor) -> Tensor:
    return gpt.model_fn(model, {"inputs": inputs}, None, ForwardPassMode.TRAIN, None, True)[0]


@pytest.mark.parametrize("gpt", VARIANTS, ids=str)
class TestEveryVariant:
    def test_its_facts_count_its_parameters(self, gpt: Gpt) -> None:
        named = dict(model_of(gpt).named_parameters())
        embeddings = sum(p.numel() for name, p in named.items() if name in ("embedding", "head"))
        total = sum(p.numel() for p in named.values())
        assert gpt.facts().parameters == total
        assert gpt.facts().non_embedding_parameters == total - embeddings

    def test_it_learns(self, gpt: Gpt) -> None:
        model, inputs = model_of(gpt), tokens(4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        losses = []
        for _ in range(30):
            loss = gpt.loss_fn(inputs, logits_of(gpt, model, inputs))["summed"] / inputs.numel()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]

    def test_no_token_sees_the_ones_after_it(self, gpt: Gpt) -> None:
        model, inputs = model_of(gpt), tokens(1)
        for parameter in model.parameters():  # a residual branch that starts at zero would hide a leak
            nn.init.normal_(parameter, std=0.3, generator=generator("any"))
        changed = inputs.clone()
        changed[:, 9:] = tokens(1, seed=1)[:, 9:]
        assert torch.allclose(logits_of(gpt, model, inputs)[:, :9], logits_of(gpt, model, changed)[:, :9], atol=1e-5)

    def test_its_state_is_its_parameters(self, gpt: Gpt) -> None:
        model = model_of(gpt)
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}

    def test_it_is_a_workload(self, gpt: Gpt) -> None:
        assert isinstance(gpt, Workload)


def test_flops_are_six_a_multiplied_number_and_twelve_a_layer_width_and_context() -> None:
    facts, vocabulary = TINY.facts(), TINY.data.load().vocabulary
    multiplied = facts.non_embedding_parameters + vocabulary * 16
    assert facts.flops_per_token == 6 * multiplied + 12 * 2 * 16 * 16


def test_position_matters_and_only_by_difference() -> None:
    gpt = dataclasses.replace(TINY, depth=1)
    model = model_of(gpt)
    block, cos, sin = model.blocks[0], model.get_buffer("cos"), model.get_buffer("sin")
    x = torch.randn(1, 8, 16, generator=generator("x"))
    here, later = block(x, cos[:8], sin[:8]), block(x, cos[5:13], sin[5:13])
    assert torch.allclose(here, later, atol=1e-5)
    assert not torch.allclose(here[:, 2:], block(x.flip(1), cos[:8], sin[:8]).flip(1)[:, 2:], atol=1e-3)


def test_the_loss_is_cross_entropy_and_masks_leave_tokens_out() -> None:
    targets, logits = tokens(3), torch.randn(3, 16, TINY.data.load().vocabulary, generator=generator("logits"))
    loss = TINY.loss_fn(targets, logits)
    assert loss["per_example"].shape == targets.shape
    assert loss["n_valid_examples"].item() == targets.numel()
    assert torch.allclose(loss["summed"], functional.cross_entropy(logits.mT, targets, reduction="sum"))
    mask = torch.ones(3, 16)
    mask[1:] = 0
    masked = TINY.loss_fn(targets, logits, mask)
    assert masked["n_valid_examples"].item() == 16
    assert torch.allclose(masked["summed"], loss["per_example"][0].sum())


def test_z_loss_adds_the_squared_log_partition_to_training_alone() -> None:
    targets, logits = tokens(2), torch.randn(2, 16, TINY.data.load().vocabulary, generator=generator("logits"))
    with_z = dataclasses.replace(TINY, z_loss=0.5)
    extra = with_z.loss_fn(targets, logits)["per_example"] - TINY.loss_fn(targets, logits)["per_example"]
    assert torch.allclose(extra, 0.5 * logits.logsumexp(-1).square(), atol=1e-4)
    model, cpu = model_of(TINY), torch.device("cpu")
    assert with_z.eval_model(model, cpu) == TINY.eval_model(model, cpu)


def test_evaluation_is_the_mean_over_the_held_out_set_and_repeats_to_the_bit() -> None:
    model, cpu = model_of(TINY), torch.device("cpu")
    windows = torch.from_numpy(TINY.data.load().validation_windows(16, 1024))
    losses = [functional.cross_entropy(model(w[None, :-1])[0], w[1:], reduction="mean").item() for w in windows]
    found = TINY.eval_model(model, cpu)
    assert found["validation/loss"] == pytest.approx(sum(losses) / 64, rel=1e-6)
    assert found == TINY.eval_model(model, cpu)
    assert not TINY.has_reached_validation_target(found)
    assert dataclasses.replace(TINY, validation_target_value=99.0).has_reached_validation_target(found)


def test_a_model_that_starts_knows_nothing() -> None:
    gpt = dataclasses.replace(TINY, init_scale=0.01)
    loss = gpt.eval_model(model_of(gpt), torch.device("cpu"))["validation/loss"]
    assert loss == pytest.approx(math.log(gpt.data.load().vocabulary), abs=0.01)


def test_bfloat16_autocast_stays_near_float32() -> None:
    gpt = dataclasses.replace(TINY, z_loss=1e-4)
    model, inputs = model_of(gpt), tokens(2)
    exact = gpt.loss_fn(inputs, logits_of(gpt, model, inputs))["summed"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = gpt.loss_fn(inputs, logits_of(gpt, model, inputs))["summed"]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 18),
        ("width", 0),
        ("depth", 0),
        ("heads", 0),
        ("context", 0),
        ("activation", "glu"),
        ("norm_position", "both"),
        ("residual_init", "small"),
        ("z_loss", -1.0),
        ("z_loss", math.nan),
        ("init_scale", 0.0),
        ("rope_base", math.inf),
        ("mlp_ratio", math.nan),
        ("validation_tokens", 8),
        ("validation_target_value", 0.0),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}: must .*got"):
        dataclasses.replace(TINY, **{field: value})


def test_only_the_training_split_is_a_stream() -> None:
    with pytest.raises(ValueError, match=r"^split: must be train"):
        TINY.build_input_queue("validation", 4, 0)


@pytest.mark.slow
def test_the_step_is_one_graph_without_breaks() -> None:
    gpt = dataclasses.replace(TINY, z_loss=1e-4)
    model, inputs = model_of(gpt), tokens(4)

    def loss_of(inputs: Tensor) -> Tensor:
        losses = gpt.loss_fn(inputs, logits_of(gpt, model, inputs))
        return losses["summed"] / losses["n_valid_examples"]

    compiled = torch.compile(loss_of, fullgraph=True, backend="eager")  # breaks are found by tracing alone
    assert compiled(inputs).item() == pytest.approx(loss_of(inputs).item(), rel=1e-6)


def test_models_can_be_stacked_and_run_as_one() -> None:
    models, inputs = [model_of(TINY, seed) for seed in range(3)], tokens(2)
    stacked, _ = torch.func.stack_module_state(models)

    def logits(state: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(models[0], state, (inputs,))

    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no batching rule on a CPU
        together = torch.func.vmap(logits)(stacked)
    for model, found in zip(models, together, strict=True):
        assert torch.allclose(model(inputs), found, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_whole_training_step_can_be_captured_in_a_cuda_graph() -> None:
    gpt = dataclasses.replace(TINY, z_loss=1e-4)
    model, inputs = model_of(gpt).cuda(), tokens(4).cuda()

    def step() -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            losses = gpt.loss_fn(inputs, logits_of(gpt, model, inputs))
        loss = losses["summed"] / losses["n_valid_examples"]
        torch.autograd.backward(loss)
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert captured.item() == pytest.approx(eager.item(), rel=1e-3)
