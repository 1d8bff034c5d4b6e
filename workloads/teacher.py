"""The teacher-student softmax toy: a known answer for the whole chain.

A fixed linear teacher labels normal inputs, a linear softmax student learns them online from zero. SGD's best LR grows
linearly with the batch and hardly moves with the horizon; Adam's grows more slowly and falls with it (measured: about
D^-0.05 B^0.97 and D^-0.26 B^0.57 at 64 classes under a constant schedule).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from workloads.base import Batch, Facts, ForwardPassMode, generator
from workloads.data.blocks import BlockQueue

# N examples, M inputs, C classes

BLOCK = 2048  # training examples drawn at once; measured: twice as fast as 8192, which leaves the cache


class Student(nn.Module):
    """A linear classifier without bias, from zero."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, inputs))

    def forward(self, x_NM: Tensor) -> Tensor:
        return linear(x_NM, self.weight)


@dataclass(frozen=True, slots=True)
class Teacher:
    """Learn a random linear teacher's labels from normal inputs, each seen once.

    The teacher and the evaluation points come from one generator, seeded by the task, as in the recipe of the known
    answer; the run's seed orders the training data only (the student starts at zero).

    Attributes:
        inputs: M >= 1.
        classes: C >= 2.
        eval_examples: held-out points, >= 1.
        task_seed: of teacher and held-out points.
    """

    inputs: int = 32
    classes: int = 64
    eval_examples: int = 8192
    task_seed: int = 0

    version: ClassVar[int] = 1
    target_metric_name: ClassVar[str] = "loss"
    metric_mode: ClassVar[str] = "min"

    def __post_init__(self) -> None:
        for name, least in (("inputs", 1), ("classes", 2), ("eval_examples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")

    @property
    def validation_target_value(self) -> float | None:
        return None

    def facts(self) -> Facts:
        words = f"teacher {self.inputs} {self.classes} {self.eval_examples} {self.task_seed}"
        weights = self.inputs * self.classes
        return Facts(
            parameters=weights,
            non_embedding_parameters=weights,
            flops_per_token=6.0 * weights,
            tokens_per_example=1,
            unit="sample",
            train_tokens=None,
            data_fingerprint=hashlib.sha256(words.encode()).hexdigest(),
        )

    def init_model_fn(self, rng: torch.Generator) -> tuple[nn.Module, None]:
        del rng  # the student starts at zero
        return Student(self.inputs, self.classes), None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: None,
        mode: ForwardPassMode,
        rng: torch.Generator | None,
        update_batch_norm: bool,
    ) -> tuple[Tensor, None]:
        del model_state, mode, rng, update_batch_norm
        logits: Tensor = params(augmented_and_preprocessed_input_batch["inputs"])
        return logits, None

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        losses = cross_entropy(logits_batch.float(), label_batch, reduction="none", label_smoothing=label_smoothing)
        if mask_batch is None:
            return {"summed": losses.sum(), "n_valid_examples": torch.tensor(len(losses)), "per_example": losses}
        masked = losses * mask_batch
        return {"summed": masked.sum(), "n_valid_examples": mask_batch.sum(), "per_example": masked}

    def build_input_queue(
        self, split: str, global_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BlockQueue:
        def draw(block: int) -> Batch:
            return self.draw(BLOCK, generator("teacher", split, self.task_seed, seed, block))

        return BlockQueue(draw, block=BLOCK, batch=global_batch_size, rank=rank, world=world_size)

    def eval_model(self, params: nn.Module, device: torch.device) -> dict[str, float]:
        task = _task(self.inputs, self.classes, self.eval_examples, self.task_seed)
        with torch.no_grad():
            loss = cross_entropy(params(task.inputs.to(device)).float(), task.labels.to(device))
        return {"validation/loss": loss.item()}

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        del eval_result
        return False

    def draw(self, count: int, rng: torch.Generator) -> Batch:
        """Return `count` labelled examples."""
        x_NM = _inputs(count, self.inputs, rng)
        teacher_CM = _task(self.inputs, self.classes, self.eval_examples, self.task_seed).weight
        return {"inputs": x_NM, "targets": _labels(x_NM, teacher_CM)}


@dataclass(frozen=True, slots=True)
class _Task:
    """A teacher [C, M] of unit Frobenius norm and its held-out points: inputs [N, M], labels [N]."""

    weight: Tensor
    inputs: Tensor
    labels: Tensor


def _inputs(count: int, width: int, rng: torch.Generator) -> Tensor:
    """Return normal inputs scaled to a root mean square of one, [N, M]."""
    x_NM = torch.randn(count, width, generator=rng)
    return x_NM / x_NM.square().mean(1, keepdim=True).sqrt()


def _labels(x_NM: Tensor, weight_CM: Tensor) -> Tensor:
    """Return the teacher's classes, [N]; numpy's argmax takes half the time of torch's."""
    return torch.from_numpy((x_NM @ weight_CM.T).numpy().argmax(1))


@functools.lru_cache(maxsize=8)
def _task(inputs: int, classes: int, eval_examples: int, task_seed: int) -> _Task:
    """Return the task: the teacher first, then the held-out points, from one generator."""
    rng = torch.Generator().manual_seed(task_seed)
    weight_CM = torch.randn(classes, inputs, generator=rng)
    weight_CM /= weight_CM.norm()
    x_NM = _inputs(eval_examples, inputs, rng)
    return _Task(weight_CM, x_NM, _labels(x_NM, weight_CM))
