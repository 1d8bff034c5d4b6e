"""The update rules of torch's optimizers for K runs at once, over flat rows: one operation where K runs need many.

# K runs, N numbers of a run, R rows and C columns of a matrix

Each rule does what its optimizer does, within rounding. What differs between runs is a coefficient: a number a run,
worked out on the host before the step, so that no operation reads the host during it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter of a run lies in its flat row."""

    name: str
    shape: torch.Size
    start: int

    def of(self, rows_KN: Tensor) -> Tensor:
        """Return the parameter of all runs, a view [K, *shape]."""
        return rows_KN[:, self.start : self.start + self.shape.numel()].view(-1, *self.shape)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a rule works on: the columns of one torch optimizer.

    Attributes:
        theta, gradient: parameters and gradients, [K, N], padded with zeros; a step may use up the gradient.
        slots: the optimizer's state by torch's names, each [K, N].
        scalars: what it keeps as a number, each [K].
        decayed: the first columns, those with weight decay.
        places: of the parameters.
    """

    theta: Tensor
    gradient: Tensor
    slots: dict[str, Tensor]
    scalars: dict[str, Tensor]
    decayed: int
    places: tuple[Place, ...]


class Rule(Protocol):
    """An optimizer of K runs.

    Attributes:
        slots: the tensors it keeps, of a parameter's shape, by torch's names.
        scalars: the numbers it keeps for each parameter; of a run they are all equal.
        coefficients: how many numbers of each run a step needs.
    """

    slots: tuple[str, ...]
    scalars: tuple[str, ...]
    coefficients: int

    def prepare(self, lrs: Sequence[float]) -> list[list[float]]:
        """Return the coefficients of the next step, [coefficients][K]."""

    def apply(self, rows: Rows, numbers: Tensor) -> None:
        """Take the step, given the coefficients on the device, [coefficients, K, 1]."""

    def resume(self, scalars: Sequence[dict[str, float]]) -> None:
        """Go on from the numbers that each run's optimizer has kept."""


class Adam:
    """torch.optim.AdamW, of any number of runs; Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2."""

    slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    scalars: tuple[str, ...] = ("step",)
    coefficients = 6

    def __init__(self, settings: Sequence[dict[str, Any]]) -> None:
        self._settings = settings
        self._steps = [0.0] * len(settings)

    def resume(self, scalars: Sequence[dict[str, float]]) -> None:
        self._steps = [kept["step"] for kept in scalars]

    def prepare(self, lrs: Sequence[float]) -> list[list[float]]:
        self._steps = [step + 1 for step in self._steps]
        found = []
        for s, lr, step in zip(self._settings, lrs, self._steps, strict=True):
            first, second = s["betas"]
            root = math.sqrt(1 - second**step)  # of the second bias correction, moved from v to eps and the rate
            rate = -lr * root / (1 - first**step)
            found.append((step, _kept(lr, s["weight_decay"]), 1 - first, 1 - second, s["eps"] * root, rate))
        return _columns(found)

    def apply(self, rows: Rows, numbers: Tensor) -> None:
        step_K1, kept_K1, first_K1, second_K1, eps_K1, rate_K1 = numbers
        rows.scalars["step"].copy_(step_K1[:, 0])
        denominator_KN = _moments(rows, kept_K1, first_K1, second_K1).sqrt_().add_(eps_K1)
        rows.theta.addcmul_(torch.div(rows.slots["exp_avg"], denominator_KN, out=denominator_KN), rate_K1)


class NAdam:
    """torch.optim.NAdam with decoupled weight decay, of any number of runs; Dozat 2016."""

    slots: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    scalars: tuple[str, ...] = ("mu_product", "step")
    coefficients = 8

    def __init__(self, settings: Sequence[dict[str, Any]]) -> None:
        self._settings = settings
        self._steps = [0.0] * len(settings)
        self._products = [np.float32(1.0)] * len(settings)  # single precision, as it is kept

    def resume(self, scalars: Sequence[dict[str, float]]) -> None:
        self._steps = [kept["step"] for kept in scalars]
        self._products = [np.float32(kept["mu_product"]) for kept in scalars]

    def prepare(self, lrs: Sequence[float]) -> list[list[float]]:
        self._steps = [step + 1 for step in self._steps]
        found = []
        for k, (s, lr, step) in enumerate(zip(self._settings, lrs, self._steps, strict=True)):
            (first, second), psi = s["betas"], s["momentum_decay"]
            mu, following = (first * (1 - 0.5 * 0.96 ** (t * psi)) for t in (step, step + 1))
            product = self._products[k] = self._products[k] * np.float32(mu)
            root = math.sqrt(1 - second**step)
            now = -lr * root * (1 - mu) / (1 - float(product))
            then = -lr * root * following / (1 - float(product) * following)
            kept = _kept(lr, s["weight_decay"])
            found.append((float(product), step, kept, 1 - first, 1 - second, s["eps"] * root, now, then))
        return _columns(found)

    def apply(self, rows: Rows, numbers: Tensor) -> None:
        product_K1, step_K1, kept_K1, first_K1, second_K1, eps_K1, now_K1, then_K1 = numbers
        rows.scalars["mu_product"].copy_(product_K1[:, 0])
        rows.scalars["step"].copy_(step_K1[:, 0])
        denominator_KN = _moments(rows, kept_K1, first_K1, second_K1).sqrt_().add_(eps_K1)
        direction_KN = rows.gradient.mul_(now_K1).addcmul_(rows.slots["exp_avg"], then_K1)
        rows.theta.addcdiv_(direction_KN, denominator_KN)


