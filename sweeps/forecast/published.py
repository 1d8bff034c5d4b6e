"""Published parameters of curve laws, each of one warm-up convention, and the priors made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sweeps.forecast.records import Floats

# Multi-power law, arXiv:2503.12811 (Llama-like, 0.5M tokens a step, peak 3e-4, warm-up 2,160 steps); published.
# Of its repository (thu-yao-01-luo/MultiPowerLaw, MIT), convention "ramp":
MULTI_POWER_REPOSITORY: dict[str, dict[str, float]] = {
    "25M": {"L0": 3.0405, "A": 0.5247, "alpha": 0.5079, "B": 363.79, "C": 2.0656, "beta": 0.5828, "gamma": 0.6414},
    "100M": {"L0": 2.6514, "A": 0.6012, "alpha": 0.4530, "B": 437.95, "C": 2.1325, "beta": 0.5979, "gamma": 0.6552},
    "400M": {"L0": 2.3747, "A": 0.6542, "alpha": 0.4288, "B": 523.42, "C": 2.0246, "beta": 0.5935, "gamma": 0.6347},
}
# Of its paper, table 7, convention "area":
MULTI_POWER_PAPER: dict[str, dict[str, float]] = {
    "25M": {"L0": 3.17, "A": 0.51, "alpha": 0.53, "B": 446.4, "C": 2.07, "beta": 0.41, "gamma": 0.52},
    "100M": {"L0": 2.79, "A": 0.59, "alpha": 0.46, "B": 521.4, "C": 0.24, "beta": 0.60, "gamma": 0.65},
    "400M": {"L0": 2.52, "A": 0.66, "alpha": 0.42, "B": 614.3, "C": 0.16, "beta": 0.88, "gamma": 0.56},
}
# Momentum law, arXiv:2408.11029, main equation (594M, 4M tokens a step, peak 2e-4), convention "constant"; published.
MOMENTUM_MAIN: dict[str, float] = {"L0": 2.628, "A": 0.429, "C": 0.411, "alpha": 0.550}


# FSL in the place of the multi-power law: fitted to six curves drawn from its published parameters ("ramp" ones) of
# each size, to 3e-4 of the loss; measured, `benchmarks/curve_laws.py fsl`. Convention "area".
FSL_DRAWN: dict[str, dict[str, float]] = {
    "25M": {"c2 c3": 333.2, "c2": 39.22, "ln c4": 7.280, "gamma": 0.6132},
    "100M": {"c2 c3": 401.9, "c2": 45.48, "ln c4": 7.492, "gamma": 0.6213},
    "400M": {"c2 c3": 471.4, "c2": 63.79, "ln c4": 7.211, "gamma": 0.6281},
}
SIZES = ("25M", "100M", "400M")


@dataclass(frozen=True, slots=True)
class Prior:
    """A Gaussian prior on what one or two curves do not tell apart.

    Attributes:
        name: what it is centred on.
        law: name of the law; multi-power: on (ln B, ln C, beta, gamma), fsl: (ln c2 c3, ln c2, ln c4, gamma).
        warmup: the convention its parameters belong to.
        centre, sd: of the four.
        weight: residual (in ln loss) that one sd counts as; .01 and .002 help (measured on the public curves).
    """

    name: str
    law: str
    warmup: str
    centre: tuple[float, ...]
    sd: tuple[float, ...]
    weight: float = 0.01

    def residuals(self, found_4: Floats) -> Floats:
        """Return weight * (found - centre) / sd."""
        return np.asarray(self.weight * (found_4 - np.array(self.centre)) / np.array(self.sd), dtype=np.float64)


def prior_of(name: str, sizes: tuple[str, ...], *, paper: bool = False, weight: float = 0.01) -> Prior:
    """Return the multi-power law's prior, centred on the mean of the published parameters of these sizes."""
    table = MULTI_POWER_PAPER if paper else MULTI_POWER_REPOSITORY
    rows = [(np.log(p["B"]), np.log(p["C"]), p["beta"], p["gamma"]) for p in (table[size] for size in sizes)]
    sd = (0.3, 0.7, 0.15, 0.15)  # assumed
    return Prior(name, "multi-power", "area" if paper else "ramp", _mean(rows), sd, weight)


def fsl_prior_of(name: str, sizes: tuple[str, ...], *, weight: float = 0.01) -> Prior:
    """Return FSL's prior, centred on the mean of what it is for the published multi-power laws of these sizes."""
    drawn = [FSL_DRAWN[size] for size in sizes]
    rows = [(np.log(p["c2 c3"]), np.log(p["c2"]), p["ln c4"], p["gamma"]) for p in drawn]
    sd = (0.3, 0.7, 0.7, 0.15)  # assumed: as the multi-power law's
    return Prior(name, "fsl", "area", _mean(rows), sd, weight)


def _mean(rows: list[tuple[float, float, float, float]]) -> tuple[float, ...]:
    return tuple(float(x) for x in np.mean(np.array(rows), axis=0))


def _without(size: str) -> tuple[str, ...]:
    return tuple(other for other in SIZES if other != size)


REPOSITORY = prior_of("repository", SIZES)
DRAWN = fsl_prior_of("drawn", SIZES)
PRIORS: dict[str, Prior] = {
    "repository": REPOSITORY,
    **{f"repository without {size}": prior_of(f"repository without {size}", _without(size)) for size in SIZES},
    "paper": prior_of("paper", SIZES, paper=True),
    **{f"paper without {size}": prior_of(f"paper without {size}", _without(size), paper=True) for size in SIZES},
    "drawn": DRAWN,
    **{f"drawn without {size}": fsl_prior_of(f"drawn without {size}", _without(size)) for size in SIZES},
}
