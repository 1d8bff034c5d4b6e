"""The language model: a decoder-only transformer on real text, of any width, depth, heads and context.

# B examples, T tokens of context, W width, H heads, D width of a head, F hidden width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.base import Batch, Facts, ForwardPassMode
from workloads.data.stream import TokenQueue
from workloads.data.text import TEXTS, Sotu, Text
from workloads.gpt.transformer import ACTIVATIONS, GATED, Transformer

EVAL_TOKENS = 4096  # of one forward pass of validation: fixed, so that its bits do not depend on the training batch
LARGEST = {  # what a model is built of and evaluated on; choices
    "width": 1 << 16,
    "depth": 1000,
    "heads": 1 << 16,
    "context": 1 << 24,
    "validation_tokens": 10**12,
}
NORM_POSITIONS = ("pre", "post")
RESIDUAL_INITS = ("scaled", "zero")


@dataclass(frozen=True, slots=True)
class Gpt:
    """A decoder-only transformer: RMSNorm without gains, rotary positions, no biases.

    Attributes:
        width: of the residual stream; a multiple of heads, an even number for each head.
        depth: blocks.
        heads: of attention.
        context: tokens of one example.
        data: the corpus.
        activation: of the feed-forward part; "swiglu" and "geglu" are gated.
        mlp_ratio: hidden width of the feed-forward part over width.
        norm_position: "pre" (before each part, and at the end) or "post" (after each part and its residual).
        qk_norm: whether queries and keys are normalised (Henry et al. 2020, arXiv:2010.04245).
        tied_embeddings: whether input and output embeddings are one table.
        init_scale: multiplies every initial standard deviation; at 1.0 it is 1/sqrt(fan-in).
        residual_init: of the two matrices of a block that write to the residual stream: "scaled" (divided by
            sqrt(2 depth), as in GPT-2) or "zero".
        rope_base: of the rotary frequencies (Su et al. 2021, arXiv:2104.09864, section 3.2.2).
        z_loss: weight of the squared log-partition in the training loss (Chowdhery et al. 2022, arXiv:2204.02311,
            section 5); validation never has it.
        validation_tokens: size of the fixed held-out set, rounded down to whole contexts.
        validation_target_value: the loss that counts as reached, in nats a token, or None.
    """

    version: ClassVar[int] = 1
    target_metric_name: ClassVar[str] = "loss"
    metric_mode: ClassVar[str] = "min"
    TABLES: ClassVar[Mapping[str, Mapping[str, type]]] = {"data": TEXTS}
    OUTSIDE: ClassVar[tuple[str, ...]] = ("validation_target_value",)  # not part of a trial's identity
    INITIAL: ClassVar[tuple[str, ...]] = ("init_scale", "residual_init")  # what only a fresh model depends on

    width: int = 64
    depth: int = 2
    heads: int = 2
    context: int = 64
    data: Text = field(default_factory=Sotu)
    activation: str = "gelu"
    mlp_ratio: float = 4.0
    norm_position: str = "pre"
    qk_norm: bool = True
    tied_embeddings: bool = False
    init_scale: float = 1.0
    residual_init: str = "scaled"
    rope_base: float = 10_000.0
    z_loss: float = 0.0
    validation_tokens: int = 32_768
    validation_target_value: float | None = None

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: must be at least 1 and at most {most:,}, got {getattr(self, name)}")
        for name in ("mlp_ratio", "init_scale", "rope_base", "validation_target_value"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}: must be above 0 and finite, got {value}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width: must be a multiple of 2 x heads = {2 * self.heads}, got {self.width}")
        if not 0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss: must be 0 or above and finite, got {self.z_loss}")
        if self.validation_tokens < self.context:
            raise ValueError(
                f"validation_tokens: must be at least context = {self.context}, got {self.validation_tokens}"
            )
        for name, choices in (
            ("activation", ACTIVATIONS),
            ("norm_position", NORM_POSITIONS),
            ("residual_init", RESIDUAL_INITS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @property
    def hidden(self) -> int:
        """F, the hidden width of the feed-forward part."""
        return max(1, round(self.mlp_ratio * self.width))

    def facts(self) -> Facts:
        """Return the facts; reads the corpus. Raises DataError.

        FLOPs of a token are 6 for each number it is multiplied with (blocks and output head, not the look-up of its
        embedding) and 12 x depth x width x context for attention (Chowdhery et al. 2022, appendix B).
        """
        corpus = self.data.load()
        corpus.validation_windows(self.context, self.validation_tokens)
        up_projections = 2 if self.activation in GATED else 1
        blocks = self.depth * self.width * (4 * self.width + (up_projections + 1) * self.hidden)
        head = corpus.vocabulary * self.width
        return Facts(
            parameters=blocks + head * (1 if self.tied_embeddings else 2),
            non_embedding_parameters=blocks,
            flops_per_token=6.0 * (blocks + head) + 12.0 * self.depth * self.width * self.context,
            tokens_per_example=self.context,
            unit=corpus.unit,
            train_tokens=corpus.training_windows(self.context) * self.context,
            data_fingerprint=corpus.fingerprint,
        )

    def init_model_fn(self, rng: torch.Generator) -> tuple[nn.Module, None]:
        """Return a freshly initialised model on the generator's device, all of its state in parameters."""
        return Transformer(self, self.data.load().vocabulary, rng), None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: None,
        mode: ForwardPassMode,
        rng: torch.Generator | None,
        update_batch_norm: bool,
    ) -> tuple[Tensor, None]:
        """Return the logits of a batch, shape [B, T, V]."""
        del model_state, mode, rng, update_batch_norm  # no dropout and no batch norm: nothing to tell apart
        logits: Tensor = params(augmented_and_preprocessed_input_batch["inputs"])
        return logits, None

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the loss of each token, shape [B, T], their sum, and how many tokens counted."""
        logits = logits_batch.flatten(0, 1)
        per_token = functional.cross_entropy(
            logits, label_batch.flatten(), reduction="none", label_smoothing=label_smoothing
        )
        if self.z_loss:
            per_token = per_token + self.z_loss * logits.float().logsumexp(-1).square()
        per_token = per_token.view(label_batch.shape)
        if mask_batch is not None:
            per_token = per_token * mask_batch
            return {"summed": per_token.sum(), "n_valid_examples": mask_batch.sum(), "per_example": per_token}
        count = per_token.new_full((), per_token.numel())
        return {"summed": per_token.sum(), "n_valid_examples": count, "per_example": per_token}

    def build_input_queue(
        self, split: str, global_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> TokenQueue:
        """Return the stream of training batches; "train" is the only split that has one."""
        if split != "train":
            raise ValueError(f"split: must be train (eval_model reads the held-out set by itself), got {split!r}")
        return TokenQueue(
            self.data.load(), self.context, global_batch_size, seed=seed, rank=rank, world_size=world_size
        )

    def eval_model(self, params: nn.Module, device: torch.device) -> dict[str, float]:
        """Return {"validation/loss": mean cross-entropy in nats a token} on the fixed held-out set."""
        windows = _validation_set(self.data, self.context, self.validation_tokens, device)
        total = torch.zeros((), dtype=torch.float64, device=device)
        with torch.no_grad():
            for tokens in torch.split(windows, max(1, EVAL_TOKENS // self.context)):
                logits = params(tokens[:, :-1]).flatten(0, 1)
                loss = functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
                total += loss.sum(dtype=torch.float64)
        return {"validation/loss": total.item() / (len(windows) * self.context)}

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        """Return whether the validation loss is at or below the target."""
        target = self.validation_target_value
        return target is not None and eval_result["validation/loss"] <= target


@lru_cache(maxsize=8)
def _validation_set(data: Text, context: int, tokens: int, device: torch.device) -> Tensor:
    """Return the held-out windows on a device, int64 [windows, context + 1]."""
    return torch.from_numpy(data.load().validation_windows(context, tokens)).to(device)
