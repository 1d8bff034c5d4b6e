"""A noisy quadratic whose best LR is known on paper: the known answer for the whole chain.

Loss(theta) = 1/2 sum_i h_i theta_i^2, curvatures h_i spaced evenly in logs, every direction weighing h_i in the initial
loss (which is 1). An example adds a gradient of variance `noise`^2 sqrt(h_i) / sum(sqrt(h)) in direction i. Under plain
SGD the expected loss after any sequence of LRs follows an exact recursion, so the best LR is found to any digit; with
the defaults it is a power law of batch and tokens, near B^0.99 T^-0.51, to 0.3 % at batches 4..16 and 2,048..8,192
samples.

At equal LR / batch and equal seed, runs at different batches follow nearly one path (the linear scaling rule): a study
that takes its cells for independent must give each batch seeds of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from workloads.base import Batch, Facts, ForwardPassMode, generator
from workloads.data.blocks import BlockQueue

# N examples, D directions, S seeds, L learning rates, M marks
Floats = NDArray[np.float64]

BLOCK = 256  # training examples drawn at once
MAX_DIMENSIONS = 1_000_000  # a block is then 1 GB
BRACKET = (1e-6, 1.999)  # LRs among which the best is sought, in units of 1 / curvature; at 2 SGD is unstable
SEARCH_POINTS = 241  # of the first, coarse search of the bracket
SEEDS_AT_ONCE = 16  # of a simulation: as many as the cache holds


class Bowl(nn.Module):
    """The parameters; a forward pass gives each example's loss, [N]: noisy in its gradient, exact in its value."""

    curvature: Tensor

    def __init__(self, curvature_D: Tensor, start_D: Tensor) -> None:
        super().__init__()
        self.register_buffer("curvature", curvature_D)
        self.theta = nn.Parameter(start_D)

    def forward(self, noise_ND: Tensor) -> Tensor:
        return torch.addmv(self.loss(), noise_ND, self.theta - self.theta.detach())

    def loss(self) -> Tensor:
        """Return the exact loss, shape [1]."""
        return 0.5 * (self.curvature * self.theta.square()).sum(0, keepdim=True)