class Descent:
    """torch.optim.SGD of any number of runs, with an L2 penalty and (Nesterov) momentum."""

    scalars: tuple[str, ...] = ()
    coefficients = 3

    def __init__(self, settings: Sequence[dict[str, Any]]) -> None:
        self._settings = settings
        self._momentum = settings[0]["momentum"] != 0
        self._nesterov = settings[0]["nesterov"]
        self._decays = any(s["weight_decay"] for s in settings)
        self.slots: tuple[str, ...] = ("momentum_buffer",) if self._momentum else ()

    def resume(self, scalars: Sequence[dict[str, float]]) -> None:
        del scalars

    def prepare(self, lrs: Sequence[float]) -> list[list[float]]:
        return _columns([(s["weight_decay"], s["momentum"], -lr) for s, lr in zip(self._settings, lrs, strict=True)])

    def apply(self, rows: Rows, numbers: Tensor) -> None:
        decay_K1, momentum_K1, rate_K1 = numbers
        step_KN = rows.gradient
        if self._decays:
            step_KN[:, : rows.decayed].addcmul_(rows.theta[:, : rows.decayed], decay_K1)
        if self._momentum:
            buffer_KN = rows.slots["momentum_buffer"].mul_(momentum_K1).add_(step_KN)
            step_KN = step_KN.addcmul_(buffer_KN, momentum_K1) if self._nesterov else buffer_KN
        rows.theta.addcmul_(step_KN, rate_K1)


class Orthogonal:
    """torch.optim.Muon of any number of runs; Jordan 2024, rates as in Liu et al. 2025, arXiv:2502.16982."""

    slots: tuple[str, ...] = ("momentum_buffer",)
    scalars: tuple[str, ...] = ()
    coefficients = 3

    def __init__(self, settings: Sequence[dict[str, Any]]) -> None:
        self._settings = settings

    def resume(self, scalars: Sequence[dict[str, float]]) -> None:
        del scalars

    def prepare(self, lrs: Sequence[float]) -> list[list[float]]:
        settings = zip(self._settings, lrs, strict=True)
        return _columns([(_kept(lr, s["weight_decay"]), s["momentum"], -0.2 * lr) for s, lr in settings])

    def apply(self, rows: Rows, numbers: Tensor) -> None:
        kept_K1, momentum_K1, rate_K1 = numbers
        buffer_KN = rows.slots["momentum_buffer"].lerp_(rows.gradient, 1 - momentum_K1)
        blend_KN = rows.gradient.lerp_(buffer_KN, momentum_K1)
        rows.theta.mul_(kept_K1)
        for place in rows.places:
            update_KRC = _orthogonal(place.of(blend_KN), self._settings[0])
            rate_K11 = rate_K1[:, None] * math.sqrt(max(place.shape))
            place.of(rows.theta).addcmul_(update_KRC.to(rows.theta.dtype), rate_K11)


def _kept(lr: float, weight_decay: float) -> float:
    """Return the share of a parameter that decoupled decay leaves."""
    return 1 - lr * weight_decay if weight_decay else 1.0


def _columns(numbers: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*numbers, strict=True)]


def _moments(rows: Rows, kept_K1: Tensor, first_K1: Tensor, second_K1: Tensor) -> Tensor:
    """Decay the parameters, take in the gradient, and return a copy of the second moment."""
    rows.theta[:, : rows.decayed].mul_(kept_K1)
    rows.slots["exp_avg"].lerp_(rows.gradient, first_K1)
    square_KN = rows.gradient * rows.gradient
    second_KN = rows.slots["exp_avg_sq"].lerp_(square_KN, second_K1)
    return square_KN.copy_(second_KN)


def _orthogonal(matrix_KRC: Tensor, settings: dict[str, Any]) -> Tensor:
    """Return the orthogonal factor by Newton and Schulz's iteration in bfloat16, as torch does for one matrix."""
    a, b, c = settings["ns_coefficients"]
    x = matrix_KRC.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=settings["eps"])
    for _ in range(settings["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


RULES: dict[type[torch.optim.Optimizer], Callable[[Sequence[dict[str, Any]]], Rule]] = {
    torch.optim.AdamW: Adam,
    torch.optim.NAdam: NAdam,
    torch.optim.SGD: Descent,
    torch.optim.Muon: Orthogonal,
}
