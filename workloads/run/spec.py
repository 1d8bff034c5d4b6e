"""What one run is: the record, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from workloads.base import Workload
from workloads.optim import Optimizer

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What one run is.

    Attributes:
        workload, optimizer: what is trained, and how.
        lr_at: tokens consumed before a step -> LR of that step.
        peak_lr: the LR of the trial, > 0.
        batch_tokens: tokens of the global batch: micro-batch x accumulation x world.
        tokens: the horizon, whole batches.
        marks: absolute token counts of the reports, whole batches, ascending, the last one `tokens`.
        seed: of initialisation, data order and dropout.
        precision: "float32", or "bfloat16" for autocast.
        asides: those of the marks that only look: their point is made, and no other one depends on it.
        trunk: whether the run only carries its branches: it judges nothing at its marks, and need not end at one.
        absurd_factor: a loss above this multiple of the validation loss before the first step is divergence.
        micro_batch_tokens: tokens of one forward and backward pass on one rank; None: the rank's whole share.
        rank, world: this process's slice of each batch; a world above 1 needs an initialised process group.
        device: where to train. On CUDA float32 matrices are multiplied in TF32.
        compile: run forward and loss through torch.compile.
        cuda_graph: replay each whole step as one CUDA graph.
    """

    workload: Workload
    optimizer: Optimizer
    lr_at: Callable[[int], float]
    peak_lr: float
    batch_tokens: int
    tokens: int
    marks: tuple[int, ...]
    seed: int
    precision: str = "float32"
    asides: frozenset[int] = frozenset()
    trunk: bool = False
    absurd_factor: float = 3.0
    micro_batch_tokens: int | None = None
    rank: int = 0
    world: int = 1
    device: str = "cpu"
    compile: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.peak_lr < math.inf:
            raise ValueError(f"peak_lr: must be above 0, got {self.peak_lr}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not self.absurd_factor > 1:
            raise ValueError(f"absurd_factor: must be above 1, got {self.absurd_factor}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank: must be in [0, world={self.world}), got {self.rank}")
        if self.cuda_graph and (self.world > 1 or not self.device.startswith("cuda")):
            raise ValueError(f"cuda_graph: needs a CUDA device and a world of 1, got {self.device}, {self.world}")
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens: must be at least 1, got {self.batch_tokens}")
        ends = self.marks and self.marks[-1] == self.tokens
        if not (ends or self.trunk) or list(self.marks) != sorted(set(self.marks)):
            raise ValueError(f"marks: must ascend and end at tokens={self.tokens}, got {self.marks}")
        if any(mark < 1 or mark % self.batch_tokens for mark in self.marks):
            raise ValueError(f"marks: must be whole batches of {self.batch_tokens} tokens, got {self.marks}")
        if not self.asides <= set(self.marks):
            raise ValueError(f"asides: must be among marks={self.marks}, got {sorted(self.asides)}")