@dataclass(frozen=True, slots=True)
class Quadratic:
    """Descend a noisy quadratic bowl from a fixed start; the run's seed draws the gradient noise.

    Attributes:
        dimensions: D, 1 to MAX_DIMENSIONS.
        decades: log10 of the ratio of the highest curvature (1) to the lowest, >= 0.
        noise: root mean square norm of an example's gradient noise, >= 0.
    """

    dimensions: int = 256
    decades: float = 3.0
    noise: float = 8.0

    version: ClassVar[int] = 1
    target_metric_name: ClassVar[str] = "loss"
    metric_mode: ClassVar[str] = "min"

    def __post_init__(self) -> None:
        if not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"dimensions: must be at least 1 and at most {MAX_DIMENSIONS:,}, got {self.dimensions}")
        for name in ("decades", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")

    @property
    def validation_target_value(self) -> float | None:
        return None

    def curvature(self) -> Floats:
        """Return h, [D]: from 1 down, evenly in logs."""
        return np.logspace(0, -self.decades, self.dimensions)

    def start(self) -> Floats:
        """Return theta_0, [D]: equal in all directions, of loss 1."""
        return np.full(self.dimensions, math.sqrt(2 / self.curvature().sum()))

    def noise_variance(self) -> Floats:
        """Return the variance of one example's gradient, [D]."""
        root_D = np.sqrt(self.curvature())
        variance_D: Floats = self.noise**2 * root_D / root_D.sum()
        return variance_D

    def expected_loss(self, lrs: Sequence[float] | Floats, *, batch_tokens: int) -> float:
        """Return the expected loss after SGD steps at these LRs, exactly.

        E theta_i^2 <- (1 - lr h_i)^2 E theta_i^2 + lr^2 variance_i / B at each step.
        """
        h_D, second_D = self.curvature(), self.start() ** 2
        variance_D = self.noise_variance() / batch_tokens
        for lr in lrs:
            second_D = (1 - lr * h_D) ** 2 * second_D + lr**2 * variance_D
        return float(0.5 * (h_D * second_D).sum())

    def expected_loss_constant(self, lr: float, *, batch_tokens: int, tokens: int) -> float:
        """Return the expected loss after tokens / batch_tokens steps at one LR: the recursion, summed.

        0 < lr < 2, the range in which SGD is stable.
        """
        h_D = self.curvature()
        decay_D = (1 - lr * h_D) ** 2
        left_D = decay_D ** (tokens // batch_tokens)
        settled_D = lr**2 * self.noise_variance() / batch_tokens / (1 - decay_D)
        return float(0.5 * (h_D * (left_D * self.start() ** 2 + (1 - left_D) * settled_D)).sum())

    def best_lr(self, *, batch_tokens: int, tokens: int, factors: Sequence[float] | None = None) -> float:
        """Return the peak LR of least expected loss, to a relative 1e-6.

        Args:
            batch_tokens: B.
            tokens: the horizon, whole batches.
            factors: LR of each step over the peak, tokens / batch_tokens of them; None: constant.

        Raises:
            ValueError: the best LR is not inside the bracket searched.
        """

        def log_loss(log_lr: float) -> float:
            lr = math.exp(log_lr)
            if factors is None:
                return math.log(self.expected_loss_constant(lr, batch_tokens=batch_tokens, tokens=tokens))
            return math.log(self.expected_loss(lr * np.asarray(factors), batch_tokens=batch_tokens))

        grid = np.log(np.geomspace(*BRACKET, SEARCH_POINTS))
        best = int(np.argmin([log_loss(x) for x in grid]))
        if best in (0, SEARCH_POINTS - 1):
            raise ValueError(f"best_lr: the expected loss has no minimum between LRs {BRACKET[0]} and {BRACKET[1]}")
        found = minimize_scalar(
            log_loss, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-7}
        )
        return math.exp(found.x)

    def simulate(
        self,
        lrs: Sequence[float],
        seeds: Sequence[int],
        *,
        batch_tokens: int,
        marks: Sequence[int],
        factors: Sequence[float] | None = None,
    ) -> Floats:
        """Return the losses [S, L, M] that runs of plain SGD at these LRs and seeds report at these marks.

        The vectorised twin of `Run` on the same noise: equal to it up to the rounding of single precision.
        """
        losses = np.empty((len(seeds), len(lrs), len(marks)))
        for start in range(0, len(seeds), SEEDS_AT_ONCE):
            chunk = slice(start, start + SEEDS_AT_ONCE)
            losses[chunk] = self._simulate(lrs, seeds[chunk], batch_tokens, list(marks), factors)
        return losses

    def _simulate(
        self,
        lrs: Sequence[float],
        seeds: Sequence[int],
        batch_tokens: int,
        marks: list[int],
        factors: Sequence[float] | None,
    ) -> Floats:
        """Return `simulate` for a few seeds, [S, L, M]."""
        h_D = torch.tensor(self.curvature(), dtype=torch.float32)
        lr_L1 = torch.tensor(lrs, dtype=torch.float32)[:, None]
        examples = [next(self.build_input_queue("train", marks[-1], seed))["inputs"] for seed in seeds]
        noise_STD = torch.stack([x.view(-1, batch_tokens, self.dimensions).mean(1) for x in examples])
        theta_SLD = torch.tensor(self.start(), dtype=torch.float32).expand(len(seeds), len(lrs), -1).clone()
        losses = np.empty((len(seeds), len(lrs), len(marks)))
        kept_LD = 1 - lr_L1 * h_D
        for step in range(marks[-1] // batch_tokens):
            if factors is not None:
                kept_LD = 1 - lr_L1 * factors[step] * h_D
            rate_L1 = lr_L1 if factors is None else lr_L1 * factors[step]
            theta_SLD.mul_(kept_LD).addcmul_(noise_STD[:, step, None], rate_L1, value=-1)
            seen = (step + 1) * batch_tokens
            if seen in marks:
                losses[:, :, marks.index(seen)] = 0.5 * (theta_SLD.square() @ h_D).numpy()
        return losses

    def facts(self) -> Facts:
        words = f"quadratic {self.dimensions} {self.decades!r} {self.noise!r}"
        return Facts(
            parameters=self.dimensions,
            non_embedding_parameters=self.dimensions,
            flops_per_token=6.0 * self.dimensions,
            tokens_per_example=1,
            unit="sample",
            train_tokens=None,
            data_fingerprint=hashlib.sha256(words.encode()).hexdigest(),
        )

    def init_model_fn(self, rng: torch.Generator) -> tuple[nn.Module, None]:
        del rng  # the start is fixed
        return Bowl(*(torch.tensor(x, dtype=torch.float32) for x in (self.curvature(), self.start()))), None

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: None,
        mode: ForwardPassMode,
        rng: torch.Generator | None,
        update_batch_norm: bool,
    ) -> tuple[Tensor, None]:
        """Return the loss of each example: this model has no other output."""
        del model_state, mode, rng, update_batch_norm
        losses_N: Tensor = params(augmented_and_preprocessed_input_batch["inputs"])
        return losses_N, None

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the sum of the losses that `model_fn` gave; there are no labels to smooth."""
        del label_smoothing
        weights = torch.ones_like(label_batch) if mask_batch is None else mask_batch
        losses_N = logits_batch if mask_batch is None else logits_batch * mask_batch
        return {"summed": losses_N.sum(), "n_valid_examples": weights.sum(), "per_example": losses_N}

    def build_input_queue(
        self, split: str, global_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BlockQueue:
        scale_D = torch.tensor(np.sqrt(self.noise_variance()), dtype=torch.float32)
        labels_N = torch.zeros(BLOCK)

        def draw(block: int) -> Batch:
            rng = generator("quadratic", split, seed, block)
            return {"inputs": torch.randn(BLOCK, self.dimensions, generator=rng) * scale_D, "targets": labels_N}

        return BlockQueue(draw, block=BLOCK, batch=global_batch_size, rank=rank, world=world_size)

    def eval_model(self, params: nn.Module, device: torch.device) -> dict[str, float]:
        del device
        assert isinstance(params, Bowl)
        return {"validation/loss": params.loss().item()}

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        del eval_result
        return False
