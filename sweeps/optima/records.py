"""A cell and the optimum found in it, as records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeps.spec import Json, Result

CENSORED = ("edge low", "edge high", "too few points", "no minimum")


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best LR of one cell, or why there is none.

    Attributes:
        lr: the estimate; where censored, the best LR tried (None if no trial ended).
        low, high: the confidence interval of lr; None where censored.
        log_sd: standard error of ln lr.
        dof: degrees of freedom behind log_sd.
        relative: whether the basin is of ln loss: where all losses are positive.
        form_sd: the part of log_sd that comes from not knowing the basin's form and that cells of a sweep share.
        asymmetry: third over second derivative of the basin at the minimum: posterior mean and sd.
        censored: one of CENSORED, or None.
        loss: the loss at the optimum by the fitted basin.
        noise_sd: sd of the loss between seeds and about the basin: a share of the loss where `relative`.
        basin: coefficients of the fitted basin, for drawing: ln loss where `relative`, else the loss, is this
            polynomial in (ln lr - centre), ascending powers.
        centre: see basin.
        window: the (lowest, highest) LR the basin was fitted on.
    """

    lr: float | None
    low: float | None
    high: float | None
    log_sd: float | None
    dof: float | None
    censored: str | None
    loss: float | None = None
    noise_sd: float | None = None
    basin: tuple[float, ...] = ()
    centre: float = 0.0
    window: tuple[float, float] | None = None
    form_sd: float | None = None
    asymmetry: tuple[float, float] | None = None
    relative: bool = True

    def fitted(self, lr: float) -> float:
        """Return the loss at an LR by the fitted basin."""
        x = math.log(lr) - self.centre
        height = math.fsum(c * x**n for n, c in enumerate(self.basin))
        return math.exp(min(height, 700.0)) if self.relative else height


@dataclass(frozen=True, slots=True)
class CellOptimum:
    """A cell with its results and its optimum."""

    key: str
    label: str
    batch_tokens: int
    tokens: int
    parameters: int
    optimum: Optimum
    results: tuple[Result, ...] = ()
    values: Mapping[str, Json] = field(default_factory=dict)  # further axes
