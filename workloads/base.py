"""The protocol of a workload, in AlgoPerf's words, and the records a run speaks in.

Source of the names: AlgoPerf, Dahl et al. 2023, arXiv:2306.07179, `algoperf/spec.py`. Two differences: data paths
come from the workload's own fields, and the input queue is public and resumable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]  # "inputs", "targets", optionally "weights"; first dimension: examples


class DataError(Exception):
    """A corpus that is missing, unreadable or empty. The message opens with the field at fault."""


class ForwardPassMode(StrEnum):
    """Whether a forward pass is for training or evaluation."""

    TRAIN = "train"
    EVAL = "eval"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a planner must know of a workload, without training it.

    Attributes:
        parameters: trainable numbers in the model.
        non_embedding_parameters: the same less embeddings and output head: the N of a law.
        flops_per_token: training FLOPs for one token (forward and backward).
        tokens_per_example: tokens one example holds (the context of a language model, else 1).
        unit: what one token is, for display: "byte", "token", "image", "sample".
        train_tokens: tokens of one pass over the training data, or None if it never repeats.
        data_fingerprint: hash of the training and validation data, part of a trial's identity.
    """

    parameters: int
    non_embedding_parameters: int
    flops_per_token: float
    tokens_per_example: int
    unit: str
    train_tokens: int | None
    data_fingerprint: str


class InputQueue(Protocol):
    """An endless, seeded stream of batches; order is a function of (seed, position) alone.

    `position` counts global examples already drawn: the same whatever the batch size, so runs at different
    batch sizes see the same examples in the same order. A rank reads its slice of each global batch.
    """

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


@runtime_checkable
class Workload(Protocol):
    """A training task: a frozen dataclass whose fields are its configuration.

    Its constructor only stores and checks (ValueError whose message opens with `field: `). `version` goes up when a
    change to the code changes curves. `TABLES` names the fields that are themselves a choice from a table.
    """

    version: ClassVar[int]
    target_metric_name: ClassVar[str]  # "loss" or "accuracy"; logged as validation/<name>
    metric_mode: ClassVar[str]  # "min" or "max"

    @property
    def validation_target_value(self) -> float | None: ...

    def facts(self) -> Facts:
        """Return the facts; reads data as needed. Raises DataError."""

    def init_model_fn(self, rng: torch.Generator) -> tuple[nn.Module, None]:
        """Return a freshly initialised model (and AlgoPerf's model_state, None: torch keeps buffers inside)."""

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: None,
        mode: ForwardPassMode,
        rng: torch.Generator | None,
        update_batch_norm: bool,
    ) -> tuple[Tensor, None]:
        """Return the logits of a batch."""

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return {"summed", "n_valid_examples", "per_example"}; training minimises summed / n_valid_examples."""

    def build_input_queue(
        self, split: str, global_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> InputQueue:
        """Return the stream of a split ("train"), `global_batch_size` in examples."""

    def eval_model(self, params: nn.Module, device: torch.device) -> dict[str, float]:
        """Return {"validation/loss": ..., ...} on the fixed held-out set; touches no RNG of the run."""

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool: ...


@dataclass(frozen=True, slots=True)
class Point:
    """One report of a run.

    Attributes:
        tokens: tokens consumed so far.
        step: optimizer steps so far.
        timestamp: seconds since the epoch, for display only.
        metrics: "validation/loss", "train/loss" (mean since the last report), "lr" (of the last step),
            "grad_norm" (unclipped, last step), "tokens_per_second" (since the last report), and any other
            "validation/<name>" of the workload.
    """

    tokens: int
    step: int
    timestamp: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def stable_seed(*words: object) -> int:
    """Return a 63-bit seed that depends on the words alone: the same in every process and version."""
    text = "\x1f".join(str(word) for word in words)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*words: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator seeded by the words alone."""
    rng = torch.Generator(device=device)
    rng.manual_seed(stable_seed(*words))
    return rng


JsonDict = dict[str, Any]
