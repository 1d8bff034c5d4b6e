"""The optimizers of torch as configurations, by name.

Weight decay applies to parameters of two dimensions or more (matrices, embeddings, convolutions): gains, biases and
other vectors are never decayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from workloads.optim.groups import effective_decay, first_lr, groups, hidden_matrices, order, trainable
from workloads.optim.stepper import Member, Stepper

__all__ = ["DECAYS", "OPTIMIZERS", "SGD", "AdamW", "Member", "Muon", "NAdamW", "Optimizer", "Stepper"]


class Optimizer(Protocol):
    """A configuration that builds torch's optimizers for a model; `version` goes up when curves change."""

    version: ClassVar[int]

    def build(self, model: nn.Module, *, peak_lr: float, fused: bool = True, capturable: bool = False) -> Stepper:
        """Return the optimizers of a model, their LR not yet set.

        Args:
            model: already on its device.
            peak_lr: the LR of the trial, > 0; independent decay is relative to it.
            fused: use torch's fused kernels where the optimizer has them.
            capturable: keep the LR and all state in tensors on the device, as a CUDA graph needs.

        Raises:
            ValueError: the optimizer does not suit the model, or cannot be captured.
        """


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101); plain Adam at weight_decay 0.

    Attributes:
        betas: each in [0, 1).
        eps: > 0.
        weight_decay: lambda >= 0.
        decay: "coupled" to the LR, theta -= lr_t lambda theta, as in torch; or "independent" of its peak,
            theta -= (lr_t / peak) lambda theta (Wortsman et al. 2023, arXiv:2309.14322).
        clip_norm: gradients are scaled down to this global norm, > 0; None: never.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "coupled"
    clip_norm: float | None = 1.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_adam(self.betas, self.eps, self.weight_decay, self.decay)
        _check_clip(self.clip_norm)

    def build(self, model: nn.Module, *, peak_lr: float, fused: bool = True, capturable: bool = False) -> Stepper:
        named = trainable(model)
        decay = effective_decay(self.weight_decay, self.decay, peak_lr)
        lr = first_lr(peak_lr, named, tensor=capturable)
        optimizer = torch.optim.AdamW(
            groups(named, decay), lr=lr, betas=self.betas, eps=self.eps, fused=fused, capturable=capturable
        )
        return Stepper([Member(optimizer, order(named))], clip_norm=self.clip_norm)


