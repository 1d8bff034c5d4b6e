"""The best LR of a cell from its (LR, seed, loss) points: whether there is one, and its interval (docs/laws.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from sweeps.errors import unknown_name
from sweeps.optima.basin import Curvature, Shape
from sweeps.optima.linex import MARGIN, Basin, Known, as_optimum, posterior_of
from sweeps.optima.records import Optimum
from sweeps.optima.spline import Spline
from sweeps.optima.threshold import Threshold
from sweeps.optima.tried import NOISE_FLOOR, SAME, WINDOW, Tried, edge_of, reason_censored, tabulate
from sweeps.spec import JOINT, Result

__all__ = [
    "ESTIMATORS",
    "MARGIN",
    "NOISE_FLOOR",
    "SAME",
    "WINDOW",
    "Estimator",
    "Tried",
    "as_optimum",
    "estimator_of",
    "find_optimum",
    "posterior_of",
    "shape_of",
    "tabulate",
]


class Estimator(Protocol):
    """What finds the optimum of a cell whose best LR lies between others."""

    @property
    def shape(self) -> Shape:
        """The prior of a basin's asymmetry, by which cells are pooled and held-out checks are made."""
        ...

    def find(self, tried: Tried, known: Known, *, confidence: float) -> Optimum:
        """Return the optimum with its interval, or censored with the reason."""
        ...


def find_optimum(
    results: Sequence[Result],
    *,
    estimator: str = "asymmetric",
    confidence: float = 0.95,
    noise_sd: float | None = None,
    curvature: Curvature | None = None,
    shape: Shape | None = None,
    relative: bool = True,
) -> Optimum:
    """Return the optimum of one cell, with its interval, or censored with the reason.

    Seeds are paired: a seed's offset, the same at all LRs, is removed. Diverged results bracket the optimum and are
    not fitted. `noise_sd` is the noise of other cells (`pooled_noise`), in nats; a cell's own seeds and its scatter
    about the basin are weighed with it. `curvature` and `shape` are those of other cells (`pooled_curvature`,
    `pooled_shape`); `shape` stands for the estimator's. `relative` as in `tabulate`.

    Raises:
        ConfigError: `estimator` is not in ESTIMATORS.
    """
    found_by = estimator_of(estimator)
    tried = tabulate(results, relative=relative)
    if tried is None:
        return Optimum(None, None, None, None, None, "too few points")
    reason = reason_censored(tried)
    if reason is not None:
        return edge_of(tried, reason)
    known = Known(noise_sd, curvature, shape or found_by.shape)
    return found_by.find(tried, known, confidence=confidence)


def estimator_of(name: str) -> Estimator:
    """Return an estimator by name; of a joint fit, that of a cell by itself. Raises ConfigError."""
    try:
        return ESTIMATORS["asymmetric" if name == JOINT else name]
    except KeyError:
        raise unknown_name("law.estimator", name, ESTIMATORS, "estimator") from None


def shape_of(estimator: str) -> Shape:
    """Return the prior of an estimator's asymmetry. Raises ConfigError."""
    return estimator_of(estimator).shape


# The third over the second derivative of the loss in ln lr, at the optimum: median 0.72, quartiles 0.36 and 1.18 in
# 115 (N, D, B) slices of the dense runs of Step Law (arXiv:2503.04715); measured.
LOPSIDED = Shape(0.7, 0.6, 0.5)

ESTIMATORS: Mapping[str, Estimator] = {
    "asymmetric": Basin(LOPSIDED),
    "quadratic": Basin(Shape(0.0, 0.0)),
    "threshold": Threshold(LOPSIDED),
    "spline": Spline(LOPSIDED),
}
