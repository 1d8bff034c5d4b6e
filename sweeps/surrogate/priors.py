"""What is believed of the unknowns before anything is trained: wide, and about the ranges tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sweeps.surrogate.shape import AT, NAMES

Floats = NDArray[np.float64]

# (mean, sd) of each unknown; the exponents hold all published ones (docs/laws.md); the others assumed
BELIEVED: Mapping[str, tuple[float, float]] = {
    "ln_e": (math.log(1.7), 0.5),  # Chinchilla's E is 1.69 nats
    "ln_a": (math.log(0.35), 1.0),
    "alpha": (0.35, 0.15),  # 0.34
    "ln_c": (math.log(0.35), 1.0),
    "beta": (0.35, 0.15),  # 0.28
    "mT": (0.0, 0.4),  # -0.32 (Bjorck) to +0.31 (Step Law)
    "mN": (-0.4, 0.4),  # -0.71 (Step Law) to 0
    "p": (0.5, 0.35),  # 0.5 Adam's square root rule, 1 SGD's linear one, 0 beyond the critical batch
    "c": (0.1, 0.15),
    "bT": (0.4, 0.3),  # 0.33 (DeepSeek) to 0.57 (Step Law)
    "bN": (0.0, 0.3),
    "ln_h": (math.log(0.03), 1.2),  # a range of LR within 0.25 % of the best spans a factor 2.6 on Step Law
    "k": (0.7, 0.5),  # as optima.optimum's
    "ln_hB": (math.log(0.03), 1.2),
    "kB": (0.4, 0.5),
    "hT": (0.0, 0.2),
    "hBT": (0.0, 0.2),
}
DOF = 4.0  # observations that the prior of the scale of residuals is worth; assumed


@dataclass(frozen=True)
class Prior:
    """Independent normal priors, [U] in the order of `shape.NAMES`.

    Attributes:
        middle: ln T and ln N that the unknowns are about.
        dof: of the scale of residuals.
    """

    mean: Floats
    sd: Floats
    middle: tuple[float, float]
    dof: float = DOF

    def with_law(self, values: Mapping[str, tuple[float, float]]) -> Prior:
        """Return the prior with (mean, sd) of some unknowns replaced: a published law to start from."""
        mean, sd = self.mean.copy(), self.sd.copy()
        for name, (value, spread) in values.items():
            mean[AT[name]], sd[AT[name]] = value, spread
        return replace(self, mean=mean, sd=sd)


def prior_of(places_P4: Floats) -> Prior:
    """Return the prior of places (lr, batch_tokens, tokens, parameters), tried or to be tried: about their ranges."""
    places_P4 = np.log(places_P4)
    low, high = places_P4.min(axis=0), places_P4.max(axis=0)
    mean = np.array([BELIEVED.get(name, (0.0, 1.0))[0] for name in NAMES])
    sd = np.array([BELIEVED.get(name, (0.0, 1.0))[1] for name in NAMES])
    for name, axis, share in (("m0", 0, 0.35), ("b0", 1, 0.3)):
        mean[AT[name]] = 0.5 * (low[axis] + high[axis])
        sd[AT[name]] = max(share * (high[axis] - low[axis]), math.log(2.0))
    middle = 0.5 * (low[2:] + high[2:])
    return Prior(mean, sd, (float(middle[0]), float(middle[1])))
