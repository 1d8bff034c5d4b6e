"""The loss as a function of model size, steps and batch, in closed form and by bisection.

    L(N, inf)   = (N_c / N)^aN                            infinite data, converged
    L(N, S_min) = (N_c / N)^aN + (S_c / S_min)^aS         at batches far above the critical one
    B_crit(L)   = B_star / L^(1/aB)                       tokens, whatever the model size
    S_min       = S / (1 + B_crit(L) / B)

Kaplan et al. (arXiv:2001.08361); the same forms up to 33B parameters in Su et al., "Unraveling the Mystery of Scaling
Laws: Part I" (arXiv:2403.06563).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sweeps.errors import ConfigError

Floats = NDArray[np.float64]

HALVINGS = 60  # of the bracket of a loss: to the last bits


@dataclass(frozen=True, slots=True)
class SizeLaw:
    """L(N, inf) = (N_c / N)^aN, N without embeddings, losses in nats."""

    a_n: float
    n_c: float

    def converged(self, parameters: float) -> float:
        """Return the loss that a model of this size ends at."""
        return math.pow(self.n_c / parameters, self.a_n)


@dataclass(frozen=True, slots=True)
class StepLaw:
    """L(N, S_min) = L(N, inf) + (S_c / S_min)^aS."""

    sizes: SizeLaw
    a_s: float
    s_c: float

    def loss(self, parameters: float, steps: float) -> float:
        """Return the loss after this many steps of a batch far above the critical one."""
        return self.sizes.converged(parameters) + math.pow(self.s_c / steps, self.a_s)


@dataclass(frozen=True, slots=True)
class CriticalBatch:
    """B_crit(L) = B_star / L^(1/aB), in tokens: there a loss takes twice the steps and twice the tokens it must."""

    a_b: float
    b_star: float

    def tokens(self, loss: float) -> float:
        """Return the critical batch at a loss."""
        return self.b_star / math.pow(loss, 1.0 / self.a_b)

    def steps_min(self, steps: float, *, batch_tokens: float, loss: float) -> float:
        """Return the steps that an infinite batch would need for what these steps reached."""
        return steps / (1.0 + self.tokens(loss) / batch_tokens)

    def compute_min(self, compute: float, *, batch_tokens: float, loss: float) -> float:
        """Return the compute that a small batch would need for what this compute reached."""
        return compute / (1.0 + batch_tokens / self.tokens(loss))


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """L(N, S, B): whole trajectories of any size at any batch."""

    steps: StepLaw
    critical: CriticalBatch

    @property
    def constants(self) -> Mapping[str, float]:
        """The six constants by name."""
        sizes = self.steps.sizes
        return {
            "aN": sizes.a_n,
            "N_c": sizes.n_c,
            "aS": self.steps.a_s,
            "S_c": self.steps.s_c,
            "aB": self.critical.a_b,
            "B_star": self.critical.b_star,
        }

    @classmethod
    def of(cls, constants: Mapping[str, float]) -> ScalingLaw:
        """Return the law of six constants by name. Raises ConfigError where one is missing or not positive."""
        for name in ("aN", "N_c", "aS", "S_c", "aB", "B_star"):
            value = constants.get(name)
            if value is None or not 0.0 < value < math.inf:
                raise ConfigError(f"{name}: must be above 0 and finite, got {value}")
        steps = StepLaw(SizeLaw(constants["aN"], constants["N_c"]), constants["aS"], constants["S_c"])
        return cls(steps, CriticalBatch(constants["aB"], constants["B_star"]))

    def loss(self, parameters: float, steps: Floats | float, *, batch_tokens: float) -> Floats:
        """Return the loss after each of these steps (positive), the same shape, by bisection."""
        asked = np.asarray(steps, dtype=np.float64)
        size, batch = np.full(asked.shape, float(parameters)), np.full(asked.shape, float(batch_tokens))
        return losses(np.array(list(self.constants.values())), size, asked, batch)


def losses(constant_6: Floats, parameters_P: Floats, steps_P: Floats, batch_P: Floats) -> Floats:
    """Return L(N, S, B) at points of any one shape; constants in the order of `ScalingLaw.constants`.

    The loss solves L = (N_c/N)^aN + (S_c (1 + B_crit(L)/B) / S)^aS, whose right side falls with L: it lies between the
    converged loss and the right side there.
    """
    a_n, n_c, a_s, s_c, a_b, b_star = (float(x) for x in constant_6)
    floor_P = (n_c / parameters_P) ** a_n

    def right(loss_P: Floats) -> Floats:
        crowd_P = 1.0 + b_star / (batch_P * loss_P ** (1.0 / a_b))
        return np.asarray(floor_P + (s_c * crowd_P / steps_P) ** a_s)

    low_P, high_P = floor_P, right(floor_P)
    for _ in range(HALVINGS):
        middle_P = 0.5 * (low_P + high_P)
        above_P = right(middle_P) > middle_P
        low_P, high_P = np.where(above_P, middle_P, low_P), np.where(above_P, high_P, middle_P)
    return np.asarray(0.5 * (low_P + high_P))


# Kaplan et al., arXiv:2001.08361, WebText2, N without embeddings; published
KAPLAN = ScalingLaw.of({"aN": 0.077, "N_c": 6.5e13, "aS": 0.76, "S_c": 2.1e3, "aB": 0.21, "B_star": 2e8})