@dataclass(frozen=True, slots=True)
class NAdamW:
    """Adam with Nesterov momentum (Dozat 2016) and decoupled weight decay, torch's NAdam.

    Attributes:
        betas, eps, weight_decay, decay, clip_norm: as in AdamW.
        momentum_decay: psi of the momentum schedule mu_t = beta1 (1 - 0.5 * 0.96^(t psi)), >= 0.
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "coupled"
    momentum_decay: float = 4e-3
    clip_norm: float | None = 1.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_adam(self.betas, self.eps, self.weight_decay, self.decay)
        _check_at_least_zero("momentum_decay", self.momentum_decay)
        _check_clip(self.clip_norm)

    def build(self, model: nn.Module, *, peak_lr: float, fused: bool = True, capturable: bool = False) -> Stepper:
        named = trainable(model)
        decay = effective_decay(self.weight_decay, self.decay, peak_lr)
        optimizer = torch.optim.NAdam(
            groups(named, decay),
            lr=first_lr(peak_lr, named, tensor=capturable),
            betas=self.betas,
            eps=self.eps,
            momentum_decay=self.momentum_decay,
            decoupled_weight_decay=True,
            capturable=named[0][1].is_cuda,
            foreach=fused,
        )
        return Stepper([Member(optimizer, order(named))], clip_norm=self.clip_norm)


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent with (Nesterov) momentum.

    Attributes:
        momentum: in [0, 1).
        nesterov: needs momentum.
        weight_decay: lambda >= 0, as an L2 penalty: g += lambda theta, before momentum, as in torch.
        clip_norm: as in AdamW.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_fraction("momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0, got momentum=0.0")
        _check_at_least_zero("weight_decay", self.weight_decay)
        _check_clip(self.clip_norm)

    def build(self, model: nn.Module, *, peak_lr: float, fused: bool = True, capturable: bool = False) -> Stepper:
        named = trainable(model)
        optimizer = torch.optim.SGD(
            groups(named, self.weight_decay),
            lr=first_lr(peak_lr, named, tensor=capturable),
            momentum=self.momentum,
            nesterov=self.nesterov,
            fused=fused,
        )
        return Stepper([Member(optimizer, order(named))], clip_norm=self.clip_norm)


@dataclass(frozen=True, slots=True)
class Muon:
    """Muon (Jordan 2024) for the hidden matrices, AdamW for all else.

    A hidden matrix is a two-dimensional parameter that is neither an embedding's nor the output head's (by name: see
    `hidden_matrices`); convolutions are not. The LR of the run is Muon's, in the scale that matches AdamW's update size
    (0.2 sqrt(max(rows, columns)), Liu et al. 2025, arXiv:2502.16982).

    Attributes:
        momentum: in [0, 1), Nesterov's form.
        weight_decay: lambda >= 0, for Muon and AdamW alike.
        decay, clip_norm: as in AdamW.
        adamw_lr_ratio: LR of AdamW over the LR of Muon, > 0.
        betas, eps: of AdamW.
    """

    momentum: float = 0.95
    weight_decay: float = 0.1
    decay: str = "coupled"
    adamw_lr_ratio: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float | None = 1.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_fraction("momentum", self.momentum)
        _check_adam(self.betas, self.eps, self.weight_decay, self.decay)
        if not 0 < self.adamw_lr_ratio < math.inf:
            raise ValueError(f"adamw_lr_ratio: must be above 0, got {self.adamw_lr_ratio}")
        _check_clip(self.clip_norm)

    def build(self, model: nn.Module, *, peak_lr: float, fused: bool = True, capturable: bool = False) -> Stepper:
        named = trainable(model)
        hidden = hidden_matrices(model)
        if capturable:
            raise ValueError("cuda_graph: torch's Muon reads its LR on the host, so its step cannot be captured")
        if not hidden:
            raise ValueError("muon: needs a model with a hidden matrix, and this one has none")
        matrices = [(name, p) for name, p in named if name in hidden]
        others = [(name, p) for name, p in named if name not in hidden]
        decay = effective_decay(self.weight_decay, self.decay, peak_lr)
        muon = torch.optim.Muon(
            [p for _, p in matrices],
            lr=peak_lr,
            momentum=self.momentum,
            weight_decay=decay,
            adjust_lr_fn="match_rms_adamw",
        )
        members = [Member(muon, tuple(name for name, _ in matrices))]
        if others:
            decay = effective_decay(self.weight_decay, self.decay, peak_lr * self.adamw_lr_ratio)
            adamw = torch.optim.AdamW(groups(others, decay), lr=peak_lr, betas=self.betas, eps=self.eps, fused=fused)
            members.append(Member(adamw, order(others), self.adamw_lr_ratio))
        return Stepper(members, clip_norm=self.clip_norm)


def _check_adam(betas: Sequence[float], eps: float, weight_decay: float, decay: str) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas: must be two numbers in [0, 1), got {list(betas)}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps: must be above 0, got {eps}")
    _check_at_least_zero("weight_decay", weight_decay)
    if decay not in DECAYS:
        raise ValueError(f"decay: must be one of {', '.join(DECAYS)}, got {decay!r}")


def _check_at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: must be at least 0, got {value}")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: must be in [0, 1), got {value}")


def _check_clip(clip_norm: float | None) -> None:
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm: must be above 0, or null, got {clip_norm}")


DECAYS = ("coupled", "independent")
OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "nadamw": NAdamW, "sgd": SGD, "muon": Muon}
